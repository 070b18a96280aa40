"""Reader of YOLO: `data.yaml`, images, and a file of labels beside each of them."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from vig_mm.errors import FormatError

from .pictures import (
    IMAGES,
    Picture,
    Reading,
    Thing,
    files,
    image_size,
    read_text,
    refuse_doubles,
    some,
)

_KEYPOINTS = ("kpt_shape", "flip_idx", "kpt_names", "skeleton")
_BEYOND = 0.01  # what rounding may add to a share of the picture's side
_SHARES = "x and y are shares of the picture's width and height, from 0 to 1"


@dataclass
class _Line:
    """One line of labels: where it stands, its class, its numbers as they stand, the image."""

    where: str
    name: str
    values: list[float]
    size: tuple[int, int]

    def thing(self) -> Thing:
        scaled = [value * self.size[i % 2] for i, value in enumerate(self.values)]
        if len(scaled) > 4:
            return Thing(self.name, polygon=scaled)
        x, y, width, height = scaled
        return Thing(self.name, (x - width / 2, y - height / 2, x + width / 2, y + height / 2))


def read_yolo(source: Path, images: Path | None, split: str, as_polygons: bool = False) -> Reading:
    """The images of a split: a folder, a `.txt` list of images, or several of these.

    Lines are `class x y width height` (of the centre) or `class x1 y1 x2 y2 x3 y3 ...`, in shares
    of the image's sides. An image without a file of labels, or with an empty one, has no objects.

    Args:
        source: `data.yaml`.
        images: Folder in place of the one it names.
        split: Its key in the file.
        as_polygons: Take oriented boxes for polygons of four corners.

    Raises:
        FormatError: There is something else in it, or something is missing.
    """
    names, entries, root = _read_yaml(source, split)
    folders: list[Path] = []
    paths: list[Path] = []
    notes = []
    for entry in entries:
        place = images or _place(root, entry)
        if place.is_dir():
            folders.append(place)
            found = files(place, IMAGES)
            _refuse_alone(place, found)
            rest = [x for x in place.rglob("*") if x.is_file() and not x.name.startswith(".")]
            rest = [x for x in rest if x.suffix.lower() not in (*IMAGES, ".txt", ".cache")]
            if rest:
                notes.append(f"left aside in {str(place)!r}, by their endings: {some(rest)}")
            paths += found
        else:
            paths += _listed(place, root)
    if not paths:
        raise FormatError(f"no image in {some(folders or entries)} ({', '.join(IMAGES)})")
    refuse_doubles(map(os.path.abspath, paths), f"{str(source)!r}, {split}: images are there")
    refuse_doubles(
        map(_labels, paths), f"{str(source)!r}, {split}: images of one name share labels,"
    )
    pictures, lines, bare = [], [], []
    for path in paths:
        size, _ = image_size(path)
        labels = _labels(path)
        own = list(_lines(labels, names, size)) if labels.is_file() else []
        if not labels.is_file():
            bare.append(path)
        lines += own
        pictures.append(Picture(path, size, [line.thing() for line in own]))
    if not lines:
        raise FormatError(
            f"no object in {len(paths)} images: their labels are expected as "
            f"{str(_labels(paths[0]))!r}"
        )
    if not as_polygons:
        _refuse_other_corners(lines)
    if bare:
        notes.append(f"{len(bare)} images have no file of labels and count as empty: {some(bare)}")
    ordered = [names[i] for i in sorted(names)]
    return Reading(
        pictures, ordered, folders[0] if len(entries) == len(folders) == 1 else None, notes
    )


def _read_yaml(source: Path, split: str) -> tuple[dict[int, str], list[str], Path]:
    """Classes by number, what the split lists, and the folder that this is relative to."""
    try:
        content = yaml.safe_load(read_text(source))
        names, entry = content["names"], content[split]
        pairs = names.items() if isinstance(names, dict) else enumerate(names)
        by_number = {int(i): str(name) for i, name in pairs}
        entries = [str(one) for one in (entry if isinstance(entry, list) else [entry]) if one]
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise FormatError(
            f"{str(source)!r} is no data.yaml of YOLO with names and {split}: {error}"
        ) from error
    keypoints = [key for key in _KEYPOINTS if content.get(key)]
    if keypoints or content.get("task") in ("pose", "obb"):
        what = f"({', '.join(keypoints)})" if keypoints else f"(task: {content['task']})"
        raise FormatError(
            f"{str(source)!r} is of keypoints or oriented boxes {what}, which are not converted: "
            "train them in mmpose or mmrotate, or export boxes or polygons from the program that "
            "made them"
        )
    if content.get("nc") not in (None, len(by_number)):
        raise FormatError(f"{str(source)!r}: nc is {content['nc']}, and names are {len(by_number)}")
    refuse_doubles(by_number.values(), f"{str(source)!r}: classes of one name are there")
    return by_number, entries, source.parent / (content.get("path") or "")


def _place(root: Path, entry: str) -> Path:
    # Roboflow writes ../train/images for train/images; Ultralytics looks for `path` elsewhere, too
    entry = entry.replace("\\", "/")
    for place in (root / entry, root / entry.removeprefix("../")):
        if place.is_dir() or (place.suffix == ".txt" and place.is_file()):
            return place
    raise FormatError(
        f"no folder and no .txt list {str(root / entry)!r} (of data.yaml): give the folder by "
        "--images"
    )


def _listed(path: Path, root: Path) -> list[Path]:
    """The images of a list, whose lines are relative to it or to the data's folder."""
    found, gone = [], []
    for line in filter(None, map(str.strip, read_text(path).splitlines())):
        name = line.replace("\\", "/")
        places = [folder / name for folder in (path.parent, root)]
        there = next((place for place in places if place.is_file()), None)
        (gone if there is None else found).append(there or line)
    if gone:
        raise FormatError(f"{str(path)!r} lists images that are not there: {some(gone)}")
    return [Path(os.path.normpath(one)) for one in found]


