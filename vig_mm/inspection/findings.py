"""Findings: one record for each kind of fault in a data set, with a count."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vig_mm.errors import DataError  # noqa: F401

SEVERITIES = ("error", "warning", "note")

Table = Mapping[str, tuple[str, ...]]
"""Kind -> severity, what the files or annotations do, what comes of it and what to do; then, where
a library leaves them out, the words for that behind their number."""


@dataclass(frozen=True)
class Finding:
    """One kind of fault in one data set.

    Attributes:
        severity: `error` if training would stop or learn wrong labels, `warning` if a library
            leaves something out or changes it without a word, `note` if nothing is lost.
        kind: A short fixed name.
        where: Key of the data set in its config.
        text: The whole message: where, how many of what, what comes of it, what to do.
        count: How many files, annotations, images or classes.
        names: All of them.
        left_out: What the library leaves out, with the count; empty if nothing.
    """

    severity: str
    kind: str
    where: str
    text: str
    count: int = 1
    names: tuple[str, ...] = ()
    left_out: str = ""


def some(names: Iterable[Any], limit: int = 5) -> str:
    """The first few names, and how many there are."""
    names = list(names)
    more = f", ... ({len(names)} in all)" if len(names) > limit else ""
    return (", ".join(map(str, names[:limit])) or "none") + more


def number(count: int, noun: str) -> str:
    """`number(1, "image")` is "1 image", `number(2, "image")` is "2 images"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def findings(
    table: Table,
    cases: Mapping[str, Sequence[str]],
    where: str,
    place: str,
    total: int,
    noun: str,
    option: str = "",
) -> Iterator[Finding]:
    """One finding for each kind in a table that has cases.

    Args:
        table: What to say of each kind, in the order of the findings.
        cases: Names by kind.
        where: Key of the data set in its config.
        place: The folder or file they are in.
        total: How many were looked at.
        noun: What they are, in the singular.
        option: Of the data set, which names the place.
    """
    for kind, (severity, what, effect, *left_out) in table.items():
        names = cases.get(kind, ())
        if names:
            text = (
                f"{where}{option}: {len(names)} of {number(total, noun)} in {place!r} {what}, "
                f"e.g. {some(names, 3)}: {effect}"
            )
            dropped = f"{number(len(names), noun)} {left_out[0]}" if left_out else ""
            yield Finding(severity, kind, where, text, len(names), tuple(names), dropped)
