"""Faults in box and polygons of one COCO annotation that no library reports."""

from collections.abc import Sequence

import numpy as np

from .polygons import area, crosses_itself, is_usable

_BEYOND = 1.0  # pixels; COCO's own boxes end up to one behind the edge
_NOTHING = 1e-3  # pixels, what rounding leaves of points in a line


def shape_faults(annotation: dict, size: tuple[int, int], masks: bool) -> tuple[str, ...]:
    """Look at an annotation that mmdet keeps.

    Args:
        annotation: With a valid `bbox`, and `segmentation` if there are masks.
        size: (height, width) of its image, in pixels.
        masks: Whether masks are used.

    Returns:
        Of "beyond" (the box ends outside the image), "no-mask-area", "crossing", "corner-box"
        (x2, y2 for width, height) and "box-mask" (the two are apart).
    """
    faults = []
    x, y, width, height = annotation["bbox"]
    over = max(-x, -y, x + width - size[1], y + height - size[0])
    if over > _BEYOND:
        faults.append("beyond")
    mask = annotation.get("segmentation") if masks else None
    if isinstance(mask, list):
        faults += _polygon_faults([one for one in mask if is_usable(one)], annotation["bbox"])
    return tuple(faults)


def _polygon_faults(polygons: list[list[float]], box: Sequence[float]) -> list[str]:
    faults = []
    if any(map(crosses_itself, polygons)):
        faults.append("crossing")  # the halves of a bow tie cancel each other in the area
    elif sum(map(area, polygons)) < _NOTHING:
        faults.append("no-mask-area")
    points = np.concatenate([np.asarray(one, np.float64).reshape(-1, 2) for one in polygons])
    bounds = (*points.min(axis=0), *points.max(axis=0))
    x, y, width, height = box
    overlap = _overlap(bounds, (x, y, x + width, y + height))
    if overlap < 0.9 < _overlap(bounds, box):
        faults.append("corner-box")
    elif overlap < 0.5:
        faults.append("box-mask")
    return faults


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2); 1 for two without area."""
    sides = (min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1]))
    shared = max(0.0, sides[0]) * max(0.0, sides[1])
    both = sum((one[2] - one[0]) * (one[3] - one[1]) for one in (a, b)) - shared
    return shared / both if both else 1.0
