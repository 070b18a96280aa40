"""Full check of COCO annotations against the images that they belong to."""

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

from ..files.coco_annotations import annotation_cases, annotation_name
from ..files.coco_shapes import shape_faults
from ..files.images import ImageFacts
from ..findings import Finding, Table, findings, some
from ..listings import CocoListing
from ..paths import IMAGES, files

_IMAGES: Table = {
    "turned-size": (
        "error", "are turned by the loader, as their EXIF orientation says, and annotated unturned",
        "take the EXIF orientation out of the files, or load them with "
        "LoadImageFromFile(color_type='color_ignore_orientation')",
    ),
    "size": (
        "error", "are of another size than the annotation file says", "boxes and masks do not "
        "fit them; use the pictures that were annotated, or correct height and width",
    ),
}  # fmt: skip
_SHAPES: Table = {
    "corner-box": (
        "error", "have the lower right corner of their mask for the width and height of bbox",
        "bbox is [x, y, width, height]",
    ),
    "no-mask-area": (
        "warning", "have polygons that enclose nothing", "mmdet keeps them with a mask of a few "
        "pixels or none; draw them again, or take them out",
    ),
    "box-mask": (
        "warning", "have a box and a mask that are apart", "both are learned as they are; correct "
        "one of them",
    ),
    "crossing": (
        "warning", "have a polygon that crosses itself", "what lies inside twice counts as "
        "outside; draw each part on its own where that is wrong",
    ),
    "beyond": (
        "note", "have a box that ends outside the image", "mmdet clips it",
    ),
}  # fmt: skip


def coco_findings(
    listing: CocoListing,
    images: Sequence[ImageFacts],
    run: Callable,
) -> list[Finding]:
    """What is wrong between pictures and annotations, or in the shapes of annotations."""
    content, use = listing.content, listing.use
    sizes = {one["id"]: (one["height"], one["width"]) for one in content["images"]}
    names = {one["id"]: one["file_name"] for one in content["images"]}
    cases = defaultdict(list)

    by_name = {name: sizes[key] for key, name in names.items()}
    for name, facts in zip(listing.names, images, strict=True):
        if not facts.fault and by_name[name] != facts.loaded:
            height, width = by_name[name]
            unturned = facts.sides_swapped and (width, height) == facts.loaded
            detail = f"{name} ({width}x{height} in the file, the picture is {_size(facts.loaded)})"
            cases["turned-size" if unturned else "size"].append(detail)
    total = len(listing.names)
    found = list(findings(_IMAGES, cases, use.where, listing.folder, total, "image"))

    kept = annotation_cases(content, use)["kept"]
    items = [(one, sizes[one["image_id"]]) for one in kept]
    stage = f"annotations of {use.where}"
    function = partial(_shape_faults, masks=use.masks)
    for annotation, faults in zip(kept, run(stage, function, items), strict=True):
        for fault in faults:
            cases[fault].append(annotation_name(annotation, names))
    found += findings(_SHAPES, cases, use.where, use.ann_file, len(kept), "annotation")
    return found + _classes(listing, kept) + _unlisted(listing, set(names.values()))


def _shape_faults(item: tuple[dict, tuple[int, int]], masks: bool) -> tuple[str, ...]:
    return shape_faults(*item, masks)


def _size(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"


def _classes(listing: CocoListing, kept: list[dict]) -> list[Finding]:
    """Classes that nothing is left of."""
    use = listing.use
    names = {one["id"]: one["name"] for one in listing.content["categories"]}
    there = {names[one["category_id"]] for one in kept}
    unused = [name for name in use.classes if name not in there]
    if not unused:
        return []
    text = (
        f"{use.where}: {len(unused)} of the {len(use.classes)} classes have no annotation in "
        f"{use.ann_file!r}: {some(unused)}: "
        + ("they have no score" if use.evaluated else "nothing is learned of them")
    )
    severity = "note" if use.evaluated else "warning"
    return [Finding(severity, "unused-class", use.where, text, len(unused), tuple(unused))]


def _unlisted(listing: CocoListing, names: set[str]) -> list[Finding]:
    """Pictures that the annotation file does not name."""
    there = files(listing.folder, IMAGES, any_case=True)
    listed = {os.path.normpath(name) for name in names}
    unlisted = sorted(name for name in there if name not in listed)
    if not unlisted:
        return []
    text = (
        f"{listing.where}: {len(unlisted)} pictures in {listing.folder!r} are not listed in "
        f"{listing.use.ann_file!r}, e.g. {some(unlisted, 3)}: they are not used"
    )
    count = len(unlisted)
    return [Finding("note", "unlisted-image", listing.where, text, count, tuple(unlisted))]
