"""Annotations of a COCO file that stop mmdet, and those that mmdet leaves out.

mmdet leaves out annotations and images without a word (`CocoDataset.parse_data_info` and
`filter_data`, `LoadAnnotations._process_masks`); here the same conditions are counted.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator

from ..findings import Finding, Table, findings, number, some
from ..listings import CocoUse
from .coco_images import image_findings
from .coco_masks import are_finite, mask_fault


def examine(content: dict, use: CocoUse) -> Iterator[Finding]:
    """Find what stops mmdet and what it leaves out, without opening any image.

    Args:
        content: Of the file, from `read_coco`.
        use: What is asked of it.
    """
    yield from _ids(content, use)
    cases = annotation_cases(content, use)
    total = len(content.get("annotations", []))
    images = {image["id"]: image["file_name"] for image in content["images"]}
    table = dict(_ANNOTATIONS)
    for kind in _SCORED if use.evaluated else ():
        severity, what, effect, _ = table[kind]
        table[kind] = severity, what, f"{effect}; scores count them as objects all the same"
    names = {kind: [annotation_name(one, images) for one in cases[kind]] for kind in table}
    place = (use.where, use.ann_file, total, "annotation", ".ann_file")
    yield from findings(table, names, *place)
    yield from image_findings(content, use, cases)


def annotation_name(annotation: dict, images: dict) -> str:
    """`images`: file names by image id."""
    image = images.get(annotation["image_id"])
    return f"id {annotation['id']}" + (f" of {image!r}" if image else "")


def _ids(content: dict, use: CocoUse) -> Iterator[Finding]:
    """Ids that occur twice; pycocotools keeps the last of them, and mmdet stops on annotations'."""
    renumbered = "mmdet refuses them; tools/train.py and tools/test.py read a copy with other ids"
    for key, severity, effect in (
        ("images", "error", "all but one would be lost"),
        ("annotations", "note", renumbered),
        ("categories", "error", "all but one would be lost"),
    ):
        counts = Counter(one["id"] for one in content.get(key, []))
        twice = [str(one) for one, count in counts.items() if count > 1]
        if twice:
            text = (
                f"{use.where}.ann_file: {number(len(twice), 'id')} of {key} in {use.ann_file!r} "
                f"occur more than once, e.g. {some(twice)}: {effect}; give each an id of its own"
            )
            yield Finding(severity, f"{key}-id-twice", use.where, text, len(twice), tuple(twice))
    same = _repeated(content.get("annotations", []))
    if same:
        text = (
            f"{use.where}.ann_file: {number(len(same), 'annotation')} in {use.ann_file!r} are "
            f"there more than once with all they say, e.g. id {some(same)}: one object or several "
            "is not to be told; take the repetitions out"
        )
        yield Finding("error", "annotation-twice", use.where, text, len(same), tuple(same))


def _repeated(annotations: list[dict]) -> list[str]:
    """Ids of annotations that are there again with all that they say."""
    counts = Counter(one["id"] for one in annotations)
    suspects = Counter(
        (str(one["id"]), json.dumps(one, sort_keys=True, default=str))
        for one in annotations
        if counts[one["id"]] > 1
    )
    return [name for (name, _), count in suspects.items() if count > 1]


