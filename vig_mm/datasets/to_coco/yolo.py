"""Reader of YOLO: `data.yaml`, images, and a file of labels beside each of them."""

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from vig_mm.errors import FormatError

from ..files import IMAGES, files
from .pictures import Picture, Reading, box, image_size, polygon, quoted, refuse_doubles

_KEYPOINTS = ("kpt_shape", "flip_idx", "kpt_names", "skeleton")
_BEYOND = 0.01  # what rounding may add to a share of the picture's side


# A line of labels: where it stands, its numbers as they stand, and the object.
_Line = tuple[str, list[float], dict]


def read_yolo(source: Path, images: Path | None, split: str, as_polygons: bool = False) -> Reading:
    """The images of a split of a data.yaml: a folder, a `.txt` list, or several of these.

    Lines are `class x y width height` (of the centre) or `class x1 y1 x2 y2 x3 y3 ...`, in shares
    of the image's sides. An image without a file of labels, or with an empty one, has no objects.
    The arguments and errors are those of `convert`.
    """
    names, entries, root = _read_yaml(source, split)
    folders, paths, notes = [], [], []
    for entry in entries:
        place = images or _place(root, entry)
        if not place.is_dir():
            paths += _listed(place, root)
            continue
        every = [place / name for name in files(place)]
        found = [path for path in every if path.suffix.lower() in IMAGES]
        _refuse_alone(place, found)
        taken = (*IMAGES, ".txt", ".cache")
        if rest := [path for path in every if path.suffix.lower() not in taken]:
            notes.append(f"left aside in {str(place)!r}, by their endings: {quoted(rest)}")
        folders.append(place)
        paths += found
    if not paths:
        raise FormatError(f"no image in {quoted(folders or entries)} ({', '.join(IMAGES)})")
    of = f"{str(source)!r}, {split}: images"
    refuse_doubles(map(os.path.abspath, paths), f"{of} are there")
    refuse_doubles(map(_labels, paths), f"{of} of one name share labels,")
    pictures, lines, bare = [], [], {path for path in paths if not _labels(path).is_file()}
    for path in paths:
        size, _ = image_size(path)
        own = [] if path in bare else list(_lines(_labels(path), names, size))
        lines += own
        pictures.append(Picture(path, size, [found for *_, found in own]))
    if not lines:
        where = f"their labels are expected as {str(_labels(paths[0]))!r}"
        raise FormatError(f"no object in {len(paths)} images: {where}")
    if not as_polygons:
        _refuse_other_corners(lines)
    if bare:
        of = f"{len(bare)} images have no file of labels and count as empty"
        notes.append(f"{of}: {quoted(sorted(bare))}")
    folder = folders[0] if len(entries) == len(folders) == 1 else None
    return Reading(pictures, [names[i] for i in sorted(names)], folder, notes)


def _read_yaml(source: Path, split: str) -> tuple[dict[int, str], list[str], Path]:
    """Classes by number, what the split lists, and the folder that this is relative to."""
    try:
        content = yaml.safe_load(_read_text(source))
        names, entry = content["names"], content[split]
        pairs = names.items() if isinstance(names, dict) else enumerate(names)
        by_number = {int(i): str(name) for i, name in pairs}
        entries = [str(one) for one in (entry if isinstance(entry, list) else [entry]) if one]
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        why = f"{str(source)!r} is no data.yaml of YOLO with names and {split}: {error}"
        raise FormatError(why) from error
    keypoints = [key for key in _KEYPOINTS if content.get(key)]
    if keypoints or content.get("task") in ("pose", "obb"):
        what = ", ".join(keypoints) or f"task: {content['task']}"
        raise FormatError(
            f"{str(source)!r} is of keypoints or oriented boxes ({what}), which are not converted: "
            "train them in mmpose or mmrotate, or export boxes or polygons"
        )
    if content.get("nc") not in (None, len(by_number)):
        raise FormatError(f"{str(source)!r}: nc is {content['nc']}, and names are {len(by_number)}")
    refuse_doubles(by_number.values(), f"{str(source)!r}: classes of one name are there")
    return by_number, entries, source.parent / (content.get("path") or "")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{str(path)!r} cannot be read as text in UTF-8: {error}") from error


