"""Reader of Pascal VOC: an xml for each image."""

import os
import re
from itertools import product
from pathlib import Path
from xml.etree import ElementTree

from vig_mm.errors import FormatError

from ..files import IMAGES, files
from .pictures import Picture, Reading, box, image_size, quoted, refuse_doubles

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_KNOWN = ("name", "bndbox", "difficult")
_KEPT = ("pose", "truncated", "occluded", "actions", "part", "point")  # of VOC's own devkit
_NOTHING = ("", "0", "0.0", "Unspecified", "bndbox", "False", "false")
_NAUGHT = ("rotation", "occluded", "truncated", "difficult")  # CVAT's of every box
_TOP = ("folder", "filename", "path", "source", "owner", "size", "segmented", "object")


def read_voc(source: Path, images: Path | None, split: str, as_polygons: bool = False) -> Reading:
    """A folder of xml, with subfolders, or one xml. Corners count from 1; `difficult` is `iscrowd`.

    The images lie beside the xml, or in `JPEGImages` or `images` beside its folder. The arguments
    and errors are those of `convert`.
    """
    folder = source if source.is_dir() else source.parent
    paths = [source] if folder != source else [source / x for x in files(source, (".xml",), True)]
    if not paths:
        raise FormatError(f"no .xml file in {str(folder)!r}")
    roots = {path: _read_xml(path) for path in paths}
    objects = {p: [_object(p, one) for one in root.iter("object")] for p, root in roots.items()}
    every = [one for own in objects.values() for one in own]
    if not every:
        raise FormatError(f"no object in {len(paths)} xml files of {str(folder)!r}")
    first = min(min(one["bbox"][:2]) for one in every)
    if first >= 1:  # VOC's first pixel is 1, as mmdet reads it; some programs write 0
        for one in every:
            one["bbox"] = [one["bbox"][0] - 1, one["bbox"][1] - 1, *one["bbox"][2:]]
    beside = [folder.parent / name for name in ("JPEGImages", "images")]
    places = [images] if images else [folder, *beside]
    found = {path: _image(path, folder, places, root) for path, root in roots.items()}
    if gone := [path for path in paths if found[path] is None]:
        why = f"no image in {quoted(places)} for {quoted(gone)}"
        raise FormatError(f"{why}: give their folder by --images")
    refuse_doubles((os.path.abspath(image) for _, image in found.values()), "images have an xml")
    pictures, renamed, turned = [], [], []
    for path, (_, image) in found.items():
        said = Path((roots[path].findtext("filename") or "").replace("\\", "/"))
        if said.name not in (image.name, image.stem):
            renamed.append(f"{image.name} for {said.name}")
        size, is_turned = _size(path, image, roots[path], objects[path])
        if is_turned:
            turned.append(f"{image} ({size[0]}x{size[1]})")
        pictures.append(Picture(image, size, objects[path]))
    masks = [path for path, root in roots.items() if root.findtext("segmented") == "1"]
    extra = {one.tag for root in roots.values() for one in root if not _is_empty(one)} - {*_TOP}
    kept = {tag for one in every for tag in one.get("attributes", ())}
    notes = {
        f"{sum(one['iscrowd'] for one in every)} objects are difficult: iscrowd=1":
            any(one["iscrowd"] for one in every),
        f"kept as attributes, which no library reads: {', '.join(sorted(kept))}": kept,
        f"masks in SegmentationObject are not converted: {quoted(masks)}": masks,
        f"left out, said of images: {', '.join(sorted(extra))}": extra,
        f"corners begin at {first:g}, and are taken to count from 0": first < 1,
        f"images of the name of their xml, where its <filename> is not: {quoted(renamed)}": renamed,
        "images that EXIF turns, in the size that they are loaded in; their boxes are taken for "
        f"those of the turned picture (tools/browse_dataset.py shows them): {quoted(turned)}":
            turned,
    }  # fmt: skip
    used = {place for place, _ in found.values()}
    alone = used.pop() if len(used) == 1 else None
    return Reading(pictures, [], alone, [note for note, holds in notes.items() if holds])


