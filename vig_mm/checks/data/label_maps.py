"""Check of a segmentation data set: images, and label maps of the same names."""

import inspect
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from vig_mm.datasets.files import IMAGES, files, some
from vig_mm.datasets.transforms.map_labels import Value, read_mapping
from vig_mm.registry import type_name

from ..config import transform, walk
from .images import FIX, ImageFacts, image_facts
from .labels import NO_LABEL, LabelUse, cause, ignored_numbers, two_values
from .options import Listing, has_own_transform, image_loader, option
from .report import Finding, Report, findings, hint, rules

# Smallest value that mmseg, which casts label maps to 8 bits, takes for another.
TOO_LARGE = 256
_PADS = ("seg_pad_val", "seg_fill_in", "seg")  # `seg` of Pad's pad_val
_PADDING = ("SegDataPreProcessor", "RandomRotate", "RandomMosaic")
_RULES = rules(f"""
error label_map label-unreadable | cannot be read | {FIX}
error label_map label-colour | are coloured pictures | a label map has one channel (grey or
    palette), whose values number the classes; convert colours to numbers, or map them by
    vig_mm.MapLabels, and load them with imdecode_backend='pillow'{{why}}
error label_map label-16-bit | hold values of {TOO_LARGE} and more | mmseg cuts them to 8 bits, and
    they count as other classes; renumber them{{why}}
error label_map label-range | hold values that no class has | training stops, on a GPU with a
    device-side assert; correct metainfo.classes, reduce_zero_label or the label maps{{why}}
warning label_map label-undecided | hold values that no class has | nothing to do if a transform of
    yours maps them; where one part of the config ignores them and another does not, set the same
    ignore_index in data sets, heads and evaluators{{why}}
warning label_map two-values | hold nothing but 0 and 255, and 255 is 'no label' | {{trap}}
error label_map label-lossy | are jpgs | compression changes the numbers; write them as png
error label_map label-size | are of another size than their image | training stops, or the labels
    are shifted; write them in the image's size (one whose EXIF orientation the loader follows has
    the turned size)
warning label_map label-empty | hold nothing but 'no label' | nothing is learned of their images;
    take them out, or see whether the numbers and reduce_zero_label are right
note label_map label-palette | have a palette | the numbers count, not the colours; nothing to do
warning class unused-class | occur in no label map | nothing is learned of them
note class unused-class/scored | occur in no label map | the mean IoU leaves them out
""")
_BEFORE = [*_RULES][:6]  # what a sample before a run is looked at for


