"""Findings: one record for each kind of fault in a data set, with a count; listing of files."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from vig_mm.errors import DataError

SEVERITIES = ("error", "warning", "note")
# Endings by which a file that a data set does not take is an image all the same.
IMAGES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm",
          ".pgm", ".heic", ".avif")  # fmt: skip

Table = Mapping[str, tuple[str, ...]]
"""Kind -> severity, what the files or annotations do, what comes of it and what to do; then, where
a library leaves them out, the words for that behind their number."""


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


def finding(severity: str, kind: str, where: str, text: str, names: Sequence = ()) -> Finding:
    """A finding whose count is that of the names."""
    return Finding(severity, kind, where, text, len(names) or 1, tuple(map(str, names)))


def some(names: Iterable[Any], limit: int = 5) -> str:
    """The first few names, and how many there are."""
    names = list(names)
    more = f", ... ({len(names)} in all)" if len(names) > limit else ""
    return (", ".join(map(str, names[:limit])) or "none") + more


def number(count: int, noun: str) -> str:
    """`number(1, "image")` is "1 image", `number(2, "image")` is "2 images"."""
    several = f"{noun}es" if noun.endswith("ss") else f"{noun}s"
    return f"{count} {noun if count == 1 else several}"


def findings(
    table: Table, cases: Mapping[str, Sequence[str]], where: str, place: str, total: int, noun: str
) -> Iterator[Finding]:
    """One finding for each kind in a table that has cases.

    Args:
        table: What to say of each kind, in the order of the findings.
        cases: Names by kind.
        where: Key of the data set, or of its option that names the place.
        place: The folder or file they are in.
        total: How many were looked at.
        noun: What they are, in the singular.
    """
    for kind, (severity, what, effect, *left_out) in table.items():
        names = cases.get(kind, ())
        if names:
            text = (
                f"{where}: {len(names)} of {number(total, noun)} in {place!r} {what}, "
                f"e.g. {some(names, 3)}: {effect}"
            )
            dropped = f"{number(len(names), noun)} {left_out[0]}" if left_out else ""
            where_of_set = where.removesuffix(".ann_file").removesuffix(".metainfo.classes")
            yield Finding(severity, kind, where_of_set, text, len(names), tuple(names), dropped)


def files(folder: str, suffixes: tuple[str, ...], any_case: bool = False) -> Iterator[str]:
    """Files below a folder with one of the suffixes, relative to it; hidden ones aside.

    Raises:
        DataError: A folder cannot be listed, so that its files would be left out unseen.
    """
    for path, _, names in os.walk(folder, onerror=_refuse, followlinks=True):
        for name in names:
            suffixed = (name.lower() if any_case else name).endswith(tuple(suffixes))
            if suffixed and not name.startswith("."):
                yield os.path.relpath(os.path.join(path, name), folder)


def entries(folder: str) -> list[os.DirEntry]:
    """What lies in a folder.

    Raises:
        DataError: The folder cannot be listed.
    """
    try:
        return list(os.scandir(folder))
    except OSError as error:
        _refuse(error)


def absent(names: list[str], folder: str) -> list[str]:
    """Those of the names that are no files in a folder, by one listing, as look-ups are slow."""
    there = {entry.name for entry in entries(folder)}
    return [
        name
        for name in names
        if name not in there and not ("/" in name and os.path.isfile(os.path.join(folder, name)))
    ]


def _refuse(error: OSError) -> NoReturn:
    advice = "; correct its permissions" if isinstance(error, PermissionError) else ""
    raise DataError(
        f"folder {error.filename!r} cannot be read: {error.strerror}{advice}"
    ) from error


def hint(path: str) -> str:
    """How to make the data at a path, where this project does."""
    made = "digits" in Path(path).parts
    return "; the built-in digits are made by `python tools/data/make_digits.py`" if made else ""