# What mmdet's data set leaves out, and the evaluator, which reads the file itself, does not.
_SCORED = ("ignored", "outside", "no-area", "short-polygons", "bad-rle")
_LEAVES = "mmdet leaves them out"
_BOX = "bbox is [x, y, width, height] in pixels, from the upper left corner"
_ANNOTATIONS: Table = {
    "incomplete": (
        "error", "have no bbox, or no area",
        "mmdet or pycocotools stops; write both (area is that of the mask, or width * height)",
    ),
    "bad-box": (
        "error", "have a bbox that is not four finite numbers, or an area that is none", _BOX,
    ),
    "no-mask": (
        "error", "have no segmentation, and masks are loaded or scored",
        "mmdet or pycocotools stops; take them out, or draw them, or use a box detector "
        "with LoadAnnotations(with_mask=False) and metric='bbox'",
    ),
    "unscorable-mask": (
        "error", "have a first polygon of fewer than three points, or an RLE without counts and "
        "size", "pycocotools stops when it scores them; draw them again, or take them out",
    ),
    "bad-crowd": (
        "error", "have an iscrowd that is neither 0 nor 1", "pycocotools takes any text for a 1; "
        "write iscrowd=0, or 1 for a region of many objects",
    ),
    "no-crowd": (
        "note", "have no iscrowd", "pycocotools stops without: tools/train.py and tools/test.py "
        "score a copy in which it is 0",
    ),
    "bad-polygon": (
        "error", "have a segmentation that is neither a list of polygons [[x1, y1, ...], ...] "
        "nor an RLE", "mmdet stops; correct them",
    ),
    "rle-size": (
        "error", "have an RLE of another size than their image's height and width",
        "it is no mask of that image; correct the RLE or the image's entry",
    ),
    "broken-rle": (
        "error", "have an RLE whose runs do not fill its size", "the mask would be what happens "
        "to be in memory, and scoring may never end; write them again "
        "(pycocotools.mask.encode)",
    ),
    "no-image": (
        "warning", "are of images that are not listed", f"{_LEAVES}; list the images, or take "
        "the annotations out", "of images that are not listed",
    ),
    "ignored": (
        "warning", "are marked ignore=1", f"{_LEAVES}; for a region of many objects write "
        "iscrowd=1 and an RLE", "marked ignore=1",
    ),
    "outside": (
        "warning", "have a box outside their image", f"{_LEAVES}; {_BOX}",
        "with a box outside the image",
    ),
    "no-area": (
        "warning", "have a box narrower than a pixel, or no area", f"{_LEAVES}; correct bbox and "
        "area, or take them out", "with a box narrower than a pixel, or no area",
    ),
    "other-class": (
        "warning", "are of categories that are not among the classes", f"{_LEAVES}; nothing to "
        "do if that is meant, else add the names to metainfo.classes", "of other classes",
    ),
    "short-polygons": (
        "warning", "have no polygon of three points or more", f"{_LEAVES}; draw them again",
        "with no polygon of three points",
    ),
    "bad-rle": (
        "warning", "have an RLE without counts and size", f"{_LEAVES}; write both",
        "with an RLE that lacks counts or size",
    ),
    "crowd": (
        "note", "are crowds (iscrowd=1)", "regions of many objects: training leaves them out, "
        "and in scores neither found nor missed counts", "marked iscrowd=1",
    ),
    "short-part": (
        "note", "have a polygon of fewer than three points among others", "mmdet leaves out "
        "these polygons and keeps the annotations",
    ),
}  # fmt: skip


def annotation_cases(content: dict, use: CocoUse) -> dict[str, list[dict]]:
    """The annotations of each kind of `_ANNOTATIONS`, and "kept": those that mmdet keeps.

    What mmdet leaves out can be of a second kind, an error: scoring reads it all the same.
    """
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    wanted = {one["id"] for one in content["categories"] if one["name"] in use.classes}
    listed = {one["id"] for one in content["categories"]}
    cases = defaultdict(list)
    for annotation in content.get("annotations", []):
        is_wanted = annotation["category_id"] in wanted
        is_scored = use.evaluated and is_wanted and annotation["image_id"] in sizes
        kind = _box_case(annotation, sizes, is_scored)
        if kind is None and not is_wanted:
            # unlisted ones are reported with the classes
            kind = "other-class" if annotation["category_id"] in listed else "unlisted"
        mask = None
        if (use.masks and kind is None) or (use.scores_masks and is_scored):
            mask = mask_fault(annotation, sizes[annotation["image_id"]], use.scores_masks)
        if mask is not None and (kind is None or _ANNOTATIONS[mask][0] == "error"):
            cases[mask].append(annotation)
        is_kept = kind is None and mask in (None, "short-part")
        if is_kept:
            cases["kept"].append(annotation)
        if kind is not None:
            cases[kind].append(annotation)
        crowd = annotation.get("iscrowd")
        if crowd is None:  # training takes it for 0
            if is_scored:
                cases["no-crowd"].append(annotation)
        elif (is_scored or is_kept) and crowd not in (0, 1):
            cases["bad-crowd"].append(annotation)
        elif is_kept and crowd:
            cases["crowd"].append(annotation)
    return cases


def _box_case(annotation: dict, sizes: dict, is_scored: bool) -> str | None:
    """mmdet's conditions, in its order; pycocotools reads the box in spite of ignore=1."""
    if annotation["image_id"] not in sizes:
        return "no-image"
    if annotation.get("ignore") and not is_scored:
        return "ignored"
    box, area = annotation.get("bbox"), annotation.get("area")
    if box is None or area is None:
        return "incomplete"
    is_box = isinstance(box, list) and len(box) == 4 and are_finite([*box, area])
    if not is_box:
        return "bad-box"
    if annotation.get("ignore"):
        return "ignored"
    x, y, width, height = box
    image_width, image_height = sizes[annotation["image_id"]]
    inner_width = max(0, min(x + width, image_width) - max(x, 0))
    inner_height = max(0, min(y + height, image_height) - max(y, 0))
    if width < 1 or height < 1 or area <= 0:
        return "no-area"
    return None if inner_width * inner_height else "outside"
