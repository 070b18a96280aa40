"""Faults in one label map, an image whose pixel values are class numbers."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import UnidentifiedImageError

from vig_mm.datasets.transforms.map_labels import pack, unpack

from ..labels import LabelUse, Value
from .images import fault_of, file_fault, open_image

# Smallest value that mmseg, which casts label maps to 8 bits, takes for another.
TOO_LARGE = 256


@dataclass(frozen=True)
class LabelFacts:
    """What `label_facts` finds out.

    Attributes:
        path: The file.
        fault: A key of `images.FAULTS`, or None.
        detail: The decoder's words for the fault.
        format: PIL's name of the format ("PNG").
        mode: PIL's name of the channels ("L"; "P" with a palette; "I;16" for 16 bits).
        size: (height, width) in pixels.
        channels: How many the data loader gets.
        values: All that occur, as they stand in the file, in ascending order: numbers, or colours
            (red, green, blue) of a map with channels.
    """

    path: str
    fault: str | None = None
    detail: str = ""
    format: str = ""
    mode: str = ""
    size: tuple[int, int] = (0, 0)
    channels: int = 1
    values: tuple[Value, ...] = ()


def label_facts(path: str, backend: str = "pillow") -> LabelFacts:
    """Read a label map as mmseg does.

    Args:
        path: The file.
        backend: `imdecode_backend` of `LoadAnnotations`. "cv2" turns a palette into colours.
    """
    import mmcv

    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        return LabelFacts(path, fault_of(error), str(error))
    fault = file_fault(path)
    if fault:
        return LabelFacts(path, fault)
    try:
        with open_image(io.BytesIO(content)) as image:
            facts = dict(format=image.format, mode=image.mode, size=image.size[::-1])
        labels = mmcv.imfrombytes(content, "unchanged", backend=backend)
        if labels is None:
            raise ValueError(f"{backend} cannot decode it")
    except Exception as error:  # each decoder has its own
        is_image = not isinstance(error, UnidentifiedImageError)
        fault = "unreadable" if is_image else "not-an-image"
        return LabelFacts(path, fault, " ".join(str(error).split()))
    if labels.ndim == 3:
        if labels.shape[2] != 1:
            channels = labels.shape[2]
            colours = tuple(unpack(np.unique(pack(labels)))) if channels in (3, 4) else ()
            return LabelFacts(path, channels=channels, values=colours, **facts)
        labels = labels[..., 0]
    return LabelFacts(path, values=tuple(np.unique(labels).tolist()), **facts)


def stray_values(facts: LabelFacts, use: LabelUse) -> list[Value]:
    """The values that stand neither for a class nor for no label."""
    return [value for value in facts.values if not use.is_known(value)]
