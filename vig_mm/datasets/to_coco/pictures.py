"""What a reader of another format gives: pictures with named boxes and polygons."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
from PIL import ExifTags, Image

from vig_mm.errors import FormatError

IMAGES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm",
          ".pgm", ".mpo", ".heic", ".avif")  # fmt: skip


@dataclass
class Thing:
    """One object, in pixels."""

    name: str  # of its class
    box: Sequence[float] | None = None  # (x1, y1, x2, y2); None for that of the polygon
    polygon: list[float] | None = None  # [x1, y1, x2, y2, ...], if the object has one
    crowd: bool = False  # whether it is neither to be found nor to be missed
    attributes: dict[str, Any] = field(default_factory=dict)  # all else


@dataclass
class Picture:
    """One image: its file, (width, height) as it is loaded, and its objects."""

    path: Path
    size: tuple[int, int]
    things: list[Thing]


@dataclass
class Reading:
    """All that a reader found."""

    pictures: list[Picture]  # in the order of the file names
    names: list[str]  # of the classes where the format orders them, else none
    folder: Path | None  # that `file_name` is relative to; None: that all have in common
    notes: list[str] = field(default_factory=list)  # what a user should know of it


def image_size(path: Path) -> tuple[tuple[int, int], bool]:
    """(width, height) of an image file as OpenCV loads it, and whether EXIF swaps its sides.

    Raises:
        FormatError: It is not there, or no image.
    """
    try:
        with Image.open(path) as image:
            size, turn = image.size, image.getexif().get(ExifTags.Base.Orientation, 1)
    except (OSError, SyntaxError, ValueError) as error:
        raise FormatError(f"picture {str(path)!r} cannot be read: {error}") from error
    if turn in (5, 6, 7, 8):  # which formats it turns, OpenCV knows
        loaded = cv2.imread(str(path))
        turned = size[::-1] if loaded is None else loaded.shape[1::-1]
        return tuple(turned), turned != size
    return size, False


def files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files with one of the endings in any case, below a folder; hidden ones aside."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in suffixes and path.is_file() and not path.name.startswith(".")
    )


def read_text(path: Path) -> str:
    """A file of text.

    Raises:
        FormatError: It cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{str(path)!r} cannot be read as text in UTF-8: {error}") from error


def some(names: Iterable[Any], limit: int = 5) -> str:
    """The first few names, and how many there are."""
    names = [str(name) for name in names]
    more = f", ... ({len(names)} in all)" if len(names) > limit else ""
    return ", ".join(map(repr, names[:limit])) + more


def refuse_doubles(names: Iterable[Any], what: str) -> None:
    """See that no name occurs twice.

    Raises:
        FormatError: One does; `what` says of what.
    """
    seen: set[Any] = set()
    twice = [name for name in names if name in seen or seen.add(name)]  # type: ignore[func-returns-value]
    if twice:
        raise FormatError(f"{what} more than once: {some(dict.fromkeys(twice))}; keep one of each")
