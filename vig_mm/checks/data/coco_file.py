"""Reading of a COCO annotation file, and what is wrong with it as such."""

import json
import os
import re
from typing import Any

from vig_mm.datasets.files import some
from vig_mm.datasets.to_coco import FORMATS, OTHERS

_ID = (int, float, str)
_FIELDS: dict[str, dict[str, Any]] = {
    "images": {"id": _ID, "file_name": str, "height": int, "width": int},
    "categories": {"id": _ID, "name": str},
    "annotations": {"id": _ID, "image_id": _ID, "category_id": _ID},
}
_NOT = "is not a COCO annotation file: "


def read_coco(path: str) -> dict | str:
    """The content of a COCO annotation file, or what is wrong with it as such.

    Every image and category is whole, and annotations have `id`, `image_id` and `category_id`.
    Without annotations, as of images to test on, there need be no categories.
    """
    if os.path.isdir(path) and (fault := _other_folder(path)):
        return fault
    if not os.path.isfile(path):
        return f"is no annotation file (seen from {os.getcwd()!r}): correct the path"
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except OSError as error:
        return f"cannot be read ({error.strerror}): correct its permissions, or copy it again"
    except RecursionError:
        return f"{_NOT}it is nested too deeply; export it as COCO again"
    except ValueError as error:  # of the encoding, of JSON, or of a number of thousands of digits
        return _other_text(path) or f"is not a JSON file ({error})"
    fault = _other_format(content, path) or _structure_fault(content)
    return f"{_NOT}{fault}" if fault else content


def _convert(kind: str, source: str) -> str:
    """How annotations of another format become COCO's."""
    tool = f"convert it by `python tools/data/convert.py --from {kind} {source} FILE.json`"
    return tool if kind in FORMATS else OTHERS[kind]


def _other_folder(path: str) -> str:
    """What a folder is that was given for a file, where it can be told."""
    for name in sorted(os.listdir(path)):
        if name.endswith(".xml") and _root(os.path.join(path, name)) == "annotation":
            return f"is a folder of Pascal VOC's xml: {_convert('voc', path)}"
        if name.endswith(".txt"):
            return f"is a folder of text, such as YOLO's labels: {_convert('yolo', 'data.yaml')}"
        if name.endswith(".json") and "LabelMe" in read_coco(os.path.join(path, name)):
            return f"is a folder of LabelMe's files: {_convert('labelme', path)}"
    return ""


def _other_text(path: str) -> str:
    """What a file is that is no JSON, where it can be told."""
    root, ending = _root(path), os.path.splitext(path)[1]
    for holds, what, kind, source in (
        (root == "annotations", "it is CVAT's xml", "cvat", path),
        (root == "annotation", "it is Pascal VOC's xml", "voc", os.path.dirname(path) or "."),
        (ending in (".yaml", ".yml"), "it may be YOLO's", "yolo", path),
        (ending == ".txt", "it may be YOLO's labels of one image", "yolo", "data.yaml"),
    ):
        if holds:
            return f"{_NOT}{what}: {_convert(kind, source)}"
    return ""


def _root(path: str) -> str:
    """The name of an xml file's root."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            root = re.search(r"<(\w+)", file.read(4096))
    except OSError:
        return ""
    return root[1] if root else ""


def _other_format(content: Any, path: str) -> str:
    """What a file is that is not COCO, where it can be told."""
    if not isinstance(content, dict):
        of = type(content).__name__
        if of == "list" and content and isinstance(content[0], dict) and "score" in content[0]:
            of = "list of detections"
        return f"it is a {of}, and an object with images, annotations and categories is needed"
    if "shapes" in content and "imagePath" in content:
        return f"it is a LabelMe file, of one image: {_convert('labelme', path)}"
    projects = content.get("_via_img_metadata", content)
    entries = projects.values() if isinstance(projects, dict) else ()
    if any(isinstance(one, dict) and {"filename", "regions"} <= one.keys() for one in entries):
        return f"it is a VIA (VGG Image Annotator) file: {_convert('via', path)}"
    own = "it is in OpenMMLab's own format, with data_list: export it as COCO (instances)"
    return own if "data_list" in content else ""


def _structure_fault(content: dict) -> str:
    only_images = content.get("images") and not content.get("annotations")  # to test on
    for key in _FIELDS:
        needed = key == "images" or (key == "categories" and not only_images)
        if not isinstance(content.get(key, None if needed else []), list):
            kind = "no" if key not in content else "no list of"
            return f"it has {kind} {key!r} (but {some(content)})"
    for key, fields in _FIELDS.items():
        for i, one in enumerate(content.get(key, [])):
            if not isinstance(one, dict):
                return f"{key}[{i}] is {one!r}, and an object is needed"
            if absent := [field for field in fields if field not in one]:
                return f"{key}[{i}] has no {' and no '.join(map(repr, absent))}"
            for field, kinds in fields.items():
                value = one[field]
                whole = kinds is int and isinstance(value, float) and value.is_integer()
                if not isinstance(value, kinds) and not whole:
                    wanted = "text" if kinds is str else "a whole number"
                    return f"{key}[{i}].{field} is {value!r}, and {wanted} is needed"
    return ""
