"""What the numbers and colours in label maps become, which of them count, and usual mistakes."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .findings import some

NO_LABEL = 255  # to mmseg's heads and metrics, unless they say otherwise
_MAP = "vig_mm.MapLabels"
_BEHIND = "behind LoadAnnotations in the training and test pipelines"
_SHOWN = 12  # entries of a mapping that a message has room for
_MOST = 256  # colours of a label map; more are those of a photograph, or of a lossy format

Value = int | tuple[int, int, int]


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

    def is_known(self, value: Value) -> bool:
        """Whether a value of the file stands for a class or for no label."""
        number = self.loaded(value)
        return number is not None and (number in self.ignored or number in range(self.num_classes))

    def is_class(self, value: Value) -> bool:
        """Whether a value of the file stands for a class that is not ignored."""
        return self.is_known(value) and self.loaded(value) not in self.ignored

    def is_tolerated(self, value: Value) -> bool:
        """Whether a value of the file that is not known is ignored by some part of the config."""
        return self.loaded(value) in self.tolerated


def ignored_numbers(
    cfg: Mapping, split: str, dataset: Mapping
) -> tuple[frozenset[int], frozenset[int]]:
    """`ignored` and `tolerated` of a `LabelUse`, by the `ignore_index` of each part of a config.

    Training asks the heads, and a number that one of them does not ignore is none of its classes.
    Scoring asks the metrics; what they do not ignore they count as a mistake.
    """
    heads = dict(_said("model", cfg.get("model")))
    evaluator = cfg.get(f"{split}_evaluator")
    listed = evaluator if isinstance(evaluator, list | tuple) else [evaluator]
    metrics = [one.get("ignore_index", NO_LABEL) for one in listed if isinstance(one, Mapping)]
    every = {*heads.values(), *metrics, dataset.get("ignore_index", NO_LABEL)}
    training = split == "train"
    asked = [{one} for one in (heads.values() if training else metrics)] or [every | {NO_LABEL}]
    ignored = set.intersection(*asked)
    rest = set().union(*asked) if training else every
    return frozenset(ignored - {None}), frozenset(rest - ignored - {None})


def _said(where: str, model: Any) -> Iterator[tuple[str, int | None]]:
    """(key, `ignore_index`) of every segmentation head of a model, at any depth."""
    if isinstance(model, list | tuple):
        for i, one in enumerate(model):
            yield from _said(f"{where}.{i}", one)
    elif isinstance(model, Mapping):
        parts = [name for name in where.split(".") if not name.isdigit()]
        if parts[-1] in ("decode_head", "auxiliary_head"):
            yield where, model.get("ignore_index", NO_LABEL)
        for key, value in model.items():
            yield from _said(f"{where}.{key}", value)


def cause(values: Iterable[Value], use: LabelUse) -> str:
    """What label maps with values of no class look like, and what to do about it.

    Args:
        values: That occur, with at least one that stands for no class.
        use: How the data set loads them.
    """
    values = list(values)
    colours = sorted(value for value in values if isinstance(value, tuple))
    if colours:
        return _colours(colours, use)
    stray = [value for value in values if not use.is_known(value)]
    plain = not use.reduce_zero_label and use.mapping is None
    numbers = sorted(set(values) - use.ignored - {NO_LABEL})
    count = use.num_classes
    if plain and numbers == list(range(1, count + 1)):
        return (
            f"they are numbered from 1 ({numbers[0]} to {numbers[-1]}): set reduce_zero_label=True "
            f"in every data set, or put {_entry(zip(numbers, range(count), strict=True))} {_BEHIND}"
        )
    if plain and numbers == list(range(count + 1)):
        return (
            f"0 to {count} are {count + 1} numbers for {count} classes: if 0 is background, name "
            "it first in classes; if it is no label, set reduce_zero_label=True in every data set; "
            f"if {count} is no label, put {_entry([(count, NO_LABEL)])} {_BEHIND}, or set "
            f"ignore_index={count} in data sets, heads and evaluators, and seg_pad_val={count}"
        )
    if plain and len(numbers) == count:
        pairs = [(old, new) for new, old in enumerate(numbers) if old != new]
        return f"there are gaps between them: put {_entry(pairs)} {_BEHIND}"
    told = f", or set ignore_index={stray[0]} in data sets, heads and evaluators, and seg_pad_val"
    entry = _entry((value, NO_LABEL) for value in stray)
    return f"if they are no label, put {entry} {_BEHIND}{told if len(stray) == 1 else ''}"


def two_values(values: Iterable[Value], use: LabelUse, names: Sequence[str]) -> str:
    """What to say of masks of nothing but 0 and 255 for two classes; "" if they are none.

    Args:
        values: All that occur in the data set's label maps, as they stand in the files.
        use: How the data set loads them.
        names: Of the classes.
    """
    if set(values) != {0, NO_LABEL} or NO_LABEL not in use.ignored:
        return ""
    if use.is_class(NO_LABEL) or use.num_classes != 2:
        return ""
    learned = f"{names[1]!r} is never learned"
    reduce = ""
    if use.reduce_zero_label:
        learned, reduce = "nothing is learned at all", "set reduce_zero_label=False, and "
    return (
        f"they hold nothing but 0 and 255, and 255 is 'no label', so that {learned}: if 255 is "
        f"{names[1]!r}, {reduce}put {_entry([(NO_LABEL, 1)])} {_BEHIND}"
    )


def _colours(colours: list[Value], use: LabelUse) -> str:
    if len(colours) > _MOST:
        return (
            f"of {len(colours)} colours, as a photograph or a jpg has: give the label maps, as png"
        )
    if use.mapping is not None:
        unknown = [one for one in colours if not use.is_known(one)]
        return f"{_MAP} has no entry for {some(unknown)}: add them, or set others={NO_LABEL}"
    return (
        f"colours stand for the classes: put {_entry((one, i) for i, one in enumerate(colours))} "
        f"{_BEHIND}, with the number of each colour's class"
    )


def _entry(pairs: Iterable[tuple[Value, int]]) -> str:
    """The transform's entry in a config."""
    pairs = [f"{value}: {number}" for value, number in pairs]
    more = ", ..." if len(pairs) > _SHOWN else ""
    return f"dict(type='{_MAP}', mapping={{{', '.join(pairs[:_SHOWN])}{more}}})"
