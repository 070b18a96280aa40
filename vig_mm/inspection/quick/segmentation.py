"""Quick check of a segmentation data set: images, and label maps of the same names."""

import inspect
import os

from ..files.images import FAULTS, FIX
from ..files.label_maps import LabelFacts, label_facts, stray_values
from ..findings import Finding, some
from ..label_causes import cause, two_values
from ..labels import Ignored, LabelUse
from ..listings import SegListing
from ..paths import IMAGES, files, hint
from .options import (
    has_own_transform,
    image_loader,
    label_mapping,
    option,
    transform,
)
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
    classes = found.classes.get(where, ())
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
        use = _use(found, where, dataset, kind, classes)
        if use is None:
            return
        listing = SegListing(
            where,
            images,
            tuple(name + suffix for name in pairs),
            *image_loader(dataset),
            label_folder=labels,
            labels=tuple(name + seg_suffix for name in pairs),
            label_backend=backend or "pillow",
            classes=tuple(kind.METAINFO.get("classes") or classes),
            use=use,
        )
        found.listings.append(listing)
        if not gone:
            _check_labels(found, listing)


def _check_classes(
    found: Report, where: str, dataset: dict, kind: type, classes: tuple[str, ...]
) -> None:
    if not classes:
        if not any(found.cfg.get(f"{split}_evaluator") for split in ("val", "test")):
            return  # mmseg asks for them when it scores
        found.error(
            where,
            "no-classes",
            f"{where}: {kind.__name__} has no classes of its own: name them in metainfo=dict("
            "classes=(...), palette=[...]), in the order of the labels",
        )
        return
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
    path = os.path.join(root, ann_file or "")
    if ann_file and not os.path.isdir(path):  # for a folder mmseg lists the images
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


def _use(
    found: Report, where: str, dataset: dict, kind: type, classes: tuple[str, ...]
) -> LabelUse | None:
    """How label maps are loaded, or None after noting that a mapping is none."""
    split = where.partition("_")[0]
    loader = found.cfg[f"{split}_dataloader"]["dataset"]  # wrappers may have a pipeline, too
    load = transform(dataset.get("pipeline"), "LoadAnnotations")
    is_mmseg = "ignore_index" in _options_of(kind)
    try:
        mapping, others = label_mapping(dataset)
        if mapping is None:
            mapping, others = label_mapping(loader)
    except ValueError as error:
        found.error(where, "mapping", f"{where}.pipeline: {error}")
        return None
    ignored, tolerated = Ignored.of(found.cfg, split, dataset).numbers(split == "train")
    own = kind.METAINFO.get("classes") or ()
    is_part = is_mmseg and set(classes) <= set(own)
    return LabelUse(
        num_classes=len(classes),
        reduce_zero_label=bool(
            option(dataset, kind, "reduce_zero_label") or load.get("reduce_zero_label")
        ),
        label_map=kind.get_label_map(classes) if is_part else None,
        mapping=mapping,
        others=others,
        ignored=ignored,
        tolerated=tolerated,
        undecided=not is_mmseg or has_own_transform(loader, found.cfg.get("default_scope")),
    )


def _options_of(kind: type) -> set[str]:
    """Names of the options of a data set's class."""
    return set(inspect.signature(kind.__init__).parameters).union(
        *(inspect.signature(base.__init__).parameters for base in kind.__mro__[:-1])
    )


def _check_labels(found: Report, listing: SegListing) -> None:
    """See that some label maps hold nothing but what the classes stand for."""
    if not found.label_maps:
        return
    step = -(-len(listing.labels) // found.label_maps)
    values: set = set()
    strays: dict[str, LabelFacts] = {}
    for name in listing.labels[::step]:
        path = os.path.join(listing.label_folder, name)
        facts = label_facts(path, listing.label_backend)
        values.update(facts.values)
        if facts.fault:
            why = facts.detail if facts.fault == "unreadable" else f"it {FAULTS[facts.fault]}"
            text = f"label map {path!r} cannot be read: {why}; {FIX}"
            found.error(listing.where, "label", f"{listing.where}: {text}", [name])
            return
        if stray_values(facts, listing.use) or facts.channels == 2:
            strays[name] = facts
    if strays:
        _note_strays(found, listing, strays, values)
    elif "" != (text := two_values(values, listing.use, found.classes[listing.where])):
        text = f"{listing.where}: label maps in {listing.label_folder!r}: {text}"
        found.findings.append(Finding("warning", "two-values", listing.where, text))


def _note_strays(
    found: Report, listing: SegListing, strays: dict[str, LabelFacts], values: set
) -> None:
    """Note label maps with values of no class: an error, or a warning where it is not certain."""
    use = listing.use
    certain = [
        name
        for name, facts in strays.items()
        if not use.undecided
        and not all(use.is_tolerated(value) for value in stray_values(facts, use))
    ]
    name = next(iter(certain or strays))
    path = os.path.join(listing.label_folder, name)
    text = f"{listing.where}: {_stray_text(path, strays[name], listing)}; {cause(values, use)}"
    if certain:
        found.error(listing.where, "label", text, [name])
        return
    if use.undecided:
        text += " (nothing to do if a transform of the pipeline, which is not known here, does it)"
    found.findings.append(Finding("warning", "label", listing.where, text, len(strays), (name,)))


def _stray_text(path: str, facts: LabelFacts, listing: SegListing) -> str:
    """Which values of a label map stand for no class, in words."""
    use, stray = listing.use, stray_values(facts, listing.use)
    if facts.channels != 1 and use.mapping is None:
        return (
            f"{path!r} is a picture of {facts.channels} colour channels, but a "
            "label map has one, whose values number the classes"
        )
    if all(use.is_tolerated(value) for value in stray):
        return (
            f"{path!r} holds the values {some(stray)}, which a part of the config ignores and "
            "another does not: set the same ignore_index in data sets, heads and evaluators"
        )
    count, first = len(listing.classes), int(use.reduce_zero_label)
    ignored = sorted(use.ignored | ({0} if first else set()))
    mapped = " (before MapLabels)" if use.mapping is not None else ""
    return (
        f"{path!r} holds the values {some(stray)}, but with reduce_zero_label={bool(first)} its "
        f"{count} classes are {first} to {count - 1 + first}{mapped} "
        f"({' and '.join(map(str, ignored))}: no label): correct metainfo.classes, "
        "reduce_zero_label or the label maps"
    )