def _labels(image: Path) -> Path:
    """`images/a.jpg` -> `labels/a.txt`, by the last folder of this name."""
    parts = list(image.with_suffix(".txt").parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts)


def _refuse_alone(folder: Path, images: list[Path]) -> None:
    """See that no file of labels is without its image: its objects would be lost."""
    labels = _labels(folder / "x.jpg").parent
    known = set(map(_labels, images))
    alone = []
    for path in files(labels, (".txt",)) if labels.is_dir() else ():
        first = path.read_text(encoding="utf-8", errors="replace").split()[:1]
        if path not in known and first and first[0].replace(".", "").isdigit():
            alone.append(path)
    if alone:
        raise FormatError(f"labels without an image in {str(folder)!r}: {some(alone)}")


def _lines(path: Path, names: dict[int, str], size: tuple[int, int]) -> Iterator[_Line]:
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        where = f"line {number} of {str(path)!r}"
        try:
            label, *values = (float(x) for x in line.split())
            name = names[int(label) if label == int(label) else -1]
        except (ValueError, KeyError, OverflowError) as error:
            raise FormatError(f"{where}: {line!r} is no object of {len(names)} classes") from error
        if len(values) != 4 and (len(values) < 6 or len(values) % 2):
            more = " (a fifth may be a score or the number of a track)" if len(values) == 5 else ""
            raise FormatError(
                f"{where} has {len(values)} numbers behind the class: a box has 4, a polygon 6 or "
                f"more, two a corner{more}; scores, tracks and keypoints are not converted"
            )
        if not all(math.isfinite(x) and -_BEYOND <= x <= 1 + _BEYOND for x in values):
            raise FormatError(
                f"{where}: {line!r}: {_SHARES}; pixels, and keypoints with their visibility, are "
                "not converted"
            )
        yield _Line(where, name, values, size)


def _refuse_other_corners(lines: list[_Line]) -> None:
    """Oriented boxes and keypoints look like polygons: see that not every line is one of these."""
    long = [line for line in lines if len(line.values) > 4]
    if not long or len(long) < len(lines) or len({len(line.values) for line in long}) > 1:
        return
    if all(map(_is_pose, long)):
        what, where = "a box and keypoints in it", "mmpose"
    elif len(long[0].values) == 8 and all(map(_is_rectangle, long)) and any(map(_is_turned, long)):
        what, where = "an oriented (rotated) box of four corners", "mmrotate"
    else:
        return
    raise FormatError(
        f"{long[0].where}: every object looks like {what}, which COCO has no place for: train them "
        f"in {where}; if they are polygons, or to take the corners for one, add --as-polygons"
    )


def _is_pose(line: _Line) -> bool:
    x, y, width, height, *points = line.values
    sides = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    inside = all(abs(u - x) <= width / 2 for u in points[::2])
    inside &= all(abs(v - y) <= height / 2 for v in points[1::2])
    return inside and all(-_BEYOND <= side <= 1 + _BEYOND for side in sides)


def _corners(line: _Line) -> list[complex]:
    width, height = line.size
    return [
        complex(x * width, y * height)
        for x, y in zip(line.values[::2], line.values[1::2], strict=True)
    ]


def _is_rectangle(line: _Line) -> bool:
    a, b, c, d = _corners(line)
    slack = 1.5 + 0.01 * abs(a - c)  # pixels, for rounding
    return abs((a + c) - (b + d)) / 2 <= slack and abs(abs(a - c) - abs(b - d)) <= slack


def _is_turned(line: _Line) -> bool:
    a, b, *_ = _corners(line)
    return min(abs((b - a).real), abs((b - a).imag)) > 1.5
