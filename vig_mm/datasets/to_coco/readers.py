"""Readers of YOLO, Pascal VOC, LabelMe, VIA and CVAT annotations."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml

from .objects import FormatError, Picture, Polygon, Thing, ellipse, image_size

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
Read = tuple[list[Picture], list[str]]
"""Pictures, and names of the classes where the format orders them."""


def read_yolo(source: Path, images: Path | None, split: str) -> Read:
    """`data.yaml` with its splits: `images/*.jpg`, and `labels/*.txt` beside them.

    Lines are `class x y width height` (of the centre, relative) or `class x1 y1 x2 y2 x3 y3 ...`.
    An image without a file of labels, or with an empty one, has no objects.
    """
    try:
        content = yaml.safe_load(source.read_text())
        names, entry = content["names"], content[split]
    except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise FormatError(
            f"{str(source)!r} is no data.yaml of YOLO with names and {split}: {error}"
        ) from error
    names = dict(names if isinstance(names, dict) else enumerate(names))
    root = source.parent / (content.get("path") or "")
    pictures = []
    for one in entry if isinstance(entry, list) else [entry]:
        folder = images or _yolo_folder(root, one)
        for path in _files(folder, IMAGES):
            labels = _yolo_labels(path)
            size = image_size(path)
            things = _yolo_things(labels, names, size) if labels.is_file() else []
            pictures.append(Picture(path.relative_to(folder).as_posix(), size, things))
    return pictures, [str(names[i]) for i in sorted(names)]


def _yolo_folder(root: Path, entry: str) -> Path:
    # Roboflow writes ../train/images for train/images
    places = [root / entry, root / entry.removeprefix("../")]
    for place in places:
        if place.is_dir():
            return place
    raise FormatError(f"no folder {str(places[0])!r} (of data.yaml): give it by --images")


def _yolo_labels(image: Path) -> Path:
    parts = list(image.with_suffix(".txt").parts)
    for i in range(len(parts) - 1, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            return Path(*parts)
    return image.with_suffix(".txt")


def _yolo_things(path: Path, names: dict[int, str], size: tuple[int, int]) -> Iterable[Thing]:
    things = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            label, *values = (float(x) for x in line.split())
            name = str(names[int(label)])
        except (ValueError, KeyError) as error:
            raise FormatError(f"line {number} of {str(path)!r}: {line!r} is no object") from error
        scaled = [value * size[i % 2] for i, value in enumerate(values)]
        if len(values) == 4:
            x, y, width, height = scaled
            box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            things.append(Thing(name, box))
        elif len(values) >= 6 and len(values) % 2 == 0:
            things.append(Thing(name, polygons=[scaled]))
        else:
            raise FormatError(
                f"line {number} of {str(path)!r} has {len(values)} numbers behind the class: a box "
                "has 4, a polygon 6 or more"
            )
    return things


def read_voc(source: Path, images: Path | None, split: str) -> Read:
    """A folder of xml, one an image. Corners count from 1; `difficult` becomes `iscrowd`."""
    pictures = []
    for path in _files(source, (".xml",)):
        root = _xml(path, "annotation")
        name = root.findtext("filename") or f"{path.stem}.jpg"
        size = tuple(int(float(root.findtext(f"size/{x}") or 0)) for x in ("width", "height"))
        if not all(size):
            size = image_size((images or source) / name)
        picture = Picture(name, size)
        for one in root.iter("object"):
            corners = [one.findtext(f"bndbox/{x}") for x in ("xmin", "ymin", "xmax", "ymax")]
            if None in corners:
                raise FormatError(f"{str(path)!r} has an object without bndbox")
            box = [max(0.0, float(x) - 1) for x in corners]
            difficult = (one.findtext("difficult") or "0").strip() == "1"
            picture.things.append(Thing(one.findtext("name") or "", box, crowd=difficult))
        pictures.append(picture)
    return pictures, []


def read_labelme(source: Path, images: Path | None, split: str) -> Read:
    """A folder of json, one an image. Shapes of one group and label are one object's parts."""
    pictures = []
    for path in _files(source, (".json",)):
        content = _json(path)
        if not isinstance(content, dict) or not {"shapes", "imagePath"} <= content.keys():
            raise FormatError(f"{str(path)!r} is no LabelMe file: it has no shapes and imagePath")
        name = Path(content["imagePath"].replace("\\", "/")).name
        size = (content.get("imageWidth"), content.get("imageHeight"))
        picture = Picture(name, size if all(size) else image_size((images or source) / name))
        groups: dict[tuple, Thing] = {}
        for shape in content["shapes"]:
            kind, points = shape.get("shape_type") or "polygon", shape["points"]
            polygon, box = _labelme_shape(kind, points)
            if polygon is None:
                picture.skipped += 1
                continue
            group = shape.get("group_id")
            key = (group, shape["label"]) if group is not None else (None, len(groups), "alone")
            if key in groups and groups[key].polygons:
                groups[key].polygons.append(polygon)
            else:
                groups[key] = Thing(shape["label"], box, [] if box else [polygon])
                picture.things.append(groups[key])
        pictures.append(picture)
    return pictures, []


