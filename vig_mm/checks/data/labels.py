"""What the numbers and colours in label maps become, which of them count, and usual mistakes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vig_mm.datasets.files import some
from vig_mm.datasets.transforms.map_labels import Value

from ..config import metrics_of, part_name, walk

NO_LABEL = 255  # to mmseg's heads and metrics, unless they say otherwise
_BEHIND = "behind LoadAnnotations in the training and test pipelines"
_SHOWN = 12  # entries of a mapping that a message has room for
_MOST = 256  # colours of a label map; more are those of a photograph, or of a lossy format


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
    return f"put dict(type='vig_mm.MapLabels', mapping={{{shown}}}) {_BEHIND}"
