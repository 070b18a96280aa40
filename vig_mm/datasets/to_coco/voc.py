"""Reader of Pascal VOC: an xml for each image."""

import os
import re
from pathlib import Path
from xml.etree import ElementTree

from vig_mm.errors import FormatError

from .pictures import IMAGES, Picture, Reading, Thing, files, image_size, refuse_doubles, some

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_KNOWN = ("name", "bndbox", "difficult")
_KEPT = ("pose", "truncated", "occluded", "actions", "part", "point")  # of VOC's own devkit
_NOTHING = ("", "0", "0.0", "Unspecified", "bndbox")
_TOP = ("folder", "filename", "path", "source", "owner", "size", "segmented", "object")


def read_voc(source: Path, images: Path | None, split: str, as_polygons: bool = False) -> Reading:
    """A folder of xml, or one xml. Corners count from 1; `difficult` becomes `iscrowd`.

    The images lie beside the xml, or in `JPEGImages` or `images` beside its folder.

    Args:
        source: Folder of the xml, with subfolders, or one file.
        images: Folder of the images.
        split, as_polygons: Of YOLO.

    Raises:
        FormatError: There is something else in it, or something is missing.
    """
    folder = source if source.is_dir() else source.parent
    paths = files(folder, (".xml",)) if source.is_dir() else [source]
    if not paths:
        raise FormatError(f"no .xml file in {str(folder)!r}")
    places = (
        [images] if images else [folder, folder.parent / "JPEGImages", folder.parent / "images"]
    )
    roots = {path: _read_xml(path) for path in paths}
    things = {
        path: [_thing(path, one) for one in root.iter("object")] for path, root in roots.items()
    }
    if not any(things.values()):
        raise FormatError(f"no object in {len(paths)} xml files of {str(folder)!r}")
    found = {path: _image(path, folder, places, root) for path, root in roots.items()}
    notes = _notes(roots, things)
    notes += _count_from_0([thing for own in things.values() for thing in own])
    gone = [path for path in paths if found[path] is None]
    if gone:
        raise FormatError(
            f"no image in {some(places)} for {some(gone)}: give their folder by --images"
        )
    refuse_doubles((os.path.abspath(image) for _, image in found.values()), "images have an xml")
    pictures, renamed, turned = [], [], []
    for path, (_, image) in found.items():
        said = Path((roots[path].findtext("filename") or "").replace("\\", "/"))
        if said.name not in (image.name, image.stem):
            renamed.append(f"{image.name} for {said.name}")
        size = _size(path, image, roots[path], things[path])
        if size != (_said_size(roots[path]) or size):
            turned.append(f"{image} ({size[0]}x{size[1]})")
        pictures.append(Picture(image, size, things[path]))
    if renamed:
        notes.append(
            f"images of the name of their xml, where its <filename> is not: {some(renamed)}"
        )
    if turned:
        notes.append(
            "images that EXIF turns, in the size that they are loaded in; their boxes are taken "
            f"for those of the turned picture (tools/browse_dataset.py shows them): {some(turned)}"
        )
    used = {place for place, _ in found.values()}
    return Reading(pictures, [], used.pop() if len(used) == 1 else None, notes)


def _read_xml(path: Path) -> ElementTree.Element:
    """The root, whatever encoding of Python's the file names; expat knows few."""
    try:
        content = path.read_bytes()
        said = re.match(rb"""\s*<\?xml[^>]*encoding=["']([\w.-]+)["']""", content)
        if said and said[1].lower() not in (b"utf-8", b"utf-16"):
            text = content.decode(said[1].decode())
            root = ElementTree.fromstring(re.sub(r"^\s*<\?xml[^>]*\?>", "", text))
        else:
            root = ElementTree.fromstring(content)
    except (ElementTree.ParseError, OSError, LookupError, ValueError) as error:
        raise FormatError(
            f"{str(path)!r} cannot be read as xml: {error}; save it again, in UTF-8"
        ) from error
    if root.tag != "annotation":
        raise FormatError(f"{str(path)!r} begins with <{root.tag}>, and <annotation> is needed")
    return root


