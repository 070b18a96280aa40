"""Check of a segmentation data set: images, and label maps of the same names."""

import inspect
import io
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from PIL import UnidentifiedImageError

from vig_mm.datasets.transforms.map_labels import pack, unpack
from vig_mm.registry import type_name

from .findings import IMAGES, Finding, Table, files, finding, findings, hint, some
from .images import FIX, ImageFacts, fault_of, file_fault, open_image
from .labels import NO_LABEL, LabelUse, Value, cause, ignored_numbers, two_values
from .options import Listing, has_own_transform, image_loader, label_mapping, option, transform
from .report import Report

# Smallest value that mmseg, which casts label maps to 8 bits, takes for another.
TOO_LARGE = 256
_PADS = ("seg_pad_val", "seg_fill_in", "seg")  # `seg` of Pad's pad_val
_PADDING = ("SegDataPreProcessor", "RandomRotate", "RandomMosaic")
_TABLE: Table = {
    "label-unreadable": ("error", "cannot be read", FIX),
    "label-colour": (
        "error", "are coloured pictures", "a label map has one channel (grey or palette), whose "
        "values number the classes; convert colours to numbers, or map them by vig_mm.MapLabels, "
        "and load them with imdecode_backend='pillow'",
    ),
    "label-lossy": (
        "error", "are jpgs", "compression changes the numbers; write them as png",
    ),
    "label-16-bit": (
        "error", f"hold values of {TOO_LARGE} and more", "mmseg cuts them to 8 bits, and they "
        "count as other classes; renumber them",
    ),
    "label-range": (
        "error", "hold values that no class has", "training stops, on a GPU with a device-side "
        "assert; correct metainfo.classes, reduce_zero_label or the label maps",
    ),
    "label-undecided": (
        "warning", "hold values that no class has", "nothing to do if a transform of yours maps "
        "them; where one part of the config ignores them and another does not, set the same "
        "ignore_index in data sets, heads and evaluators",
    ),
    "label-size": (
        "error", "are of another size than their image", "training stops, or the labels are "
        "shifted; write them in the image's size (one whose EXIF orientation the loader follows "
        "has the turned size)",
    ),
    "label-empty": (
        "warning", "hold nothing but 'no label'", "nothing is learned of their images; take them "
        "out, or see whether the numbers and reduce_zero_label are right",
    ),
    "label-palette": (
        "note", "have a palette", "the numbers count, not the colours; nothing to do",
    ),
}  # fmt: skip
_BEFORE = ("label-unreadable", "label-colour", "label-16-bit", "label-range", "label-undecided",
           "two-values")  # fmt: skip
_STRAY = ("label-colour", "label-16-bit", "label-range", "label-undecided")


@dataclass(frozen=True)
class LabelFacts:
    """What `label_facts` finds out of one file."""

    path: str
    fault: str | None = None  # a key of `images.FAULTS`
    detail: str = ""  # the decoder's words for the fault
    format: str = ""  # PIL's name ("PNG")
    mode: str = ""  # PIL's name of the channels ("L"; "P" with a palette; "I;16" for 16 bits)
    size: tuple[int, int] = (0, 0)  # (height, width) in pixels
    channels: int = 1  # that the data loader gets
    values: tuple[Value, ...] = ()  # all in the file, ascending; (r, g, b) of a map with channels

    def stray(self, use: LabelUse) -> list[Value]:
        """The values that stand neither for a class nor for no label."""
        return [value for value in self.values if not use.is_known(value)]


def label_facts(path: str, backend: str = "pillow") -> LabelFacts:
    """Read a label map as mmseg does; "cv2" turns a palette into colours."""
    import mmcv

    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        return LabelFacts(path, fault_of(error), str(error))
    if fault := file_fault(path):
        return LabelFacts(path, fault)
    try:
        with open_image(io.BytesIO(content)) as image:
            facts = dict(format=image.format, mode=image.mode, size=image.size[::-1])
        labels = mmcv.imfrombytes(content, "unchanged", backend=backend)
        if labels is None:
            raise ValueError(f"{backend} cannot decode it")
    except Exception as error:  # each decoder has its own
        is_image = not isinstance(error, UnidentifiedImageError)
        fault = "unreadable" if is_image else "not-an-image"
        return LabelFacts(path, fault, " ".join(str(error).split()))
    channels = labels.shape[2] if labels.ndim == 3 else 1
    if channels == 1:
        return LabelFacts(path, values=tuple(np.unique(labels).tolist()), **facts)
    colours = tuple(unpack(np.unique(pack(labels)))) if channels in (3, 4) else ()
    return LabelFacts(path, channels=channels, values=colours, **facts)


