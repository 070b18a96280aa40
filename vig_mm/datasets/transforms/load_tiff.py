"""Loading of TIFF files of any depth and number of bands, for the pipelines of all libraries."""

import io
from collections.abc import Sequence

import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmengine.fileio import get

from vig_mm.registry import TRANSFORMS


@TRANSFORMS.register_module()
class LoadTiff(LoadImageFromFile):
    """Load a TIFF as it is, in place of ``LoadImageFromFile``, which makes 8-bit colour of it.

    Required key: ``img_path``. Added keys: ``img``, float32 [H, W, C] in the file's order of bands,
    ``img_shape`` and ``ori_shape`` (H, W).

    Args:
        bands: Which to take, from 0, in which order. None: all.
        scale: Factor of all values: 255 / 65535 makes of 16 bits what means and deviations for 8
            bits are made for.
        ignore_empty: Whether to take another sample for a file that cannot be read.
        backend_args: Of mmengine's file client.

    Raises:
        ValueError: The file holds no image of rows and columns, or lacks a band.
        ImportError: tifffile is not installed.
    """

    def __init__(
        self,
        bands: Sequence[int] | None = None,
        scale: float = 1.0,
        ignore_empty: bool = False,
        backend_args: dict | None = None,
    ) -> None:
        super().__init__(
            to_float32=True,
            color_type="unchanged",
            imdecode_backend="tifffile",
            ignore_empty=ignore_empty,
            backend_args=backend_args,
        )
        self.bands = None if bands is None else tuple(bands)
        self.scale = scale

    def transform(self, results: dict) -> dict | None:
        path = results["img_path"]
        try:
            image = read_tiff(get(path, backend_args=self.backend_args))
        except Exception:
            if self.ignore_empty:
                return None
            raise
        if self.bands is not None:
            if max(self.bands) >= image.shape[2]:
                raise ValueError(f"bands={self.bands}, but the file has {image.shape[2]} bands")
            image = image[..., self.bands]
        image = np.ascontiguousarray(image, np.float32) * np.float32(self.scale)
        results["img"] = image
        results["img_shape"] = results["ori_shape"] = image.shape[:2]
        return results


def read_tiff(content: bytes) -> np.ndarray:
    """The first image of a TIFF as [H, W, C], whether its bands are samples, planes or pages.

    Raises:
        ValueError: It has more axes than rows, columns and bands.
        ImportError: tifffile is not installed.
    """
    try:
        import tifffile
    except ImportError as error:
        raise ImportError("reading a TIFF as it is needs tifffile: pip install tifffile") from error
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        series = file.series[0]
        image, axes = series.asarray(), series.axes
    kept = [i for i, length in enumerate(image.shape) if length > 1 or axes[i] in "YX"]
    image, axes = image.reshape([image.shape[i] for i in kept]), "".join(axes[i] for i in kept)
    if not 2 <= image.ndim <= 3 or "Y" not in axes or "X" not in axes:
        raise ValueError(f"its axes are {axes} {image.shape}, not rows, columns and bands")
    if image.ndim == 2:
        return image[..., None]
    (band,) = (i for i, axis in enumerate(axes) if axis not in "YX")
    return np.moveaxis(image, band, -1)
