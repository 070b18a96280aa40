"""What readers of other formats give: pictures with named boxes and polygons."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

Polygon = list[float]
"""[x1, y1, x2, y2, ...] in pixels."""


class FormatError(ValueError):
    """A file is not of the format, or lacks what COCO needs; the message names it."""


@dataclass
class Thing:
    """One object.

    Attributes:
        name: Of its class.
        box: (x1, y1, x2, y2) in pixels; None for that of the polygons.
        polygons: Its parts; none where only a box is known.
        crowd: Whether it is neither to be found nor to be missed.
    """

    name: str
    box: Sequence[float] | None = None
    polygons: list[Polygon] = field(default_factory=list)
    crowd: bool = False


@dataclass
class Picture:
    """One image.

    Attributes:
        name: Its file, relative to the folder of the images.
        size: (width, height) in pixels.
        things: Its objects.
        skipped: How many shapes are neither boxes nor areas, such as points and lines.
    """

    name: str
    size: tuple[int, int]
    things: list[Thing] = field(default_factory=list)
    skipped: int = 0


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of an image file.

    Raises:
        FormatError: It is not there, or no image.
    """
    try:
        with Image.open(path) as image:
            return image.size
    except OSError as error:
        raise FormatError(
            f"{str(path)!r} is needed for its size and cannot be read: {error}"
        ) from (error)


def ellipse(x: float, y: float, rx: float, ry: float, corners: int = 64) -> Polygon:
    """A polygon on an ellipse around (x, y)."""
    turns = [2 * math.pi * i / corners for i in range(corners)]
    return [c for t in turns for c in (x + rx * math.cos(t), y + ry * math.sin(t))]