def _place(root: Path, entry: str) -> Path:
    # Roboflow writes ../train/images for train/images; Ultralytics looks for `path` elsewhere, too
    entry = entry.replace("\\", "/")
    for place in (root / entry, root / entry.removeprefix("../")):
        if place.is_dir() or (place.suffix == ".txt" and place.is_file()):
            return place
    why = f"no folder and no .txt list {str(root / entry)!r} (of data.yaml)"
    raise FormatError(f"{why}: give the folder by --images")


def _listed(path: Path, root: Path) -> list[Path]:
    """The images of a list, whose lines are relative to it or to the data's folder."""
    found, gone = [], []
    for line in filter(None, map(str.strip, _read_text(path).splitlines())):
        places = [folder / line.replace("\\", "/") for folder in (path.parent, root)]
        there = next((place for place in places if place.is_file()), None)
        (gone if there is None else found).append(there or line)
    if gone:
        raise FormatError(f"{str(path)!r} lists images that are not there: {quoted(gone)}")
    return [Path(os.path.normpath(one)) for one in found]


def _labels(image: Path) -> Path:
    """`images/a.jpg` -> `labels/a.txt`, by the last folder of this name."""
    *parts, name = image.with_suffix(".txt").parts
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts, name)


def _refuse_alone(folder: Path, images: list[Path]) -> None:
    """See that no file of labels is without its image: its objects would be lost."""
    labels = _labels(folder / "x.jpg").parent
    known = set(map(_labels, images))
    alone = []
    for name in files(labels, (".txt",), any_case=True) if labels.is_dir() else ():
        first = (labels / name).read_text(encoding="utf-8", errors="replace").split()[:1]
        if labels / name not in known and first and first[0].replace(".", "").isdigit():
            alone.append(labels / name)
    if alone:
        raise FormatError(f"labels without an image in {str(folder)!r}: {quoted(alone)}")


def _lines(path: Path, names: dict[int, str], size: tuple[int, int]) -> Iterator[_Line]:
    for number, line in enumerate(_read_text(path).splitlines(), 1):
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
                f"{where}: {line!r}: x and y are shares of the picture's width and height, from 0 "
                "to 1; pixels, and keypoints with their visibility, are not converted"
            )
        scaled = [value * size[i % 2] for i, value in enumerate(values)]
        is_box = len(values) == 4
        yield where, values, box(name, _corners(scaled)) if is_box else polygon(name, scaled)


def _corners(values: Sequence[float]) -> tuple[float, float, float, float]:
    x, y, width, height = values
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _refuse_other_corners(lines: list[_Line]) -> None:
    """Oriented boxes and keypoints look like polygons: see that not every line is one of these."""
    places, every, objects = zip(*lines, strict=True)
    count = len(every[0])
    if count == 4 or any(len(values) != count for values in every):
        return
    if all(map(_is_pose, every)):
        what, where = "a box and keypoints in it", "mmpose"
    elif count == 8 and _are_turned_boxes(objects):
        what, where = "an oriented (rotated) box of four corners", "mmrotate"
    else:
        return
    raise FormatError(
        f"{places[0]}: every object looks like {what}, which COCO has no place for: train them in "
        f"{where}; if they are polygons, or to take the corners for one, add --as-polygons"
    )


def _is_pose(values: Sequence[float]) -> bool:
    x1, y1, x2, y2 = _corners(values[:4])
    points = zip(values[4::2], values[5::2], strict=True)
    inside = all(x1 <= x <= x2 and y1 <= y <= y2 for x, y in points)
    return inside and min(x1, y1) >= -_BEYOND and max(x2, y2) <= 1 + _BEYOND


def _are_turned_boxes(objects: Sequence[dict]) -> bool:
    """Whether all are rectangles, as far as rounding tells, and not all of them are upright."""
    from shapely import Polygon

    turned = False
    for one in objects:
        (points,) = one["segmentation"]
        shape = Polygon(zip(points[::2], points[1::2], strict=True))
        slack = 1.5 + 0.005 * shape.length  # pixels
        if shape.hausdorff_distance(shape.minimum_rotated_rectangle) > slack:
            return False
        turned |= shape.hausdorff_distance(shape.envelope) > 1.5
    return turned
