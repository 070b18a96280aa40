"""Faults in the mask of one COCO annotation, by the conditions of mmdet and pycocotools."""

import math

from .polygons import is_usable
from .rle import is_whole

_LARGEST = 2**31  # pycocotools draws with 32-bit integers


def mask_fault(annotation: dict, size: tuple[int, int], scored: bool) -> str | None:
    """What is wrong with the mask of an annotation.

    Args:
        annotation: Of a COCO file.
        size: (width, height) of its image, in pixels.
        scored: Whether pycocotools scores the mask as well.

    Returns:
        A kind of finding (see `coco_annotations`), or None.
    """
    mask = annotation.get("segmentation")
    if not mask:
        return "no-mask"
    if isinstance(mask, list):
        return _polygon_fault(mask, scored)
    return _rle_fault(mask, size, scored) if isinstance(mask, dict) else "bad-polygon"


def _polygon_fault(polygons: list, scored: bool) -> str | None:
    if not all(isinstance(one, list) and are_finite(one) for one in polygons):
        return "bad-polygon"
    # the first tells pycocotools what they are: of more than four numbers, polygons
    if scored and len(polygons[0]) <= 4:
        return "unscorable-mask"
    usable = sum(map(is_usable, polygons))
    if usable == len(polygons):
        return None
    return "short-part" if usable else "short-polygons"


def _rle_fault(rle: dict, size: tuple[int, int], scored: bool) -> str | None:
    if not isinstance(rle.get("counts"), list | str) or rle.get("size") is None:
        return "unscorable-mask" if scored else "bad-rle"
    if rle["size"] != [*size[::-1]]:
        return "rle-size"
    return None if is_whole(rle) else "broken-rle"


def are_finite(values: list) -> bool:
    """Whether values are numbers that can be coordinates or areas."""
    if not values:
        return True
    if not set(map(type, values)) <= {int, float}:
        return False
    # whole numbers in json have no limit, and huge ones cannot be summed with floats
    is_small = -_LARGEST < min(values) and max(values) < _LARGEST
    return is_small and math.isfinite(sum(values))
