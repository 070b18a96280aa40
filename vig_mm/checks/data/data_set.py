"""A data set of a config: what its entry and its class say, its files, and what is wrong there.

A finding is one record for each kind of fault, which tables of rules word.
"""

import inspect
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.fileio import list_from_file
from mmengine.registry import DATASETS, TRANSFORMS, Registry

from vig_mm.datasets.files import entries, some

from ..config import transform, walk

SEVERITIES = ("error", "warning", "note")
# What these do to a label map, they do to its pixels' places, not to their numbers.
_KEEP_NUMBERS = ("mmcv", "mmdet", "mmengine", "mmpretrain", "mmseg", "vig_mm")

Rules = dict[str, list[str]]


def rules(table: str) -> Rules:
    """Kind -> severity, noun, what is so, what comes of it and what to do; and, where a library
    leaves such things out, the words for that behind their number.

    A line is ``severity noun kind | what is so | what to do | left out``, and may go on in lines
    that are indented. Behind a slash in a kind: its variant.
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


@dataclass
class Report:
    """What the checks of one config's data sets have found so far."""

    cfg: Config  # the whole config
    sample: int  # how many label maps of a data set to read; 0 where all are read later
    coco: dict[str, dict | str]  # annotation file -> its content, or what is wrong with it
    findings: list[Finding] = field(default_factory=list)
    listings: list["DataSet"] = field(default_factory=list)  # those whose files are there
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict)  # in label order
    ann_files: dict[str, list[str]] = field(default_factory=dict)  # of each split's loader
    num_classes: list[tuple[str, int]] = field(default_factory=list)  # (key, value) in the model


@dataclass
class DataSet:
    """The entry of a config under a key, with its class, and its files once they are listed."""

    report: Report
    where: str  # the key
    entry: dict
    kind: type
    folder: str = ""  # of the images
    names: Sequence[str] = ()  # of the images, relative to their folder
    use: Any = None  # of annotations or label maps: a `CocoUse` or a `LabelUse`
    labels: Sequence[str] = ()  # of each image: its class, or the name of its label map
    label_folder: str = ""  # of the label maps
    content: dict | None = None  # of a COCO file

    def __post_init__(self) -> None:
        self.cfg, self.split = self.report.cfg, self.where.partition("_")[0]
        self.root, self.ann_file = (self.entry.get(x) or "" for x in ("data_root", "ann_file"))
        self.pipeline = self.entry.get("pipeline")
        self.flag, self.backend = image_loader(self.pipeline)
        self.load = transform(self.pipeline, "LoadAnnotations")  # {} where there is none

    @property
    def classes(self) -> tuple[str, ...]:
        """In label order, () where there are none."""
        return self.report.classes.get(self.where, ())

    def path(self, name: str | None) -> str:
        """A path of the entry below the data's root."""
        return os.path.join(self.root, name or "")

    def option(self, name: str) -> Any:
        """An argument of the data set: from the config, else what its class gives it, or None."""
        if name in self.entry:
            return self.entry[name]
        constructors = [base for base in self.kind.__mro__ if "__init__" in vars(base)]
        for base in constructors:
            parameter = inspect.signature(base.__init__).parameters.get(name)
            if parameter is not None and parameter.default is not inspect.Parameter.empty:
                if base is constructors[0]:
                    return parameter.default
                # a subclass may hand on another value: ask one that has not looked for its files
                arguments = {k: v for k, v in self.entry.items() if k not in ("type", "_scope_")}
                try:
                    empty = self.kind(**{**arguments, "pipeline": [], "lazy_init": True})
                except Exception:  # whatever a user's class raises, building it will say
                    return parameter.default
                return getattr(empty, name, parameter.default)
        return None

    def list_files(self, folder: str, names: Sequence[str], **more: Any) -> None:
        """Note which files there are; `more`: other fields."""
        vars(self).update(more, folder=folder, names=names)
        self.report.listings.append(self)

    def add(
        self, kind: str, text: str, names: Sequence = (), severity="error", key="", left_out=""
    ) -> None:
        """Note what is wrong, at an option (`key`: ".ann_file"); `names`: all that it holds for."""
        text, count = f"{self.where}{key}: {text}", len(names) or 1
        found = Finding(severity, kind, self.where, text, count, tuple(names), left_out)
        self.report.findings.append(found)

    def judge(self, table: Rules, cases: Mapping[str, Sequence], place: str, **said: Any) -> None:
        """Note what a table says of each kind that has cases (names), in a folder or file.

        `said`: how many were looked at, by noun, and what else the rules have places for.
        """
        for kind, (severity, noun, *words) in table.items():
            if names := tuple(map(str, cases.get(kind, ()))):
                what, effect, *left_out = (one.format(**said) for one in words)
                text = f"{len(names)} of {number(said[noun], noun)} in {place!r} {what}, e.g. "
                text += f"{some(names, 3)}: {effect}"
                key = ".metainfo.classes" if noun == "class" else ""
                out = f"{number(len(names), noun)} {left_out[0]}" if left_out else ""
                self.add(kind.partition("/")[0], text, names, severity, key, out)

    def missing(self, key: str, path: str, what: str) -> None:
        """Note that a file or folder is not there, which an option names."""
        text = f"no {what} {path!r} (seen from {os.getcwd()!r}): put the data there, or set "
        text += f"{self.where}{key} in the config or by --cfg-options{hint(path)}"
        self.add("missing", text, key=key)

    def has_folder(self, key: str, path: str, what: str) -> bool:
        """Whether a folder is there, after noting that it is not."""
        if not os.path.isdir(path):
            self.missing(key, path, what)
        return os.path.isdir(path)

    def absent(self, key: str, names: list[str], path: str, folder: str) -> list[str]:
        """Those of the names in the file `path` that are not in a folder, after noting them."""
        there = {entry.name for entry in entries(folder)}  # one listing, as look-ups are slow
        gone = [name for name in names if name not in there]
        gone = [x for x in gone if not ("/" in x and os.path.isfile(os.path.join(folder, x)))]
        if gone:
            inside, base = os.path.split(os.path.join(folder, gone[0]))
            beside = os.listdir(inside) if os.path.isdir(inside) else []
            other = [x for x in beside if x.lower() == base.lower()]
            advice = f"; there is {other[0]!r}: upper and lower case differ" if other else ""
            if windows := sum("\\" in name for name in gone):
                advice = f"; {windows} have backslashes, as on Windows: write / for \\ in {path!r}"
            text = f"{len(gone)} of the {len(names)} images in {path!r} are not in {folder!r}, "
            text += f"e.g. {gone[0]!r}{advice or hint(folder)}"
            self.add("missing", text, gone, key=key)
        return gone

    def not_taken(self, folder: str, names: list[str], why: str) -> None:
        """Note the files in a folder that the data set leaves out, if there are any."""
        if names:
            what = f"{number(len(names), 'file')} in {folder!r} {why}"
            text = f"{what}, e.g. {some(names, 3)}: {self.cfg.default_scope} leaves them out; "
            text += "rename or convert them, or take them away"
            self.add("not-taken", text, names, "warning", left_out=what)

    def lines(self) -> list[str]:
        """The lines of an `ann_file`, split as the libraries do; none after noting the problem."""
        path, kind = self.path(self.ann_file), "list"
        if not os.path.isfile(path):
            self.missing(".ann_file", path, "list of images")
            return []
        try:
            if lines := list_from_file(path):
                return lines
            kind, fault = "no-images", "is empty: list the images in it, one a line"
        except UnicodeDecodeError as error:
            fault = f"is not UTF-8 ({error}): save it as UTF-8"
        except OSError as error:
            fault = f"cannot be read ({error}): correct its permissions"
        self.add(kind, f"{path!r} {fault}", key=".ann_file")
        return []


