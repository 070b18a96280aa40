"""Faults of the shape of a polygon `[x1, y1, x2, y2, ...]`."""

from collections.abc import Sequence

import numpy as np


def is_usable(polygon: Sequence[float]) -> bool:
    """Whether mmdet takes a polygon: whole points, and at least three."""
    return len(polygon) >= 6 and len(polygon) % 2 == 0


def area(polygon: Sequence[float]) -> float:
    """What a polygon that does not cross itself encloses, in pixels, by the shoelace formula."""
    x, y = np.asarray(polygon, np.float64).reshape(-1, 2).T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def crosses_itself(polygon: Sequence[float]) -> bool:
    """Whether two edges pass through each other; touching is none."""
    start = np.asarray(polygon, np.float64).reshape(-1, 2)
    end = np.roll(start, -1, axis=0)

    # [i, j]: on which side of edge i point j lies
    edge = end - start
    side_of_start = np.sign(_cross(edge[:, None], start[None] - start[:, None]))
    side_of_end = np.sign(_cross(edge[:, None], end[None] - start[:, None]))
    parts = side_of_start * side_of_end < 0
    return bool((parts & parts.T).any())


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
