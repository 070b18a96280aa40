"""What a reader of another format gives: pictures with named objects as COCO has them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
from PIL import ExifTags, Image

from vig_mm.errors import FormatError

from ..files import some


class Picture(NamedTuple):
    """One image: its file, (width, height) as it is loaded, and its objects: annotations of COCO,
    with the `name` of their class in place of ids.
    """

    path: Path
    size: tuple[int, int]
    objects: list[dict]


class Reading(NamedTuple):
    """All that a reader found."""

    pictures: list[Picture]  # in the order of the file names
    names: list[str]  # of the classes where the format orders them, else none
    folder: Path | None  # that `file_name` is relative to; None: that all have in common
    notes: list[str]  # what a user should know of it


def box(name: str, corners: Sequence[float]) -> dict:
    """An object with a box (x1, y1, x2, y2), in pixels."""
    x1, y1, x2, y2 = corners
    sides = x2 - x1, y2 - y1
    return dict(name=name, bbox=[x1, y1, *sides], area=sides[0] * sides[1], iscrowd=0)


def polygon(name: str, points: list[float]) -> dict:
    """An object with a polygon (x1, y1, x2, y2, ...), in pixels, and the box around it."""
    from shapely import Polygon, make_valid  # required by mmdet alone

    xs, ys = points[::2], points[1::2]
    around = box(name, (min(xs), min(ys), max(xs), max(ys)))
    area = make_valid(Polygon(zip(xs, ys, strict=True))).area
    return dict(around, area=area, segmentation=[points])


def image_size(path: Path) -> tuple[tuple[int, int], bool]:
    """(width, height) of an image file as OpenCV loads it, and whether EXIF swaps its sides."""
    try:
        with Image.open(path) as image:
            size, turn = image.size, image.getexif().get(ExifTags.Base.Orientation, 1)
    except (OSError, SyntaxError, ValueError) as error:
        raise FormatError(f"picture {str(path)!r} cannot be read: {error}") from error
    # which formats it turns, OpenCV knows
    loaded = cv2.imread(str(path)) if turn in (5, 6, 7, 8) else None
    turned = size if loaded is None else loaded.shape[1::-1]
    return turned, turned != size


def quoted(names: Iterable[Any]) -> str:
    """The first few names, in quotes, and how many there are."""
    return some([repr(str(name)) for name in names])


def refuse_doubles(names: Iterable[Any], what: str) -> None:
    """See that no name occurs twice; `what` says of what."""
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise FormatError(f"{what} more than once: {quoted(twice)}; keep one of each")