def _labelme_shape(kind: str, points: list) -> tuple[Polygon | None, list[float] | None]:
    """(polygon, box of a rectangle); nothing for points and lines."""
    if kind == "rectangle" and len(points) >= 2:
        xs, ys = zip(*points, strict=True)
        box = [min(xs), min(ys), max(xs), max(ys)]
        return [], box
    if kind == "circle" and len(points) == 2:
        (x, y), (u, v) = points
        radius = ((x - u) ** 2 + (y - v) ** 2) ** 0.5
        return ellipse(x, y, radius, radius), None
    if kind == "polygon" and len(points) >= 3:
        return [c for point in points for c in point], None
    return None, None


def read_via(source: Path, images: Path | None, split: str) -> Read:
    """A project or an export of VIA (VGG Image Annotator), version 1 or 2."""
    content = _json(source)
    entries = content.get("_via_img_metadata", content) if isinstance(content, dict) else None
    if not isinstance(entries, dict) or not all(
        isinstance(one, dict) and {"filename", "regions"} <= one.keys() for one in entries.values()
    ):
        raise FormatError(f"{str(source)!r} is no VIA file of images: they have filename, regions")
    pictures = []
    for entry in entries.values():
        name = entry["filename"]
        picture = Picture(name, image_size((images or source.parent) / name))
        regions = entry["regions"]
        for region in regions.values() if isinstance(regions, dict) else regions:
            shape = region["shape_attributes"]
            polygon, box = _via_shape(shape)
            if polygon is None:
                picture.skipped += 1
                continue
            label = _via_name(region.get("region_attributes") or {}, f"{source}: {name}")
            picture.things.append(Thing(label, box, [] if box else [polygon]))
        pictures.append(picture)
    return pictures, []


def _via_shape(shape: dict) -> tuple[Polygon | None, list[float] | None]:
    kind = shape.get("name")
    if kind == "rect":
        x, y = shape["x"], shape["y"]
        return [], [x, y, x + shape["width"], y + shape["height"]]
    if kind == "polygon":
        pairs = zip(shape["all_points_x"], shape["all_points_y"], strict=True)
        return [c for pair in pairs for c in pair], None
    if kind == "circle":
        return ellipse(shape["cx"], shape["cy"], shape["r"], shape["r"]), None
    if kind == "ellipse" and not shape.get("theta"):
        return ellipse(shape["cx"], shape["cy"], shape["rx"], shape["ry"]), None
    return None, None


def _via_name(attributes: dict, where: str) -> str:
    """The class: the one attribute that has a value; of a checkbox the one that is ticked."""
    values = {key: value for key, value in attributes.items() if value not in ("", None, {})}
    if len(values) != 1:
        raise FormatError(
            f"{where}: a region has {len(values)} attributes with a value ({', '.join(values)}), "
            "and one, its class, is needed"
        )
    (value,) = values.values()
    if isinstance(value, dict):
        ticked = [str(key) for key, is_ticked in value.items() if is_ticked]
        if len(ticked) != 1:
            raise FormatError(
                f"{where}: a region has {len(ticked)} classes ticked, and one is needed"
            )
        return ticked[0]
    return str(value)


def read_cvat(source: Path, images: Path | None, split: str) -> Read:
    """CVAT's xml for images: boxes and polygons."""
    root = _xml(source, "annotations")
    pictures = []
    for entry in root.iter("image"):
        picture = Picture(entry.get("name"), (int(entry.get("width")), int(entry.get("height"))))
        for shape in entry:
            label = shape.get("label")
            if shape.tag == "box":
                box = [float(shape.get(x)) for x in ("xtl", "ytl", "xbr", "ybr")]
                picture.things.append(Thing(label, box))
            elif shape.tag == "polygon":
                points = shape.get("points").replace(";", ",").split(",")
                picture.things.append(Thing(label, polygons=[[float(x) for x in points]]))
            elif shape.tag != "tag":
                picture.skipped += 1
        pictures.append(picture)
    names = [one.text for one in root.iterfind("meta//labels/label/name")]
    return pictures, list(dict.fromkeys(names))


FORMATS: dict[str, Callable[[Path, Path | None, str], Read]] = {
    "yolo": read_yolo,
    "voc": read_voc,
    "labelme": read_labelme,
    "via": read_via,
    "cvat": read_cvat,
}


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    paths = [folder] if folder.is_file() else sorted(folder.rglob("*"))
    found = [path for path in paths if path.is_file() and path.suffix.lower() in suffixes]
    if not found:
        raise FormatError(f"{str(folder)!r} has no {', '.join(suffixes)} file")
    return found


def _xml(path: Path, tag: str) -> ElementTree.Element:
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError) as error:
        raise FormatError(f"{str(path)!r} cannot be read as xml: {error}") from error
    if root.tag != tag:
        raise FormatError(f"{str(path)!r} begins with <{root.tag}>, and <{tag}> is needed")
    return root


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise FormatError(f"{str(path)!r} cannot be read as json: {error}") from error
