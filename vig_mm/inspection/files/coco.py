"""Reading of a COCO annotation file, and what is wrong with it as such."""

import json
import os
import re
from typing import Any

from ..findings import some

_ID = (int, str)
_FIELDS = {
    "images": {"id": _ID, "file_name": str, "height": int, "width": int},
    "categories": {"id": _ID, "name": str},
    "annotations": {"id": _ID, "image_id": _ID, "category_id": _ID},
}


def read_coco(path: str) -> dict | str:
    """The content of a COCO annotation file, or what is wrong with it as such.

    Every image and category is whole, and annotations have `id`, `image_id` and `category_id`.
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
        return "is not a COCO annotation file: it is nested too deeply; export it as COCO again"
    except ValueError as error:  # of the encoding, of JSON, or of a number of thousands of digits
        return _other_text(path) or f"is not a JSON file ({error})"
    fault = _other_format(content, path) or _structure_fault(content)
    return f"is not a COCO annotation file: {fault}" if fault else content


def _convert(kind: str, source: str) -> str:
    """The command that converts annotations of another format."""
    return f"convert it by `python tools/data/convert.py --from {kind} {source} FILE.json`"


def _other_folder(path: str) -> str:
    """What a folder is that was given for a file, where it can be told."""
    names = sorted(os.listdir(path))
    xml = next((name for name in names if name.endswith(".xml")), None)
    if xml and _begins(os.path.join(path, xml), "<annotation>"):
        return f"is a folder of Pascal VOC's xml: {_convert('voc', path)}"
    if any(name.endswith(".txt") for name in names):
        return f"is a folder of text, such as YOLO's labels: {_convert('yolo', 'data.yaml')}"
    for name in names:
        if name.endswith(".json"):
            content = read_coco(os.path.join(path, name))
            if isinstance(content, str) and "LabelMe" in content:
                return f"is a folder of LabelMe's files: {_convert('labelme', path)}"
            break
    return ""


def _other_text(path: str) -> str:
    """What a file is that is no JSON, where it can be told."""
    if _begins(path, "<annotations>"):
        return f"is not a COCO annotation file: it is CVAT's xml: {_convert('cvat', path)}"
    if _begins(path, "<annotation>"):
        folder = os.path.dirname(path) or "."
        return (
            "is not a COCO annotation file: it is Pascal VOC's xml, of one image: "
            f"{_convert('voc', folder)}"
        )
    if path.endswith((".yaml", ".yml")):
        return f"is not a COCO annotation file: it may be YOLO's: {_convert('yolo', path)}"
    if path.endswith(".txt"):
        return (
            "is not a COCO annotation file: it may be YOLO's labels of one image: "
            f"{_convert('yolo', 'data.yaml')}"
        )
    return ""


def _begins(path: str, tag: str) -> bool:
    """Whether an xml file has this root."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            root = re.search(r"<(\w+)", file.read(4096))
    except OSError:
        return False
    return root is not None and f"<{root[1]}>" == tag


def _other_format(content: Any, path: str) -> str:
    """What a file is that is not COCO, where it can be told."""
    convert = "export it as COCO (instances), or convert it"
    if isinstance(content, list):
        is_results = content and isinstance(content[0], dict) and "score" in content[0]
        what = "it is a list of detections" if is_results else "it is a list"
        return f"{what}, and an object with images, annotations and categories is needed"
    if not isinstance(content, dict):
        return f"it is a {type(content).__name__}, and an object is needed"
    if "shapes" in content and "imagePath" in content:
        folder = os.path.dirname(path) or "."
        return f"it is a LabelMe file, of one image: {_convert('labelme', folder)}"
    projects = content.get("_via_img_metadata", content)
    if isinstance(projects, dict) and any(
        isinstance(one, dict) and {"filename", "regions"} <= one.keys() for one in projects.values()
    ):
        images = " --images FOLDER"
        return f"it is a VIA (VGG Image Annotator) file: {_convert('via', path)[:-1]}{images}`"
    if "data_list" in content:
        return f"it is in OpenMMLab's own format, with data_list: {convert}"
    return ""


def _structure_fault(content: dict) -> str:
    for key in ("images", "categories"):
        if not isinstance(content.get(key), list):
            kind = "no" if key not in content else "no list of"
            return f"it has {kind} {key!r} (but {some(content)})"
    if not isinstance(content.get("annotations", []), list):
        return "its 'annotations' are no list"
    for key, fields in _FIELDS.items():
        for i, one in enumerate(content.get(key, [])):
            if not isinstance(one, dict):
                return f"{key}[{i}] is {one!r}, and an object is needed"
            absent = [field for field in fields if field not in one]
            if absent:
                return f"{key}[{i}] has no {' and no '.join(map(repr, absent))}"
            for field, kinds in fields.items():
                if not isinstance(one[field], kinds):
                    wanted = "text" if kinds is str else "a whole number"
                    return f"{key}[{i}].{field} is {one[field]!r}, and {wanted} is needed"
    return ""