def _read_xml(path: Path) -> ElementTree.Element:
    """The root, whatever encoding of Python's the file names; expat knows few."""
    try:
        content: bytes | str = path.read_bytes()
        said = re.match(rb"""\s*<\?xml[^>]*encoding=["']([\w.-]+)["']""", content)
        if said and said[1].lower() not in (b"utf-8", b"utf-16"):
            content = re.sub(r"^\s*<\?xml[^>]*\?>", "", content.decode(said[1].decode()))
        root = ElementTree.fromstring(content)
    except (ElementTree.ParseError, OSError, LookupError, ValueError) as error:
        why = f"{str(path)!r} cannot be read as xml: {error}"
        raise FormatError(f"{why}; save it again, in UTF-8") from error
    if root.tag != "annotation":
        raise FormatError(f"{str(path)!r} begins with <{root.tag}>, and <annotation> is needed")
    return root


def _object(path: Path, entry: ElementTree.Element) -> dict:
    name = (entry.findtext("name") or "").strip()
    bounds = entry.find("bndbox")
    said = [one for one in entry if not _is_empty(one)]
    other = [one.tag for one in said if one.tag not in (*_KNOWN, *_KEPT)]
    other += [one.tag for one in (() if bounds is None else bounds) if one.tag not in _CORNERS]
    if other:
        raise FormatError(
            f"{str(path)!r}: an object {name!r} has {', '.join(f'<{tag}>' for tag in other)}: "
            "rotated boxes, polygons, masks, keypoints and attributes are not converted: export "
            "COCO from the program that made them, or take them out of the xml"
        )
    try:
        corners = [float(entry.findtext(f"bndbox/{tag}") or "") for tag in _CORNERS]
        fault = "" if name else "no name"
        if corners[2] < corners[0] or corners[3] < corners[1]:
            fault = "corners in another order than xmin, ymin, xmax, ymax"
    except ValueError:
        fault = "no bndbox of four numbers"
    if fault:
        raise FormatError(f"{str(path)!r}: an object {name!r} has {fault}")
    found = box(name, corners)
    found["iscrowd"] = int((entry.findtext("difficult") or "0").strip() == "1")
    kept = {one.tag: _value(one) for one in said if one.tag in _KEPT}
    if parts := [_value(one) for one in entry.findall("part")]:
        kept["part"] = parts
    return found | ({"attributes": kept} if kept else {})


def _is_empty(entry: ElementTree.Element) -> bool:
    """Whether an element says nothing; CVAT writes a rotation of 0 to every box."""
    if len(entry) == 0:
        return (entry.text or "").strip() in _NOTHING
    return entry.tag == "attributes" and all(
        one.findtext("name") in _NAUGHT and (one.findtext("value") or "").strip() in _NOTHING
        for one in entry
    )


def _value(entry: ElementTree.Element) -> object:
    return {one.tag: _value(one) for one in entry} if len(entry) else (entry.text or "").strip()


def _image(
    path: Path, folder: Path, places: list[Path], root: ElementTree.Element
) -> tuple[Path, Path] | None:
    """The folder that an image was found in, and its file, named as <filename> or the xml."""
    said = (root.findtext("filename") or "").strip().replace("\\", "/")
    endings = [one for suffix in IMAGES for one in (suffix, suffix.upper())]
    stems = filter(None, dict.fromkeys([said, os.path.splitext(said)[0], path.stem]))
    names = [said] if said.lower().endswith(IMAGES) else []
    names += [stem + ending for stem, ending in product(stems, endings)]
    insides = dict.fromkeys([path.parent.relative_to(folder), Path()])
    for place, inside, name in product(places, insides, names):
        if (place / inside / name).is_file():
            return place, place / inside / name
    return None


def _size(
    path: Path, image: Path, root: ElementTree.Element, objects: list[dict]
) -> tuple[tuple[int, int], bool]:
    """(width, height) that an image is loaded in, if its xml is of that, and if EXIF turns it."""
    size, swapped = image_size(image)
    try:
        width, height = (int(float(root.findtext(f"size/{x}") or 0)) for x in ("width", "height"))
    except ValueError:
        width = height = 0
    said = (width, height) if width > 0 and height > 0 else size
    if said == size:
        return size, False
    if not swapped or said != size[::-1]:
        raise FormatError(
            f"{str(path)!r} is of {said[0]}x{said[1]} pixels, and {str(image)!r} is loaded as "
            f"{size[0]}x{size[1]}: the boxes do not fit it; give the pictures that were annotated"
        )
    boxes = [one["bbox"] for one in objects]
    if any(x + w > size[0] + 1 or y + h > size[1] + 1 for x, y, w, h in boxes):
        raise FormatError(
            f"{str(image)!r} is turned as its EXIF orientation says, and {str(path)!r} is of "
            "the unturned picture: take the EXIF orientation out of the file"
        )
    return size, True
