"""Findings of the quick check, and what its parts share."""

import os
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from mmengine.fileio import list_from_file
from mmengine.registry import MODELS

from ..model import part_name, parts
from .findings import Finding, absent, finding, hint, number, some
from .options import Listing

_HEADS = ("head", "bbox_head", "mask_head", "decode_head", "auxiliary_head")


class Report:
    """What the checks of one config's data sets have found so far.

    Args:
        cfg: The whole config.
        sample: How many label maps of a data set to read; 0 where all are read later.
        coco: Takes the content of annotation files, or what is wrong with them.

    Attributes:
        findings: What is wrong, left out, or worth a note.
        listings: The files of each data set, as far as they are there.
        classes: Data set -> its classes, in label order.
        ann_files: Split -> the annotation files of its loader.
        num_classes: (key, value) of every `num_classes` of the model.
    """

    def __init__(self, cfg: Config, sample: int, coco: dict[str, dict | str] | None = None) -> None:
        self.cfg, self.sample = cfg, sample
        self.coco = {} if coco is None else coco
        self.findings: list[Finding] = []
        self.listings: list[Listing] = []
        self.classes: dict[str, tuple[str, ...]] = {}
        self.ann_files: dict[str, list[str]] = {}
        self.num_classes = list(_num_classes(cfg.get("model")))

    def error(self, where: str, kind: str, text: str, names: list[str] | None = None) -> None:
        """Note what cannot be trained on; `names`: all that it holds for."""
        self.findings.append(finding("error", kind, where, text, names or ()))

    def warning(self, where: str, kind: str, text: str, names: list[str] | None = None) -> None:
        """Note what a library changes or leaves out, or what is not certain."""
        self.findings.append(finding("warning", kind, where, text, names or ()))

    def missing(self, where: str, key: str, path: str, what: str) -> None:
        """Note that a file or folder is not there; `key`: the option that names it."""
        self.error(
            where,
            "missing",
            f"{where}.{key}: no {what} {path!r} (seen from {os.getcwd()!r}): put the data there, "
            f"or set {where}.{key} in the config or by --cfg-options{hint(path)}",
        )

    def absent(self, where: str, key: str, names: list[str], path: str, folder: str) -> list[str]:
        """Those of the names in the file `path` that are not in a folder, after noting them."""
        gone = absent(names, folder)
        if gone:
            windows = [name for name in gone if "\\" in name]
            advice = hint(folder)
            if windows:
                advice = (
                    f"; {len(windows)} have backslashes, as on Windows: write / for \\ in {path!r}"
                )
            elif other := _in_other_case(gone[0], folder):
                advice = f"; there is {other!r}: upper and lower case differ here"
            text = (
                f"{where}.{key}: {len(gone)} of the {len(names)} images in {path!r} are not in "
                f"{folder!r}, e.g. {gone[0]!r}{advice}"
            )
            self.error(where, "missing", text, gone)
        return gone

    def not_taken(self, where: str, folder: str, names: list[str], why: str) -> None:
        """Note the files in a folder that a data set leaves out, if there are any."""
        if names:
            what = f"{number(len(names), 'file')} in {folder!r} {why}"
            text = (
                f"{where}: {what}, e.g. {some(names, 3)}: {self.cfg.default_scope} leaves them "
                "out; rename or convert them, or take them away"
            )
            found = Finding("warning", "not-taken", where, text, len(names), tuple(names), what)
            self.findings.append(found)

    def lines_of(self, where: str, path: str) -> list[str]:
        """The lines of an `ann_file`, split as the libraries do; none after noting the problem."""
        if not os.path.isfile(path):
            self.missing(where, "ann_file", path, "list of images")
            return []
        fault = ""
        try:
            lines = list_from_file(path)
        except UnicodeDecodeError as error:
            lines, fault = [], f": {path!r} is not UTF-8 ({error}): save it as UTF-8"
        except OSError as error:
            lines, fault = [], f" cannot be read ({error}): correct its permissions"
        if fault:
            self.error(where, "list", f"{where}.ann_file{fault}")
        elif not lines:
            advice = "list the images in it, one a line"
            self.error(where, "no-images", f"{where}.ann_file: {path!r} is empty: {advice}")
        return lines


def _in_other_case(name: str, folder: str) -> str:
    """The file of a name whose letters differ in nothing but their case; "" if there is none."""
    path = os.path.join(folder, name)
    inside = os.path.dirname(path)
    names = os.listdir(inside) if os.path.isdir(inside) else []
    return next((x for x in names if x.lower() == os.path.basename(path).lower()), "")


def _has_own_labels(head: dict) -> bool:
    """Whether a head of mmseg computes what it learns, such as edges, from the label maps."""
    kind = head.get("type")
    if isinstance(kind, str):
        with MODELS.switch_scope_and_registry("mmseg") as registry:
            kind = registry.get(kind) if kind in registry.module_dict else None
    bases = [base for base in getattr(kind, "__mro__", ()) if base.__name__ == "FCNHead"]
    return bool(bases) and kind.loss_by_feat is not bases[0].loss_by_feat


def _num_classes(model: Any) -> Iterator[tuple[str, int]]:
    """`(key, value)` of every `num_classes` of a model's heads and of its preprocessor."""
    for where, part in parts("model", model):
        wanted = part_name(where) in (*_HEADS, "data_preprocessor") and not _has_own_labels(part)
        if wanted and part.get("num_classes") is not None:
            yield f"{where}.num_classes", part["num_classes"]