def check(found: Report, where: str, dataset: dict, kind: type, root: str) -> None:
    """Check images and label maps against each other and the classes; `kind`: the set's class."""
    classes = found.classes.get(where, ())
    _check_classes(found, where, dataset, kind, classes)
    prefix = dataset.get("data_prefix") or {}
    images = os.path.join(root, prefix.get("img_path") or "")
    if not os.path.isdir(images):
        found.missing(where, "data_prefix.img_path", images, "image folder")
        return
    suffix = option(dataset, kind, "img_suffix")
    names = _names(found, where, dataset, images, suffix, root)
    if not names or not prefix.get("seg_map_path"):
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
    use = _use(found, where, dataset, kind, classes) if classes else None
    if use is None:
        return
    pairs = sorted(name for name in names if name + seg_suffix in there)
    load = transform(dataset.get("pipeline"), "LoadAnnotations")
    listing = Listing(
        where,
        images,
        tuple(name + suffix for name in pairs),
        *image_loader(dataset),
        use,
        tuple(kind.METAINFO.get("classes") or classes),
        label_folder=labels,
        labels=tuple(name + seg_suffix for name in pairs),
        label_backend=load.get("imdecode_backend") or "pillow",
    )
    found.listings.append(listing)
    if where.startswith("train"):
        _check_padding(found, where, dataset, use)
    if not gone and found.sample:
        some_of = listing.labels[:: -(-len(pairs) // found.sample)]
        judged, _ = _judge(listing, some_of, lambda _, function, items: map(function, items))
        found.findings += [one for one in judged if one.kind in _BEFORE]


def _check_classes(
    found: Report, where: str, dataset: dict, kind: type, classes: tuple[str, ...]
) -> None:
    own = kind.METAINFO.get("classes")
    if not classes:
        if any(found.cfg.get(f"{split}_evaluator") for split in ("val", "test")):
            # mmseg asks for them when it scores
            text = (
                f"{where}: {kind.__name__} has no classes of its own: name them in metainfo=dict("
                "classes=(...), palette=[...]), in the order of the labels"
            )
            found.error(where, "no-classes", text)
        return
    if foreign := [name for name in classes if own and name not in own]:
        text = (
            f"{where}.metainfo.classes: {kind.__name__} has no {some(foreign)}: for other "
            "data use type='BaseSegDataset'"
        )
        found.error(where, "absent-class", text, foreign)
    palette = (dataset.get("metainfo") or {}).get("palette")
    if palette is not None and not own and len(palette) != len(classes):
        text = (
            f"{where}.metainfo.palette has {len(palette)} colours for {len(classes)} classes: "
            "give one (R, G, B) for each class"
        )
        found.error(where, "palette", text)


def _names(
    found: Report, where: str, dataset: dict, images: str, suffix: str, root: str
) -> list[str]:
    """Names of the images without their suffix; none after noting the problem."""
    ann_file = dataset.get("ann_file")
    path = os.path.join(root, ann_file or "")
    if ann_file and not os.path.isdir(path):  # for a folder mmseg lists the images
        names = [line.strip() for line in found.lines_of(where, path)]
        if "" in names:
            found.error(
                where,
                "list",
                f"{where}.ann_file: line {names.index('') + 1} of {path!r} is empty: delete it, "
                f"for mmseg takes it for an image {suffix!r}",
            )
            return []
        gone = found.absent(where, "ann_file", [x + suffix for x in names], path, images)
        return [] if gone else names
    names = [name.removesuffix(suffix) for name in files(images, (suffix,))]
    if names:
        other = [n for n in files(images, IMAGES, any_case=True) if not n.endswith(suffix)]
        found.not_taken(where, images, sorted(other), f"do not end in {suffix!r}")
    else:
        found.error(
            where,
            "no-images",
            f"{where}.data_prefix.img_path: no {suffix} image in {images!r}{hint(images)}",
        )
    return names


def _use(
    found: Report, where: str, dataset: dict, kind: type, classes: tuple[str, ...]
) -> LabelUse | None:
    """How label maps are loaded, or None after noting that a mapping is none."""
    split = where.partition("_")[0]
    loader = found.cfg[f"{split}_dataloader"]["dataset"]  # wrappers may have a pipeline, too
    load = transform(dataset.get("pipeline"), "LoadAnnotations")
    options = set().union(*(inspect.signature(x.__init__).parameters for x in kind.__mro__[:-1]))
    is_mmseg = "ignore_index" in options
    try:
        mapping, others = label_mapping(dataset)
        if mapping is None:
            mapping, others = label_mapping(loader)
    except ValueError as error:
        found.error(where, "mapping", f"{where}.pipeline: {error}")
        return None
    ignored, tolerated = ignored_numbers(found.cfg, split, dataset)
    is_part = is_mmseg and set(classes) <= set(kind.METAINFO.get("classes") or ())
    reduced = option(dataset, kind, "reduce_zero_label") or load.get("reduce_zero_label")
    return LabelUse(
        num_classes=len(classes),
        reduce_zero_label=bool(reduced),
        label_map=kind.get_label_map(classes) if is_part else None,
        mapping=mapping,
        others=others,
        ignored=ignored,
        tolerated=tolerated,
        undecided=not is_mmseg or has_own_transform(loader, found.cfg.get("default_scope")),
    )


def _check_padding(found: Report, where: str, dataset: dict, use: LabelUse) -> None:
    """See that what label maps are filled up with is a class, or ignored by the loss."""
    parts = {f"{where}.pipeline": dataset.get("pipeline")}
    parts["model.data_preprocessor"] = (found.cfg.get("model") or {}).get("data_preprocessor")
    for key, part in parts.items():
        for name, value in _pads(part):
            last = use if "pipeline" in key else replace(use, mapping=None)
            plain = replace(last, reduce_zero_label=False, label_map=None)
            if not plain.is_known(value):
                # 255 stands in every recipe, also where nothing is ever filled up
                certain = value != NO_LABEL and not use.undecided
                note = found.error if certain else found.warning
                text = (
                    f"{key}: {name}={value} fills label maps up, and is neither one of the "
                    f"{use.num_classes} classes nor ignored by all heads "
                    f"({some(sorted(use.ignored))}): the loss stops at it; set {name} to an "
                    "ignored number, or ignore_index in data sets, heads and evaluators"
                )
                note(where, "seg-pad", text)


def _pads(entry: Any) -> Iterator[tuple[str, Any]]:
    """(option, number) of all that fills label maps up, at any depth."""
    if isinstance(entry, list | tuple):
        for one in entry:
            yield from _pads(one)
    elif isinstance(entry, dict):
        if type_name(entry) in _PADDING and "seg_pad_val" not in entry:
            yield "seg_pad_val", NO_LABEL  # their default
        for key, value in entry.items():
            if key in _PADS and isinstance(value, int | float):
                yield key, int(value)
            yield from _pads(value)


def survey(listing: Listing, images: Sequence[ImageFacts], run: Callable) -> list[Finding]:
    """What is wrong with the label maps of one data set, and which classes none of them has."""
    found, there = _judge(listing, listing.labels, run, images)
    # of a part of a data set's own classes the label maps have all
    whole = replace(listing.use, label_map=None, num_classes=len(listing.classes))
    numbers = {whole.loaded(value) for value in there}
    if unused := [name for i, name in enumerate(listing.classes) if i not in numbers]:
        training = listing.where.startswith("train")
        severity = "warning" if training else "note"
        text = (
            f"{listing.where}: {len(unused)} of the {len(listing.classes)} classes occur in no "
            f"label map of {listing.label_folder!r}: {some(unused)}: "
            + ("nothing is learned of them" if training else "the mean IoU leaves them out")
        )
        found.append(finding(severity, "unused-class", listing.where, text, unused))
    return found


def _judge(
    listing: Listing, names: Sequence[str], run: Callable, images: Sequence[ImageFacts] = ()
) -> tuple[list[Finding], set[Value]]:
    """What is wrong with some label maps, whose images may be known, and all values in them."""
    where, folder, use = listing.where, listing.label_folder, listing.use
    paths = [os.path.join(folder, name) for name in names]
    function = partial(label_facts, backend=listing.label_backend)
    cases = defaultdict(list)
    there: set[Value] = set()
    for i, facts in enumerate(run(f"labels of {where}", function, paths)):
        there.update(facts.values)
        for kind, detail in _kinds(listing, facts, images[i] if images else None):
            cases[kind].append(f"{names[i]}{detail}")
    found = list(findings(_TABLE, cases, where, folder, len(names), "label map"))
    if any(not use.is_known(value) for value in there):
        first = int(use.reduce_zero_label)
        ignored = sorted(use.ignored | ({0} if first else set()))
        why = (
            f"with reduce_zero_label={bool(first)} the {len(listing.classes)} classes are {first} "
            f"to {len(listing.classes) - 1 + first}{' (before MapLabels)' if use.mapping else ''} "
            f"({' and '.join(map(str, ignored))}: no label); {cause(there, use)}"
        )
        found = [
            replace(one, text=f"{one.text}; {why}") if one.kind in _STRAY else one for one in found
        ]
    elif trap := two_values(there, use, listing.classes):
        text = f"{where}: label maps in {folder!r}: {trap}"
        found.append(finding("warning", "two-values", where, text))
    return found, there


def _kinds(listing: Listing, facts: LabelFacts, image: ImageFacts | None) -> list[tuple[str, str]]:
    """(kind, what to add to the name)"""
    if facts.fault:
        return [("label-unreadable", f" ({facts.detail or facts.fault})")]
    kinds = [("label-lossy", "")] if facts.format == "JPEG" else []
    use, stray = listing.use, facts.stray(listing.use)
    if facts.channels != 1 and (stray or not facts.values):
        kind = "label-undecided" if use.undecided else "label-colour"
        return [*kinds, (kind, f" ({facts.mode})")]
    large = [value for value in facts.values if isinstance(value, int) and value >= TOO_LARGE]
    certain = not use.undecided and not all(map(use.is_tolerated, stray))
    if large and not use.undecided:
        kinds.append(("label-16-bit", f" ({some(large)})"))
    elif stray:
        kinds.append(("label-range" if certain else "label-undecided", f" ({some(stray)})"))
    if image and not image.fault and facts.size != image.loaded:
        of = f" ({facts.size[1]}x{facts.size[0]}, the image is {image.loaded[1]}x{image.loaded[0]})"
        kinds.append(("label-size", of))
    if not any(map(use.is_class, facts.values)) and not stray:
        kinds.append(("label-empty", ""))
    if facts.mode == "P":
        kinds.append(("label-palette", ""))
    return kinds