def check(found: Report, where: str, dataset: dict, kind: type, root: str) -> None:
    """Check images and label maps against each other and the classes; `kind`: the set's class."""
    classes = found.classes.get(where, ())
    _check_classes(found, where, dataset, kind, classes)
    prefix = dataset.get("data_prefix") or {}
    images = os.path.join(root, prefix.get("img_path") or "")
    labels = os.path.join(root, prefix.get("seg_map_path") or "")
    suffix, seg_suffix = (option(dataset, kind, x) for x in ("img_suffix", "seg_map_suffix"))
    if not found.has_folder(f"{where}.data_prefix.img_path", images, "image folder"):
        return
    names, key = _names(found, where, dataset, images, suffix, root), f"{where}.data_prefix"
    if not names or not prefix.get("seg_map_path"):
        return
    if not found.has_folder(f"{key}.seg_map_path", labels, "label folder"):
        return
    there = set(files(labels, (seg_suffix,)))
    wanted = {name + seg_suffix: name for name in names}
    if gone := [name for name in wanted if name not in there]:
        text = f"{len(gone)} of {len(names)} images have no label map in {labels!r}, e.g. "
        text += f"{gone[0]!r}{hint(labels)}"
        found.add(f"{key}.seg_map_path", "no-label", text, gone)
    if not dataset.get("ann_file"):
        found.not_taken(where, labels, sorted(there - wanted.keys()), "belong to no image")
    use = _use(found, where, dataset, kind, classes) if classes else None
    if use is None:
        return
    pairs = sorted(name for label, name in wanted.items() if label in there)
    listing = Listing(
        where,
        images,
        tuple(name + suffix for name in pairs),
        *image_loader(dataset.get("pipeline")),
        use,
        tuple(kind.METAINFO.get("classes") or classes),
        label_folder=labels,
        labels=tuple(name + seg_suffix for name in pairs),
        label_backend=transform(dataset.get("pipeline"), "LoadAnnotations").get("imdecode_backend")
        or "pillow",
    )
    found.listings.append(listing)
    if where.startswith("train"):
        _check_padding(found, where, dataset, use)
    if not gone and found.sample:
        some_of = listing.labels[:: -(-len(pairs) // found.sample)]
        cases, said = _cases(listing, some_of, lambda _, function, items: map(function, items))
        cases = {kind: cases[kind] for kind in _BEFORE}
        found.findings += findings(_RULES, cases, where, labels, **said)


def _check_classes(
    found: Report, where: str, dataset: dict, kind: type, classes: tuple[str, ...]
) -> None:
    own = kind.METAINFO.get("classes")
    if not classes and any(found.cfg.get(f"{split}_evaluator") for split in ("val", "test")):
        # mmseg asks for them when it scores
        text = f"{kind.__name__} has no classes of its own: name them in metainfo=dict(classes="
        found.add(where, "no-classes", f"{text}(...), palette=[...]), in the order of the labels")
    if foreign := [name for name in classes if own and name not in own]:
        text = f"{kind.__name__} has no {some(foreign)}: for other data use type='BaseSegDataset'"
        found.add(f"{where}.metainfo.classes", "absent-class", text, foreign)
    palette = (dataset.get("metainfo") or {}).get("palette")
    if classes and palette is not None and not own and len(palette) != len(classes):
        text = f"{len(palette)} colours for {len(classes)} classes: give one (R, G, B) for each"
        found.add(f"{where}.metainfo.palette", "palette", text)


def _names(
    found: Report, where: str, dataset: dict, images: str, suffix: str, root: str
) -> list[str]:
    """Names of the images without their suffix; none after noting the problem."""
    ann_file = dataset.get("ann_file")
    path = os.path.join(root, ann_file or "")
    if ann_file and not os.path.isdir(path):  # for a folder mmseg lists the images
        where = f"{where}.ann_file"
        names = [line.strip() for line in found.lines_of(where, path)]
        if "" in names:
            text = f"line {names.index('') + 1} of {path!r} is empty: delete it, for mmseg takes it"
            found.add(where, "list", f"{text} for an image {suffix!r}")
            return []
        return [] if found.absent(where, [x + suffix for x in names], path, images) else names
    names = [name.removesuffix(suffix) for name in files(images, (suffix,))]
    if names:
        other = [n for n in files(images, IMAGES, any_case=True) if not n.endswith(suffix)]
        found.not_taken(where, images, other, f"do not end in {suffix!r}")
    else:
        text = f"no {suffix} image in {images!r}{hint(images)}"
        found.add(f"{where}.data_prefix.img_path", "no-images", text)
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
    mapped = transform(dataset, "MapLabels") or transform(loader, "MapLabels")
    try:
        mapping = read_mapping(mapped.get("mapping")) if mapped else None
    except ValueError as error:
        found.add(f"{where}.pipeline", "mapping", str(error))
        return None
    ignored, tolerated = ignored_numbers(found.cfg, split, dataset)
    is_part = is_mmseg and set(classes) <= set(kind.METAINFO.get("classes") or ())
    reduced = option(dataset, kind, "reduce_zero_label") or load.get("reduce_zero_label")
    return LabelUse(
        num_classes=len(classes),
        reduce_zero_label=bool(reduced),
        label_map=kind.get_label_map(classes) if is_part else None,
        mapping=mapping,
        others=mapped.get("others"),
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
            if replace(last, reduce_zero_label=False, label_map=None).stray([value]):
                # 255 stands in every recipe, also where nothing is ever filled up
                certain = value != NO_LABEL and not use.undecided
                text = (
                    f"{name}={value} fills label maps up, and is neither one of the "
                    f"{use.num_classes} classes nor ignored by all heads "
                    f"({some(sorted(use.ignored))}): the loss stops at it; set {name} to an "
                    "ignored number, or ignore_index in data sets, heads and evaluators"
                )
                found.add(key, "seg-pad", text, (), "error" if certain else "warning")


def _pads(part: Any) -> Iterator[tuple[str, Any]]:
    """(option, number) of all that fills label maps up, at any depth."""
    for _, entry in walk("", part):
        if type_name(entry) in _PADDING and "seg_pad_val" not in entry:
            yield "seg_pad_val", NO_LABEL  # their default
        for key in _PADS:
            if isinstance(entry.get(key), int | float):
                yield key, int(entry[key])


def survey(listing: Listing, images: Sequence[ImageFacts], run: Callable) -> Iterator[Finding]:
    """What is wrong with the label maps of one data set, and which classes none of them has."""
    cases, said = _cases(listing, listing.labels, run, images)
    # of a part of a data set's own classes the label maps have all
    whole = replace(listing.use, label_map=None, num_classes=len(listing.classes))
    numbers = {whole.loaded(value) for value in said["there"]}
    kind = "unused-class" if listing.where.startswith("train") else "unused-class/scored"
    cases[kind] = [name for i, name in enumerate(listing.classes) if i not in numbers]
    yield from findings(_RULES, cases, listing.where, listing.label_folder, **said)


def _cases(
    listing: Listing, names: Sequence[str], run: Callable, images: Sequence[ImageFacts] = ()
) -> tuple[dict[str, list[str]], dict]:
    """What some label maps are, whose images may be known, and what to say of it."""
    use, count = listing.use, len(listing.classes)
    paths = [os.path.join(listing.label_folder, name) for name in names]
    read = partial(image_facts, flag="unchanged", backend=listing.label_backend, labels=True)
    cases, there = defaultdict(list), set[Value]()
    for i, facts in enumerate(run(f"labels of {listing.where}", read, paths)):
        there.update(facts.values)
        for kind, detail in _kinds(use, facts, images[i] if images else None).items():
            cases[kind].append(f"{names[i]} ({detail})" if detail else names[i])
    why, trap = "", two_values(there, use, listing.classes)
    if use.stray(there):
        first = int(use.reduce_zero_label)
        ignored = sorted(use.ignored | ({0} if first else set()))
        why = (
            f"; with reduce_zero_label={bool(first)} the {count} classes are {first} "
            f"to {count - 1 + first}{' (before MapLabels)' if use.mapping else ''} "
            f"({' and '.join(map(str, ignored))}: no label); {cause(there, use)}"
        )
    elif trap:
        cases["two-values"] = list(names)
    said = dict(label_map=len(names), why=why, trap=trap, there=there)
    return cases, said | {"class": count}


def _kinds(use: LabelUse, facts: ImageFacts, image: ImageFacts | None) -> dict[str, str]:
    """Kind -> what to say of the file."""
    if facts.fault:
        return {"label-unreadable": facts.detail or facts.fault}
    kinds = {"label-lossy": ""} if facts.format == "JPEG" else {}
    stray = use.stray(facts.values)
    if facts.channels != 1 and (stray or not facts.values):
        return kinds | {"label-undecided" if use.undecided else "label-colour": facts.mode}
    large = [value for value in facts.values if isinstance(value, int) and value >= TOO_LARGE]
    if large and not use.undecided:
        kinds["label-16-bit"] = some(large)
    elif stray:
        undecided = use.undecided or all(use.loaded(value) in use.tolerated for value in stray)
        kinds["label-undecided" if undecided else "label-range"] = some(stray)
    if image and not image.fault and facts.loaded != image.loaded:
        (height, width), loaded = facts.loaded, image.loaded
        kinds["label-size"] = f"{width}x{height}, the image is {loaded[1]}x{loaded[0]}"
    if not any(map(use.is_class, facts.values)) and not stray:
        kinds["label-empty"] = ""
    if facts.mode == "P":
        kinds["label-palette"] = ""
    return kinds
