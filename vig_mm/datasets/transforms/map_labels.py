"""Renumber label maps, or turn their colours into numbers."""

from collections.abc import Mapping

import numpy as np
from mmcv.transforms import BaseTransform

from vig_mm.registry import TRANSFORMS

Value = int | tuple[int, int, int]
"""What a pixel of a label map holds: a number, or a colour (red, green, blue)."""

_BYTE = range(256)


@TRANSFORMS.register_module()
class MapLabels(BaseTransform):
    """Give label maps the numbers of the classes.

    It belongs behind mmseg's ``LoadAnnotations``, in training and test pipelines alike, and sees
    what that has loaded: with ``reduce_zero_label`` the numbers are reduced already. 255 is "no
    label" unless heads and evaluators say otherwise.

    Modified key: ``gt_seg_map``, uint8 [H, W], or [H, W, 3] (blue, green, red, as mmcv loads
    colours; a fourth channel is left out). A picture without a label map, as mmseg's inferencer has
    it, stays as it is.

    Args:
        mapping: Number or colour (red, green, blue) -> number, all from 0 to 255.
        others: What all else becomes. None: numbers stay, and an unknown colour is an error.

    Raises:
        ValueError: an entry is neither; a label map has colours that are not in the mapping, or
            numbers where the mapping has colours, or has not been loaded yet.
    """

    def __init__(self, mapping: Mapping[Value, int], others: int | None = None) -> None:
        self.mapping = read_mapping(mapping)
        if others is not None and others not in _BYTE:
            raise ValueError(f"MapLabels: others={others!r} must be a number from 0 to 255")
        self.others = others

    def transform(self, results: dict) -> dict:
        labels = results.get("gt_seg_map")
        if labels is None:
            if results.get("seg_map_path") is not None:
                raise ValueError("MapLabels stands before LoadAnnotations: put it behind")
            return results
        mapped = self._numbers(labels) if labels.ndim == 2 else self._colours(labels)
        results["gt_seg_map"] = mapped
        return results

    def _numbers(self, labels: np.ndarray) -> np.ndarray:
        colour = next((value for value in self.mapping if isinstance(value, tuple)), None)
        if colour is not None:
            raise ValueError(
                f"MapLabels: the label map has numbers, and the mapping has colours ({colour}): "
                "give the numbers that the map holds"
            )
        table = np.arange(256, dtype=np.uint8)
        if self.others is not None:
            table[:] = self.others
        table[list(self.mapping)] = list(self.mapping.values())
        return table[labels]

    def _colours(self, labels: np.ndarray) -> np.ndarray:
        packed = pack(labels)
        mapped = np.full(packed.shape, self.others or 0, np.uint8)
        known = np.full(packed.shape, self.others is not None)
        for value, number in self.mapping.items():
            if isinstance(value, tuple):
                here = packed == _packed(value)
                mapped[here], known[here] = number, True
        if not known.all():
            strange = np.unique(packed[~known])
            raise ValueError(
                f"MapLabels: {np.count_nonzero(~known)} pixels are of {len(strange)} colours that "
                f"are not in the mapping, e.g. {unpack(strange[:3])}: add them, or set others=255"
            )
        return mapped

    def __repr__(self) -> str:
        return f"{type(self).__name__}(mapping={self.mapping}, others={self.others})"


def read_mapping(mapping: Mapping[Value, int]) -> dict[Value, int]:
    """The mapping, with colours as tuples.

    Raises:
        ValueError: an entry is neither a number nor a colour, or stands for no number.
    """
    if not isinstance(mapping, Mapping) or not mapping:
        raise ValueError(f"MapLabels: mapping={mapping!r} must be like {{11: 255, 12: 3}}")
    read = {}
    for value, number in mapping.items():
        parts = value if isinstance(value, tuple) else (value,)
        is_value = len(parts) in (1, 3) and all(_is_byte(part) for part in parts)
        if not is_value or not _is_byte(number):
            raise ValueError(
                f"MapLabels: {value!r}: {number!r} is no entry of a mapping, which takes a number "
                "from 0 to 255 or a colour (red, green, blue) to a number from 0 to 255"
            )
        read[value] = number
    return read


def pack(colours: np.ndarray) -> np.ndarray:
    """Colours ``[H, W, 3+]`` in mmcv's order (blue, green, red) as one int32 each, ``[H, W]``."""
    blue, green, red = (colours[..., i].astype(np.int32) for i in range(3))
    return red << 16 | green << 8 | blue


def unpack(packed: np.ndarray) -> list[tuple[int, int, int]]:
    """(red, green, blue) of colours from `pack`."""
    return [(int(one) >> 16, int(one) >> 8 & 255, int(one) & 255) for one in packed]


def _packed(colour: tuple[int, int, int]) -> int:
    red, green, blue = colour
    return red << 16 | green << 8 | blue


def _is_byte(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value in _BYTE
