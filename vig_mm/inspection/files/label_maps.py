"""Faults in one label map, an image whose pixel values are class numbers."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import UnidentifiedImageError

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
        channels: How many the data loader gets; values mean something only with one.
        values: All that occur, as they stand in the file, in ascending order.
    """

    path: str
    fault: str | None = None
    detail: str = ""
    format: str = ""
    mode: str = ""
    size: tuple[int, int] = (0, 0)
    channels: int = 1
    values: tuple[int, ...] = ()


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
            return LabelFacts(path, channels=labels.shape[2], **facts)
        labels = labels[..., 0]
    return LabelFacts(path, values=tuple(np.unique(labels).tolist()), **facts)


def stray_values(facts: LabelFacts, num_classes: int, reduce_zero_label: bool) -> list[int]:
    """The values that stand for no class, 255 (no label) aside."""
    first = int(reduce_zero_label)
    known = {*range(first + num_classes), 255}  # 0 is a class, or no label
    return [value for value in facts.values if value not in known]
