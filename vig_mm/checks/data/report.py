"""Findings: one record for each kind of fault in a data set, and the tables that word them."""

import re
from dataclasses import dataclass

SEVERITIES = ("error", "warning", "note")

Rules = dict[str, list[str]]


def rules(table: str) -> Rules:
    """Kind -> severity, noun, what is so, what comes of it and what to do; and, where a library
    leaves such things out, the words for that behind their number.

    Args:
        table: Lines ``severity noun kind | what is so | what to do | left out``, of which each may
            go on in lines that are indented. Behind a slash in a kind: its variant.
    """
    lines = re.sub(r"\n +", " ", table.strip()).splitlines()
    return {line.split()[2]: [*line.split()[:2], *line.split(" | ")[1:]] for line in lines}


@dataclass(frozen=True)
class Finding:
    """One kind of fault in one data set.

    `error` if training would stop or learn wrong labels, `warning` if a library leaves something
    out or changes it without a word, `note` if nothing is lost.
    """

    severity: str
    kind: str  # a short fixed name
    where: str  # key of the data set in its config
    text: str  # the whole message: where, how many of what, what comes of it, what to do
    count: int = 1  # of files, annotations, images or classes
    names: tuple[str, ...] = ()  # all of them
    left_out: str = ""  # what the library leaves out, with the count


def number(count: int, noun: str) -> str:
    """`number(1, "image")` is "1 image", `number(2, "image")` is "2 images"."""
    several = f"{noun}es" if noun.endswith("ss") else f"{noun}s".replace("ys", "ies")
    return f"{count} {noun if count == 1 else several}".replace("_", " ")