def hint(path: str) -> str:
    """How to make the data at a path, where this project does."""
    made = "digits" in Path(path).parts
    return "; the built-in digits are made by `python tools/data/make_digits.py`" if made else ""


def class_of(entry: dict, scope: str | None, registry: Registry = DATASETS) -> Any:
    """The class of a config's entry, whose `type` may be text; None if it is unknown."""
    kind = entry.get("type")
    if isinstance(kind, str):
        with registry.switch_scope_and_registry(scope) as found:
            return found.get(kind)
    return kind


def base_of(kind: Any, name: str, *methods: str) -> type | None:
    """The base of a name that a class is built on, if it has these methods of that base."""
    base = next((x for x in getattr(kind, "__mro__", ()) if x.__name__ == name), None)
    same = all(getattr(kind, x, None) is getattr(base, x, None) for x in methods)
    return base if same else None


def classes_of(dataset: dict, kind: type) -> tuple[str, ...] | str:
    """The classes a data set will have, in label order; () where its folders decide.

    Text, with which the libraries go on letter by letter, stays what it is.
    """
    given = dataset.get("metainfo") or {}
    if dataset.get("classes") is not None:  # mmpretrain's short form
        given = {"classes": dataset["classes"], **given}
    classes = kind._load_metainfo(given).get("classes") or ()
    return classes if isinstance(classes, str) else tuple(classes)


def image_loader(pipeline: Any) -> tuple[str, str | None]:
    """`color_type` and `imdecode_backend` of a pipeline's `LoadImageFromFile`, or what reads it."""
    # the second is of the forks' mmseg
    for name, backend in (("LoadTiff", "tifffile"), ("LoadImageFromNpyFile", "numpy")):
        if transform(pipeline, name):
            return "unchanged", backend
    load = transform(pipeline, "LoadImageFromFile")
    return load.get("color_type", "color"), load.get("imdecode_backend", "cv2")


def turns(flag: str, backend: str | None) -> bool:
    """Whether a loader of mmcv follows the EXIF orientation."""
    return flag in ("color", "grayscale") and backend in (None, "cv2", "pillow")


def has_own_transform(entry: Any, scope: str | None) -> bool:
    """Whether a data set, or a part of its config, has a transform that is no library's."""
    steps = [one[k] for _, one in walk("", entry) for k in ("pipeline", "transforms") if k in one]
    steps = [x for value in steps for x in (value if isinstance(value, list | tuple) else [value])]
    return not all(isinstance(x, list | tuple) or keeps_numbers(x, scope) for x in steps)


def keeps_numbers(step: Any, scope: str | None) -> bool:
    """Whether a transform (or its config) is one of the libraries' or ours."""
    kind = class_of(step, scope, TRANSFORMS) if isinstance(step, dict) else type(step)
    return getattr(kind, "__module__", "").partition(".")[0] in _KEEP_NUMBERS
