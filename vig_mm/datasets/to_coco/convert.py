"""A COCO annotation file of what a reader of another format found."""

import os
from collections.abc import Callable
from pathlib import Path

from vig_mm.errors import FormatError

from .pictures import Reading, quoted, refuse_doubles
from .voc import read_voc
from .yolo import read_yolo

FORMATS: dict[str, Callable[[Path, Path | None, str, bool], Reading]] = {
    "yolo": read_yolo,
    "voc": read_voc,
}
OTHERS = {
    "labelme": "LabelMe: its own labelme2coco.py (github.com/wkentaro/labelme, "
    "examples/instance_segmentation) writes COCO, with polygons, masks and groups",
    "via": "VIA (VGG Image Annotator): its menu Annotation > Export Annotations (COCO format) "
    "writes COCO, with boxes and polygons",
    "cvat": "CVAT: its menu Export > COCO 1.0 writes boxes, polygons, masks and ellipses",
}
"""Formats that are not read here -> the program's own export, which is."""


def convert(
    kind: str,
    source: str | Path,
    images: str | Path | None = None,
    split: str = "train",
    classes: list[str] | None = None,
    as_polygons: bool = False,
) -> tuple[dict, list[str]]:
    """Read annotations of another format (`kind`) as COCO's.

    Args:
        source: File or folder, as the format has it.
        images: Folder of the images, where the format does not tell.
        split: Of a YOLO data.yaml.
        classes: Their order; None for that of the format, or of the alphabet.
        as_polygons: Take YOLO's oriented boxes for polygons.

    Returns:
        Content of a COCO file, with ids from 1 and boxes and polygons in pixels; and what a user
        should know of it.

    Raises:
        FormatError: There is anything that is not converted, or no object; the message names it.
    """
    if kind in OTHERS:
        raise FormatError(f"{kind} is not read here; {OTHERS[kind]}")
    source = Path(source)
    if not source.exists():
        raise FormatError(f"{str(source)!r} is not there")
    reading = FORMATS[kind](source, Path(images) if images else None, split, as_polygons)
    there = sorted({one["name"] for picture in reading.pictures for one in picture.objects})
    names = classes or reading.names or there
    refuse_doubles(names, "classes are there")
    if foreign := [name for name in there if name not in names]:
        raise FormatError(f"objects of {quoted(foreign)}, which are no classes ({quoted(names)})")
    inside = [os.path.dirname(os.path.abspath(one.path)) for one in reading.pictures]
    folder = reading.folder or os.path.commonpath(inside)
    category = {name: i for i, name in enumerate(names, 1)}
    listed, annotations = [], []
    for number, picture in enumerate(reading.pictures, 1):
        width, height = picture.size
        name = Path(os.path.relpath(picture.path, folder)).as_posix()
        listed.append(dict(id=number, file_name=name, width=width, height=height))
        for one in picture.objects:
            ids = dict(id=len(annotations) + 1, image_id=number, category_id=category[one["name"]])
            annotations.append(ids | {key: value for key, value in one.items() if key != "name"})
    categories = [dict(id=i, name=name) for name, i in category.items()]
    notes = [f"file_name is relative to {str(folder)!r}", *reading.notes]
    return dict(images=listed, categories=categories, annotations=annotations), notes
