"""Geometry of a polygon `[x1, y1, x2, y2, ...]`: area, self-intersection."""

from collections.abc import Sequence

import numpy as np

_PAIRS = 2**18  # of edges, looked at together: all pairs of a long contour do not fit into memory


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
    rows = max(1, _PAIRS // max(1, len(start)))
    for first in range(0, len(start), rows):
        some = start[first : first + rows], end[first : first + rows]
        later = start[first:], end[first:]
        if (_parts(*some, *later) & _parts(*later, *some).T).any():
            return True
    return False


def _parts(
    start: np.ndarray, end: np.ndarray, other_start: np.ndarray, other_end: np.ndarray
) -> np.ndarray:
    """Bool [i, j]: whether the ends of the other edge j lie on either side of edge i.

    Args:
        start, end: float [i, 2], the edges.
        other_start, other_end: float [j, 2], the other edges.
    """
    edge, origin = (end - start)[:, None], start[:, None]
    side_of_start = np.sign(_cross(edge, other_start - origin))
    side_of_end = np.sign(_cross(edge, other_end - origin))
    return side_of_start * side_of_end < 0


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
