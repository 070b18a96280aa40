"""Check of a segmentation data set: images, label maps of the same names, and what is in them."""

import inspect
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from vig_mm.datasets.files import IMAGES, files, some
from vig_mm.datasets.transforms.map_labels import Value, read_mapping
from vig_mm.registry import type_name

from ..config import metrics_of, part_name, transform, walk
from .data_set import DataSet, Finding, has_own_transform, hint, rules
from .images import FIX, ImageFacts, image_facts

NO_LABEL = 255  # to mmseg's heads and metrics, unless they say otherwise
_SHOWN = 12  # entries of a mapping that a message has room for
_MOST = 256  # colours of a label map; more are those of a photograph, or of a lossy format
TOO_LARGE = 256  # the smallest value that mmseg, which casts to 8 bits, takes for another
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


@dataclass(frozen=True)
class LabelUse:
    """How a data set loads label maps, and what is ignored in them."""

    num_classes: int
    reduce_zero_label: bool = False  # whether 0 becomes 255, and the others one less
    label_map: Mapping[int, int] | None = None  # mmseg's, of a part of a data set's own classes
    mapping: Mapping[Value, int] | None = None  # of `vig_mm.MapLabels`, which comes last
    others: int | None = None  # of `vig_mm.MapLabels`
    ignored: frozenset[int] = frozenset({NO_LABEL})  # by all heads, or all metrics
    tolerated: frozenset[int] = frozenset()  # by something else
    undecided: bool = False  # whether unknown transforms may change the numbers

    def loaded(self, value: Value) -> int | None:
        """The number that a value of the file is when the model gets it; None for no number."""
        if isinstance(value, int):
            if self.reduce_zero_label:
                value = NO_LABEL if value in (0, NO_LABEL) else value - 1
            value = (self.label_map or {}).get(value, value)
        unmapped = value if isinstance(value, int) else None
        if self.mapping is None:
            return unmapped
        return self.mapping.get(value, unmapped if self.others is None else self.others)

    def is_class(self, value: Value) -> bool:
        """Whether a value of the file stands for a class that is not ignored."""
        number = self.loaded(value)
        return number in range(self.num_classes) and number not in self.ignored

    def stray(self, values: Iterable[Value]) -> list[Value]:
        """The values of a file that stand neither for a class nor for no label."""
        return [x for x in values if not (self.is_class(x) or self.loaded(x) in self.ignored)]


