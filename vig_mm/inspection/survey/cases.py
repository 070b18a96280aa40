"""Findings made from a table of faults and the files that have them."""

from collections.abc import Iterator, Mapping, Sequence

from ..findings import Finding, number, some

# kind: severity, what the files or annotations do, what comes of it and what to do
Table = Mapping[str, tuple[str, str, str]]


def findings(
    table: Table, cases: Mapping[str, Sequence[str]], where: str, place: str, total: int, noun: str
) -> Iterator[Finding]:
    """One finding for each kind in a table that has cases.

    Args:
        table: What to say of each kind, in the order of the findings.
        cases: Names by kind.
        where: Key of the data set in its config.
        place: The folder or file they are in.
        total: How many were looked at.
        noun: What they are, in the singular.
    """
    for kind, (severity, what, effect) in table.items():
        names = cases.get(kind, ())
        if names:
            text = (
                f"{where}: {len(names)} of {number(total, noun)} in {place!r} {what}, "
                f"e.g. {some(names, 3)}: {effect}"
            )
            yield Finding(severity, kind, where, text, len(names), tuple(names))
