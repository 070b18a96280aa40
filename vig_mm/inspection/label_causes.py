"""Usual reasons why label maps do not fit the classes, and the way out of each."""

from collections.abc import Iterable, Sequence

from .findings import some
from .labels import NO_LABEL, LabelUse, Value

_MAP = "vig_mm.MapLabels"
_BEHIND = "behind LoadAnnotations in the training and test pipelines"
_SHOWN = 12  # entries of a mapping that a message has room for
_MOST = 256  # colours of a label map; more are those of a photograph, or of a lossy format


def cause(values: Iterable[Value], use: LabelUse) -> str:
    """What the values of label maps look like, and what to do about those of no class.

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
            f"ignore_index={count} in data sets, heads and evaluators"
        )
    if plain and len(numbers) == count:
        pairs = [(old, new) for new, old in enumerate(numbers) if old != new]
        return f"there are gaps between them: put {_entry(pairs)} {_BEHIND}"
    numbers = ", ".join(f"ignore_index={value}" for value in stray[:1])
    return f"if they are no label, put {_entry((value, NO_LABEL) for value in stray)} {_BEHIND}" + (
        f", or set {numbers} in data sets, heads and evaluators" if len(stray) == 1 else ""
    )


def two_values(values: Iterable[Value], use: LabelUse, names: Sequence[str]) -> str:
    """What to say of masks of 0 and 255 for two classes; "" if they are none.

    Args:
        values: All that occur in the data set's label maps, as they stand in the files.
        use: How the data set loads them.
        names: Of the classes.
    """
    if set(values) != {0, NO_LABEL} or NO_LABEL not in use.ignored:
        return ""
    if use.is_class(NO_LABEL) or use.num_classes != 2:
        return ""
    lost = "neither class" if use.reduce_zero_label else f"{names[1]!r}"
    learned = "nothing is learned at all" if use.reduce_zero_label else f"{lost} is never learned"
    reduce = "set reduce_zero_label=False, and " if use.reduce_zero_label else ""
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
