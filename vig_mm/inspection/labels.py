"""What the numbers and colours in label maps become, and which of them training and scores take."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

NO_LABEL = 255  # to mmseg's heads and metrics, unless they say otherwise

Value = int | tuple[int, int, int]


@dataclass(frozen=True)
class LabelUse:
    """How a data set loads label maps, and what is ignored in them.

    Attributes:
        num_classes: Of the data set.
        reduce_zero_label: Whether 0 becomes 255, and the others one less.
        label_map: mmseg's, of a part of a data set's own classes.
        mapping: Of `vig_mm.MapLabels`, which comes last; None without.
        others: Of `vig_mm.MapLabels`.
        ignored: Numbers that all heads, or all metrics, ignore.
        tolerated: Numbers that something else is told to ignore.
        undecided: Whether the pipeline has transforms that may change the numbers, unknown here.
    """

    num_classes: int
    reduce_zero_label: bool = False
    label_map: Mapping[int, int] | None = None
    mapping: Mapping[Value, int] | None = None
    others: int | None = None
    ignored: frozenset[int] = frozenset({NO_LABEL})
    tolerated: frozenset[int] = frozenset()
    undecided: bool = False

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


@dataclass(frozen=True)
class Ignored:
    """The `ignore_index` of each part of a mmseg config: (key in the config, number).

    Attributes:
        heads: Of the model's heads.
        metrics: Of the evaluator's.
        others: Of the data set.
    """

    heads: Mapping[str, int | None] = field(default_factory=dict)
    metrics: Mapping[str, int | None] = field(default_factory=dict)
    others: Mapping[str, int | None] = field(default_factory=dict)

    @staticmethod
    def of(cfg: Mapping, split: str, dataset: Mapping) -> "Ignored":
        """Read them out of a config, with mmseg's default where nothing is said."""
        heads = dict(_said("model", cfg.get("model")))
        evaluator = cfg.get(f"{split}_evaluator")
        listed = evaluator if isinstance(evaluator, list | tuple) else [evaluator]
        metrics = {
            f"{split}_evaluator.{i}" if len(listed) > 1 else f"{split}_evaluator": one.get(
                "ignore_index", NO_LABEL
            )
            for i, one in enumerate(listed)
            if isinstance(one, Mapping)
        }
        return Ignored(heads, metrics, {"dataset": dataset.get("ignore_index", NO_LABEL)})

    def numbers(self, training: bool) -> tuple[frozenset[int], frozenset[int]]:
        """`ignored` and `tolerated` of a `LabelUse`.

        Training asks the heads, and a number that one of them does not ignore is none of its
        classes. Scoring asks the metrics; what they do not ignore they count as a mistake.
        """
        every = {**self.heads, **self.metrics, **self.others}
        asked = self.heads if training else self.metrics
        sets = [{number} for number in asked.values()] or [set(every.values()) | {NO_LABEL}]
        ignored = set.intersection(*sets)
        rest = set().union(*sets) if training else set(every.values())
        return _numbers(ignored), _numbers(rest - ignored)


def _numbers(found: set[int | None]) -> frozenset[int]:
    return frozenset(one for one in found if one is not None)


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
            if isinstance(value, Mapping | list | tuple):
                yield from _said(f"{where}.{key}", value)
