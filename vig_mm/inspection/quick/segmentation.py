"""Quick check of a segmentation data set: images, and label maps of the same names."""

import os

from ..files.images import FAULTS, FIX
from ..files.label_maps import label_facts, stray_values
from ..findings import some
from ..listings import SegListing
from ..paths import IMAGES, files, hint
from .options import classes_of, image_loader, option, transform
from .report import Report


def check(found: Report, where: str, dataset: dict, kind: type, root: str) -> None:
    """Check images and label maps against each other and the classes.

    Args:
        found: Takes the findings.
        where: Key of the data set in its config.
        dataset: Its config.
        kind: Its class.
        root: Its `data_root`.
    """
    classes = classes_of(dataset, kind)
    _check_classes(found, where, dataset, kind, classes)
    prefix = dataset.get("data_prefix") or {}
    images = os.path.join(root, prefix.get("img_path") or "")
    if not os.path.isdir(images):
        found.missing(where, "data_prefix.img_path", images, "image folder")
        return
    suffix = option(dataset, kind, "img_suffix")
    names = _names(found, where, dataset, images, suffix, root)
    if names is None or not prefix.get("seg_map_path"):
        return
    labels = os.path.join(root, prefix["seg_map_path"])
    if not os.path.isdir(labels):
        found.missing(where, "data_prefix.seg_map_path", labels, "label folder")
        return

    seg_suffix = option(dataset, kind, "seg_map_suffix")
    there = set(files(labels, (seg_suffix,)))
    gone = [name + seg_suffix for name in names if name + seg_suffix not in there]
    if gone:
        found.error(
            where,
            "no-label",
            f"{where}.data_prefix.seg_map_path: {len(gone)} of {len(names)} images have no "
            f"label map in {labels!r}, e.g. {gone[0]!r}{hint(labels)}",
            gone,
        )
    if not dataset.get("ann_file"):
        alone = there.difference(name + seg_suffix for name in names)
        found.not_taken(where, labels, sorted(alone), "belong to no image")
    if classes:
        pairs = sorted(name for name in names if name + seg_suffix in there)
        backend = transform(dataset.get("pipeline"), "LoadAnnotations").get("imdecode_backend")
        listing = SegListing(
            where,
            images,
            tuple(name + suffix for name in pairs),
            *image_loader(dataset),
            label_folder=labels,
            labels=tuple(name + seg_suffix for name in pairs),
            label_backend=backend or "pillow",
            classes=tuple(kind.METAINFO.get("classes") or classes),
            reduce_zero_label=bool(option(dataset, kind, "reduce_zero_label")),
        )
        found.listings.append(listing)
        if not gone:
            _check_labels(found, listing)


def _check_classes(
    found: Report, where: str, dataset: dict, kind: type, classes: tuple[str, ...]
) -> None:
    if not classes:
        found.error(
            where,
            "no-classes",
            f"{where}: {kind.__name__} has no classes of its own: name them in metainfo=dict("
            "classes=(...), palette=[...]), in the order of the labels",
        )
        return
    found.classes[where] = classes
    own = kind.METAINFO.get("classes")
    foreign = [name for name in classes if own and name not in own]
    if foreign:
        found.error(
            where,
            "absent-class",
            f"{where}.metainfo.classes: {kind.__name__} has no {some(foreign)}: for other "
            "data use type='BaseSegDataset'",
            foreign,
        )
    palette = (dataset.get("metainfo") or {}).get("palette")
    if palette is not None and not own and len(palette) != len(classes):
        found.error(
            where,
            "palette",
            f"{where}.metainfo.palette has {len(palette)} colours for {len(classes)} classes: "
            "give one (R, G, B) for each class",
        )


def _names(
    found: Report, where: str, dataset: dict, images: str, suffix: str, root: str
) -> list[str] | None:
    """Names of the images without their suffix, or None after noting the problem."""
    ann_file = dataset.get("ann_file")
    if ann_file:
        path = os.path.join(root, ann_file)
        names = [line.strip() for line in found.lines_of(where, path)]
        if not names:
            return None
        if "" in names:
            found.error(
                where,
                "list",
                f"{where}.ann_file: line {names.index('') + 1} of {path!r} is empty: delete it, "
                f"for mmseg takes it for an image {suffix!r}",
            )
            return None
        if found.absent(where, "ann_file", [name + suffix for name in names], path, images):
            return None
    else:
        names = [name.removesuffix(suffix) for name in files(images, (suffix,))]
        if names:
            other = [n for n in files(images, IMAGES, any_case=True) if not n.endswith(suffix)]
            found.not_taken(where, images, sorted(other), f"do not end in {suffix!r}")
    if not names:
        found.error(
            where,
            "no-images",
            f"{where}.data_prefix.img_path: no {suffix} image in {images!r}{hint(images)}",
        )
        return None
    return names


def _check_labels(found: Report, listing: SegListing) -> None:
    """See that some label maps hold nothing but what the classes stand for."""
    if not found.label_maps:
        return
    step = -(-len(listing.labels) // found.label_maps)
    for name in listing.labels[::step]:
        problem = label_problem(os.path.join(listing.label_folder, name), listing)
        if problem:
            found.error(listing.where, "label", f"{listing.where}: {problem}", [name])
            return


def label_problem(path: str, listing: SegListing) -> str:
    """What is wrong with a label map, in words; "" if nothing is."""
    facts = label_facts(path, listing.label_backend)
    if facts.fault:
        why = facts.detail if facts.fault == "unreadable" else f"it {FAULTS[facts.fault]}"
        return f"label map {path!r} cannot be read: {why}; {FIX}"
    if facts.channels != 1:
        return (
            f"{path!r} is a picture of {facts.channels} colour channels, but a "
            "label map has one, whose values number the classes"
        )
    count, reduced = len(listing.classes), listing.reduce_zero_label
    stray = stray_values(facts, count, reduced)
    if not stray:
        return ""
    return (
        f"{path!r} holds the values {some(stray)}, but with reduce_zero_label={reduced} its "
        f"{count} classes are {int(reduced)} to {count - 1 + int(reduced)} "
        f"({'0 and ' if reduced else ''}255: no label): correct metainfo.classes, "
        "reduce_zero_label or the label maps"
    )
