"""Images of a COCO annotation file that mmdet leaves out or learns nothing from."""

import os
from collections import Counter
from collections.abc import Iterator

from ..findings import Finding, Table, findings, number, some
from ..listings import CocoUse

_BACKGROUND = "count as images in which nothing is there"


def image_findings(content: dict, use: CocoUse, cases: dict[str, list[dict]]) -> Iterator[Finding]:
    """Images without anything to learn from, small ones, and those that are listed twice.

    Args:
        content: Of the file, from `read_coco`.
        use: What is asked of it.
        cases: From `annotation_cases`.
    """
    wanted = {one["id"] for one in content["categories"] if one["name"] in use.classes}
    annotations = content.get("annotations", [])
    # mmdet looks at what is left out for other reasons as well
    annotated = {one["image_id"] for one in annotations if one["category_id"] in wanted}
    kept = {one["image_id"] for one in cases["kept"]}
    names = [os.path.normpath(image["file_name"]) for image in content["images"]]
    empty, small, bare, remaining = [], [], [], 0
    for image in content["images"]:
        is_empty = image["id"] not in annotated
        is_small = min(image["height"], image["width"]) < use.min_size
        if is_empty:
            empty.append(image["file_name"])
        elif image["id"] not in kept:
            bare.append(image["file_name"])
        if is_small:
            small.append(image["file_name"])
        remaining += not (is_small or (is_empty and use.filter_empty))
    twice = [name for name, count in Counter(names).items() if count > 1]
    total = number(len(content["images"]), "image")
    # without one of the classes in the file, that is the error
    if names and wanted and not remaining:
        yield _none_left(use, total, empty if use.filter_empty else [], small)
    if twice:
        text = (
            f"{use.where}.ann_file: {number(len(twice), 'file_name')} of {total} in "
            f"{use.ann_file!r} occur more than once, e.g. {some(twice, 3)}: each entry is an image "
            "of its own, in which the objects of the others count as background; give all "
            "annotations of a picture one image_id"
        )
        yield Finding("warning", "file-name-twice", use.where, text, len(twice), tuple(twice))
    found = {"no-annotation": empty, "nothing-left": bare, "min-size": small}
    place = (use.where, use.ann_file, len(content["images"]), "image", ".ann_file")
    yield from findings(_table(use), found, *place)


def _table(use: CocoUse) -> Table:
    empty = ("note", "have no annotation of the classes", f"they {_BACKGROUND}")
    if use.filter_empty:
        empty = (
            "warning", empty[1], "mmdet leaves them out (filter_cfg.filter_empty_gt); set it to "
            "False to learn from them that nothing is there", "without annotations of the classes",
        )  # fmt: skip
    return {
        "no-annotation": empty,
        "nothing-left": (
            "warning", "have annotations, but none that mmdet keeps", f"they {_BACKGROUND}",
        ),
        "min-size": (
            "warning", f"have a side of fewer than {use.min_size} pixels",
            "mmdet leaves them out (filter_cfg.min_size)",
            f"with a side below {use.min_size} pixels",
        ),
    }  # fmt: skip


def _none_left(use: CocoUse, total: str, empty: list[str], small: list[str]) -> Finding:
    """On a data set of no image mmengine stops with a message of numpy's."""
    reasons = []
    if empty:
        what = "have no annotation of the classes (filter_cfg.filter_empty_gt)"
        reasons.append(f"{len(empty)} {what}")
    if small:
        what = f"have a side of fewer than {use.min_size} pixels (filter_cfg.min_size)"
        reasons.append(f"{len(small)} {what}")
    names = tuple(dict.fromkeys([*empty, *small]))
    text = (
        f"{use.where}.ann_file: mmdet leaves out all of {total} in {use.ann_file!r}, and nothing "
        f"is left: {', '.join(reasons)}; annotate them, or correct metainfo.classes or filter_cfg"
    )
    return Finding("error", "no-image-left", use.where, text, len(names), names)
