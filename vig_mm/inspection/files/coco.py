"""Reading of a COCO annotation file, and what is wrong with it as such."""

import json
import os
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
        return f"is not a JSON file ({error})"
    fault = _other_format(content) or _structure_fault(content)
    return f"is not a COCO annotation file: {fault}" if fault else content


def _other_format(content: Any) -> str:
    """What a file is that is not COCO, where it can be told."""
    convert = "export it as COCO (instances), or convert it"
    if isinstance(content, list):
        is_results = content and isinstance(content[0], dict) and "score" in content[0]
        what = "it is a list of detections" if is_results else "it is a list"
        return f"{what}, and an object with images, annotations and categories is needed"
    if not isinstance(content, dict):
        return f"it is a {type(content).__name__}, and an object is needed"
    if "shapes" in content and "imagePath" in content:
        return f"it is a LabelMe file, of one image: {convert}"
    projects = content.get("_via_img_metadata", content)
    if isinstance(projects, dict) and any(
        isinstance(one, dict) and {"filename", "regions"} <= one.keys() for one in projects.values()
    ):
        return f"it is a VIA (VGG Image Annotator) file: {convert}"
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