def _thing(path: Path, entry: ElementTree.Element) -> Thing:
    name = (entry.findtext("name") or "").strip()
    other = [one.tag for one in entry if one.tag not in (*_KNOWN, *_KEPT) and not _is_empty(one)]
    box = entry.find("bndbox")
    other += [one.tag for one in (() if box is None else box) if one.tag not in _CORNERS]
    if other:
        raise FormatError(
            f"{str(path)!r}: an object {name!r} has {', '.join(f'<{tag}>' for tag in other)}: "
            "rotated boxes, polygons, masks, keypoints and attributes are not converted: export "
            "COCO from the program that made them, or take them out of the xml"
        )
    try:
        x1, y1, x2, y2 = (float(box.findtext(tag)) for tag in _CORNERS)  # type: ignore[union-attr,arg-type]
    except (AttributeError, TypeError, ValueError) as error:
        raise FormatError(
            f"{str(path)!r}: an object {name!r} has no bndbox of four numbers"
        ) from error
    if not name or x2 < x1 or y2 < y1:
        why = "corners in another order than xmin, ymin, xmax, ymax" if name else "no name"
        raise FormatError(f"{str(path)!r}: an object {name!r} has {why}")
    kept = {one.tag: _value(one) for one in entry if one.tag in _KEPT and not _is_empty(one)}
    if parts := [_value(one) for one in entry.findall("part")]:
        kept["part"] = parts
    crowd = (entry.findtext("difficult") or "0").strip() == "1"
    return Thing(name, (x1, y1, x2, y2), None, crowd, kept)


def _is_empty(entry: ElementTree.Element) -> bool:
    """Whether an element says nothing; CVAT writes a rotation of 0 to every box."""
    if len(entry) == 0:
        return (entry.text or "").strip() in _NOTHING
    return entry.tag == "attributes" and all(
        one.findtext("name") in ("rotation", "occluded", "truncated", "difficult")
        and (one.findtext("value") or "").strip() in (*_NOTHING, "False", "false")
        for one in entry
    )


def _value(entry: ElementTree.Element) -> object:
    return {one.tag: _value(one) for one in entry} if len(entry) else (entry.text or "").strip()


def _notes(roots: dict[Path, ElementTree.Element], things: dict[Path, list[Thing]]) -> list[str]:
    notes = []
    every = [thing for own in things.values() for thing in own]
    if crowds := sum(thing.crowd for thing in every):
        notes.append(f"{crowds} objects are difficult: iscrowd=1")
    if kept := sorted({tag for thing in every for tag in thing.attributes}):
        notes.append(f"kept as attributes, which no library reads: {', '.join(kept)}")
    masks = [path for path, root in roots.items() if root.findtext("segmented") == "1"]
    if masks:
        notes.append(f"masks in SegmentationObject are not converted: {some(masks)}")
    extra = {one.tag for root in roots.values() for one in root if not _is_empty(one)} - {*_TOP}
    if extra:
        notes.append(f"left out, said of images: {', '.join(sorted(extra))}")
    return notes


def _image(
    path: Path, folder: Path, places: list[Path], root: ElementTree.Element
) -> tuple[Path, Path] | None:
    """The folder that an image was found in, and its file, named as <filename> or the xml."""
    said = (root.findtext("filename") or "").strip().replace("\\", "/")
    stems = dict.fromkeys([said, os.path.splitext(said)[0], path.stem])
    for place in places:
        for inside in dict.fromkeys([path.parent.relative_to(folder), Path()]):
            if said and (place / inside / said).suffix.lower() in IMAGES:
                if (place / inside / said).is_file():
                    return place, place / inside / said
            for stem in filter(None, stems):
                for suffix in IMAGES:
                    for one in (suffix, suffix.upper()):
                        image = place / inside / f"{stem}{one}"
                        if image.is_file():
                            return place, image
    return None


def _size(
    path: Path, image: Path, root: ElementTree.Element, things: list[Thing]
) -> tuple[int, int]:
    """(width, height) that an image is loaded in, if its xml is of that."""
    size, swapped = image_size(image)
    said = _said_size(root)
    ends = [max((thing.box[i] for thing in things), default=0) for i in (2, 3)]  # type: ignore[index]
    fits = all(end <= side + 1 for end, side in zip(ends, size, strict=True))
    if said not in (None, size):
        if not swapped or said != size[::-1]:
            raise FormatError(
                f"{str(path)!r} is of {said[0]}x{said[1]} pixels, and {str(image)!r} is loaded as "
                f"{size[0]}x{size[1]}: the boxes do not fit it; give the pictures that were "
                "annotated"
            )
        if not fits:
            raise FormatError(
                f"{str(image)!r} is turned as its EXIF orientation says, and {str(path)!r} is of "
                "the unturned picture: take the EXIF orientation out of the file"
            )
    return size


def _said_size(root: ElementTree.Element) -> tuple[int, int] | None:
    try:
        width, height = (int(float(root.findtext(f"size/{x}") or 0)) for x in ("width", "height"))
    except ValueError:
        return None
    return (width, height) if width > 0 and height > 0 else None


def _count_from_0(things: list[Thing]) -> list[str]:
    """VOC's first pixel is 1, as mmdet reads it; some programs write 0. What to note."""
    first = min(min(thing.box or ()) for thing in things)
    for thing in things if first >= 1 else ():
        thing.box = [corner - 1 for corner in thing.box or ()]
    return [] if first >= 1 else [f"corners begin at {first:g}, and are taken to count from 0"]