def check(data: DataSet) -> None:
    """Check images and label maps against each other and the classes."""
    _check_classes(data)
    prefix = data.entry.get("data_prefix") or {}
    images, labels = (data.path(prefix.get(key)) for key in ("img_path", "seg_map_path"))
    suffix, seg_suffix = data.option("img_suffix"), data.option("seg_map_suffix")
    if not data.has_folder(".data_prefix.img_path", images, "image folder"):
        return
    names, key = _names(data, images, suffix), ".data_prefix.seg_map_path"
    if not names or not prefix.get("seg_map_path"):
        return
    if not data.has_folder(key, labels, "label folder"):
        return
    there = set(files(labels, (seg_suffix,)))
    wanted = {name + seg_suffix: name for name in names}
    if gone := [name for name in wanted if name not in there]:
        text = f"{len(gone)} of {len(names)} images have no label map in {labels!r}, e.g. "
        data.add("no-label", f"{text}{gone[0]!r}{hint(labels)}", gone, key=key)
    if not data.ann_file:
        data.not_taken(labels, sorted(there - wanted.keys()), "belong to no image")
    use = _use(data) if data.classes else None
    if use is None:
        return
    pairs = sorted(wanted[x] for x in wanted.keys() & there)
    pairs_of = [[name + ending for name in pairs] for ending in (suffix, seg_suffix)]
    data.list_files(images, pairs_of[0], use=use, labels=pairs_of[1], label_folder=labels)
    if data.split == "train":
        _check_padding(data, use)
    if not gone and data.report.sample:
        some_of = data.labels[:: -(-len(pairs) // data.report.sample)]
        cases, said = _cases(data, some_of, lambda _, function, items: map(function, items))
        data.judge(_RULES, {kind: cases[kind] for kind in _BEFORE}, labels, **said)


def _check_classes(data: DataSet) -> None:
    own, name, classes = data.kind.METAINFO.get("classes"), data.kind.__name__, data.classes
    if not classes and any(data.cfg.get(f"{split}_evaluator") for split in ("val", "test")):
        # mmseg asks for them when it scores
        text = f"{name} has no classes of its own: name them in metainfo=dict(classes=(...), "
        data.add("no-classes", f"{text}palette=[...]), in the order of the labels")
    if foreign := [x for x in classes if own and x not in own]:
        text = f"{name} has no {some(foreign)}: for other data use type='BaseSegDataset'"
        data.add("absent-class", text, foreign, key=".metainfo.classes")
    palette = (data.entry.get("metainfo") or {}).get("palette")
    if classes and palette is not None and not own and len(palette) != len(classes):
        text = f"{len(palette)} colours for {len(classes)} classes: give one (R, G, B) for each"
        data.add("palette", text, key=".metainfo.palette")


def _names(data: DataSet, images: str, suffix: str) -> list[str]:
    """Names of the images without their suffix; none after noting the problem."""
    path = data.path(data.ann_file)
    if data.ann_file and not os.path.isdir(path):  # for a folder mmseg lists the images
        names = [line.strip() for line in data.lines()]
        if "" in names:
            text = f"line {names.index('') + 1} of {path!r} is empty: delete it, for mmseg takes it"
            data.add("list", f"{text} for an image {suffix!r}", key=".ann_file")
            return []
        gone = data.absent(".ann_file", [x + suffix for x in names], path, images)
        return [] if gone else names
    names = [name.removesuffix(suffix) for name in files(images, (suffix,))]
    if names:
        other = [n for n in files(images, IMAGES, any_case=True) if not n.endswith(suffix)]
        data.not_taken(images, other, f"do not end in {suffix!r}")
    else:
        text = f"no {suffix} image in {images!r}{hint(images)}"
        data.add("no-images", text, key=".data_prefix.img_path")
    return names


def _use(data: DataSet) -> LabelUse | None:
    """How label maps are loaded, or None after noting that a mapping is none."""
    loader = data.cfg[f"{data.split}_dataloader"]["dataset"]  # wrappers may have a pipeline, too
    bases = data.kind.__mro__[:-1]
    is_mmseg = any("ignore_index" in inspect.signature(x.__init__).parameters for x in bases)
    mapped = transform(data.entry, "MapLabels") or transform(loader, "MapLabels")
    try:
        mapping = read_mapping(mapped.get("mapping")) if mapped else None
    except ValueError as error:
        data.add("mapping", str(error), key=".pipeline")
        return None
    ignored, tolerated = ignored_numbers(data.cfg, data.split, data.entry)
    own, classes = set(data.kind.METAINFO.get("classes") or ()), data.classes
    reduced = data.option("reduce_zero_label") or data.load.get("reduce_zero_label")
    return LabelUse(
        num_classes=len(classes),
        reduce_zero_label=bool(reduced),
        label_map=data.kind.get_label_map(classes) if is_mmseg and own >= set(classes) else None,
        mapping=mapping,
        others=mapped.get("others"),
        ignored=ignored,
        tolerated=tolerated,
        undecided=not is_mmseg or has_own_transform(loader, data.cfg.get("default_scope")),
    )


def _check_padding(data: DataSet, use: LabelUse) -> None:
    """See that what label maps are filled up with is a class, or ignored by the loss."""
    later = replace(use, reduce_zero_label=False, label_map=None)
    preprocessor = (data.cfg.get("model") or {}).get("data_preprocessor")
    for key, part, last in (
        (f"{data.where}.pipeline", data.pipeline, later),
        ("model.data_preprocessor", preprocessor, replace(later, mapping=None)),
    ):
        for name, value in _pads(part):
            if last.stray([value]):
                # 255 stands in every recipe, also where nothing is ever filled up
                certain = value != NO_LABEL and not use.undecided
                text = (
                    f"{key}: {name}={value} fills label maps up, and is neither one of the "
                    f"{use.num_classes} classes nor ignored by all heads "
                    f"({some(sorted(use.ignored))}): the loss stops at it; set {name} to an "
                    "ignored number, or ignore_index in data sets, heads and evaluators"
                )
                severity = "error" if certain else "warning"
                data.report.findings.append(Finding(severity, "seg-pad", data.where, text))


def _pads(part: Any) -> Iterator[tuple[str, Any]]:
    """(option, number) of all that fills label maps up, at any depth."""
    for _, entry in walk("", part):
        if type_name(entry) in _PADDING and "seg_pad_val" not in entry:
            yield "seg_pad_val", NO_LABEL  # their default
        for key in _PADS:
            if isinstance(entry.get(key), int | float):
                yield key, int(entry[key])


def survey(data: DataSet, images: Sequence[ImageFacts], run: Callable) -> None:
    """What is wrong with the label maps of one data set, and which classes none of them has."""
    cases, said = _cases(data, data.labels, run, images)
    # of a part of a data set's own classes the label maps have all
    classes = _classes(data)
    whole = replace(data.use, label_map=None, num_classes=len(classes))
    numbers = {whole.loaded(value) for value in said["there"]}
    kind = "unused-class" if data.split == "train" else "unused-class/scored"
    cases[kind] = [name for i, name in enumerate(classes) if i not in numbers]
    data.judge(_RULES, cases, data.label_folder, **said)


def _classes(data: DataSet) -> tuple[str, ...]:
    """What the numbers in label maps stand for, of which a data set may take a part."""
    return tuple(data.kind.METAINFO.get("classes") or data.classes)


def _cases(
    data: DataSet, names: Sequence[str], run: Callable, images: Sequence[ImageFacts] = ()
) -> tuple[dict[str, list[str]], dict]:
    """What some label maps are, whose images may be known, and what to say of it."""
    use, classes = data.use, _classes(data)
    paths = [os.path.join(data.label_folder, name) for name in names]
    backend = data.load.get("imdecode_backend") or "pillow"
    read = partial(image_facts, flag="unchanged", backend=backend, labels=True)
    cases, there = defaultdict(list), set[Value]()
    for i, facts in enumerate(run(f"labels of {data.where}", read, paths)):
        there.update(facts.values)
        for kind, detail in _kinds(use, facts, images[i] if images else None).items():
            cases[kind].append(f"{names[i]} ({detail})" if detail else names[i])
    why, trap, first = "", two_values(there, use, classes), int(use.reduce_zero_label)
    if use.stray(there):
        no_label = " and ".join(map(str, sorted({*use.ignored, *range(first)})))
        why = (
            f"; with reduce_zero_label={bool(first)} the {len(classes)} classes are {first} "
            f"to {len(classes) - 1 + first}{' (before MapLabels)' if use.mapping else ''} "
            f"({no_label}: no label); {cause(there, use)}"
        )
    elif trap:
        cases["two-values"] = list(names)
    said = dict(label_map=len(names), why=why, trap=trap, there=there)
    return cases, said | {"class": len(classes)}


def _kinds(use: LabelUse, facts: ImageFacts, image: ImageFacts | None) -> dict[str, str]:
    """Kind -> what to say of the file."""
    if facts.fault:
        return {"label-unreadable": facts.detail or facts.fault}
    kinds, stray = {"label-lossy": ""} if facts.format == "JPEG" else {}, use.stray(facts.values)
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


def ignored_numbers(
    cfg: Mapping, split: str, dataset: Mapping
) -> tuple[frozenset[int], frozenset[int]]:
    """`ignored` and `tolerated` of a `LabelUse`, by the `ignore_index` of each part of a config.

    Training asks the heads, and a number that one of them does not ignore is none of its classes.
    Scoring asks the metrics; what they do not ignore they count as a mistake.
    """
    named = ("decode_head", "auxiliary_head")
    heads = [one for key, one in walk("model", cfg.get("model")) if part_name(key) in named]
    heads, metrics = (
        [one.get("ignore_index", NO_LABEL) for one in parts]
        for parts in (heads, metrics_of(cfg, split))
    )
    every = {*heads, *metrics, dataset.get("ignore_index", NO_LABEL)}
    training = split == "train"
    asked = [{one} for one in (heads if training else metrics)] or [every | {NO_LABEL}]
    ignored = set.intersection(*asked)
    rest = set().union(*asked) if training else every
    return frozenset(ignored - {None}), frozenset(rest - ignored - {None})


def cause(values: Iterable[Value], use: LabelUse) -> str:
    """What label maps with these values, some of no class, look like, and what to do about it."""
    values, count = set(values), use.num_classes
    colours = sorted(value for value in values if isinstance(value, tuple))
    if len(colours) > _MOST:
        return f"of {len(colours)} colours, as a photo or a jpg has: give the label maps, as png"
    if colours and use.mapping is not None:
        unknown = some(use.stray(colours))
        return f"vig_mm.MapLabels has no entry for {unknown}: add them, or set others={NO_LABEL}"
    if colours:
        put = _entry((one, i) for i, one in enumerate(colours))
        return f"colours stand for the classes: {put}, with the number of each colour's class"
    stray, numbers = sorted(use.stray(values)), sorted(values - use.ignored - {NO_LABEL})
    plain = not use.reduce_zero_label and use.mapping is None
    reduce = "set reduce_zero_label=True in every data set"
    tell = "set ignore_index={0} in data sets, heads and evaluators, and seg_pad_val={0}"
    if plain and numbers == list(range(1, count + 1)):
        put = _entry(zip(numbers, range(count), strict=True))
        return f"they are numbered from 1 (1 to {count}): {reduce}, or {put}"
    if plain and numbers == list(range(count + 1)):
        return (
            f"0 to {count} are {count + 1} numbers for {count} classes: if 0 is background, name "
            f"it first in classes; if it is no label, {reduce}; if {count} is no label, "
            f"{_entry([(count, NO_LABEL)])}, or {tell.format(count)}"
        )
    if plain and len(numbers) == count:
        put = _entry((old, new) for new, old in enumerate(numbers) if old != new)
        return f"there are gaps between them: {put}"
    told = f", or {tell.format(stray[0])}" if len(stray) == 1 else ""
    return f"if they are no label, {_entry((value, NO_LABEL) for value in stray)}{told}"


def two_values(values: Iterable[Value], use: LabelUse, names: Sequence[str]) -> str:
    """What to do about masks of nothing but 0 and 255 for two classes; "" if they are none."""
    is_trap = set(values) == {0, NO_LABEL} and use.num_classes == 2 and NO_LABEL in use.ignored
    if not is_trap or use.is_class(NO_LABEL):
        return ""
    learned, reduce = f"{names[1]!r} is never learned", ""
    if use.reduce_zero_label:
        learned, reduce = "nothing is learned at all", "set reduce_zero_label=False, and "
    return f"{learned}: if 255 is {names[1]!r}, {reduce}{_entry([(NO_LABEL, 1)])}"


def _entry(pairs: Iterable[tuple[Value, int]]) -> str:
    """The words for a transform that is to be put into a config."""
    pairs = [f"{value}: {number}" for value, number in pairs]
    shown = ", ".join(pairs[:_SHOWN]) + (", ..." if len(pairs) > _SHOWN else "")
    step = f"dict(type='vig_mm.MapLabels', mapping={{{shown}}})"
    return f"put {step} behind LoadAnnotations in the training and test pipelines"
