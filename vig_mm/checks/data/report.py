"""Findings: one record for each kind of fault in a data set, and the report that takes them."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config
from mmengine.fileio import list_from_file

from vig_mm.datasets.files import entries, some

from .options import Listing

SEVERITIES = ("error", "warning", "note")
_OPTION = re.compile(r"\.(ann_file|data_root|data_prefix|metainfo|pipeline)\b.*")

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
    several = f"{noun}es" if noun.endswith("ss") else f"{noun}s"
    return f"{count} {noun if count == 1 else several}".replace("_", " ")


def findings(
    table: Rules, cases: Mapping[str, Sequence], where: str, place: str, **said: object
) -> Iterator[Finding]:
    """One finding for each rule that has cases (names by kind), in the order of the rules.

    `place`: the folder or file they are in; `said`: how many were looked at, by noun, and what else
    the rules have places for.
    """
    for kind, (severity, noun, *words) in table.items():
        if names := tuple(map(str, cases.get(kind, ()))):
            what, effect, *left_out = (one.format(**said) for one in words)
            key, of = ".metainfo.classes" if noun == "class" else "", number(said[noun], noun)
            text = f"{where}{key}: {len(names)} of {of} in {place!r} {what}, e.g. {some(names, 3)}"
            out = f"{number(len(names), noun)} {left_out[0]}" if left_out else ""
            kind = kind.partition("/")[0]
            yield Finding(severity, kind, where, f"{text}: {effect}", len(names), names, out)


class Report:
    """What the checks of one config's data sets have found so far.

    Args:
        cfg: The whole config.
        sample: How many label maps of a data set to read; 0 where all are read later.
        coco: Takes the content of annotation files, or what is wrong with them.
    """

    def __init__(self, cfg: Config, sample: int, coco: dict[str, dict | str] | None = None) -> None:
        self.cfg, self.sample, self.coco = cfg, sample, {} if coco is None else coco
        self.findings: list[Finding] = []
        self.listings: list[Listing] = []  # the files of each data set, as far as they are there
        self.classes: dict[str, tuple[str, ...]] = {}  # of each data set, in label order
        self.ann_files: dict[str, list[str]] = {}  # of each split's loader

    def add(
        self, where: str, kind: str, text: str, names: Sequence = (), severity="error", left_out=""
    ) -> None:
        """Note what is wrong; `where` may go on to an option; `names`: all that it holds for."""
        data_set, text, count = _OPTION.sub("", where), f"{where}: {text}", len(names) or 1
        found = Finding(severity, kind, data_set, text, count, tuple(names), left_out)
        self.findings.append(found)

    def missing(self, where: str, path: str, what: str) -> None:
        """Note that a file or folder is not there; `where`: the option that names it."""
        text = f"no {what} {path!r} (seen from {os.getcwd()!r}): put the data there, or set {where}"
        self.add(where, "missing", f"{text} in the config or by --cfg-options{hint(path)}")

    def has_folder(self, where: str, path: str, what: str) -> bool:
        """Whether a folder is there, after noting that it is not."""
        if not os.path.isdir(path):
            self.missing(where, path, what)
        return os.path.isdir(path)

    def absent(self, where: str, names: list[str], path: str, folder: str) -> list[str]:
        """Those of the names in the file `path` that are not in a folder, after noting them."""
        there = {entry.name for entry in entries(folder)}  # one listing, as look-ups are slow
        gone = [name for name in names if name not in there]
        gone = [x for x in gone if not ("/" in x and os.path.isfile(os.path.join(folder, x)))]
        if gone:
            inside, base = os.path.split(os.path.join(folder, gone[0]))
            beside = os.listdir(inside) if os.path.isdir(inside) else []
            other = next((x for x in beside if x.lower() == base.lower()), "")
            advice = f"; there is {other!r}: upper and lower case differ here"
            if windows := sum("\\" in name for name in gone):
                advice = f"; {windows} have backslashes, as on Windows: write / for \\ in {path!r}"
            text = (
                f"{len(gone)} of the {len(names)} images in {path!r} are not in {folder!r}, e.g. "
            )
            text += repr(gone[0]) + (advice if windows or other else hint(folder))
            self.add(where, "missing", text, gone)
        return gone

    def not_taken(self, where: str, folder: str, names: list[str], why: str) -> None:
        """Note the files in a folder that a data set leaves out, if there are any."""
        if names:
            what = f"{number(len(names), 'file')} in {folder!r} {why}"
            text = f"{what}, e.g. {some(names, 3)}: {self.cfg.default_scope} leaves them out; "
            text += "rename or convert them, or take them away"
            self.add(where, "not-taken", text, names, "warning", what)

    def lines_of(self, where: str, path: str) -> list[str]:
        """The lines of an `ann_file`, split as the libraries do; none after noting the problem."""
        lines, kind, fault = [], "list", ""
        if not os.path.isfile(path):
            self.missing(where, path, "list of images")
            return []
        try:
            lines = list_from_file(path)
            if not lines:
                kind, fault = "no-images", "is empty: list the images in it, one a line"
        except UnicodeDecodeError as error:
            fault = f"is not UTF-8 ({error}): save it as UTF-8"
        except OSError as error:
            fault = f"cannot be read ({error}): correct its permissions"
        if fault:
            self.add(where, kind, f"{path!r} {fault}")
        return lines


def hint(path: str) -> str:
    """How to make the data at a path, where this project does."""
    made = "digits" in Path(path).parts
    return "; the built-in digits are made by `python tools/data/make_digits.py`" if made else ""
