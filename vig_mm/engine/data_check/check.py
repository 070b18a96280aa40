"""All loaders of a config."""

import inspect
import os
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS

from vig_mm.datasets.findings import Finding, number, some
from vig_mm.datasets.listing import Listing

from ..model_check import part_name, parts
from . import coco, folders, segmentation
from .files import DataError, hint
from .options import leaves

_HEADS = ("head", "bbox_head", "mask_head", "decode_head", "auxiliary_head")
_LABEL_MAPS = 20  # read of each loader: wrong numbering shows in most of them


def check_data(cfg: Config, splits: tuple[str, ...] = ("train", "val", "test")) -> list[str]:
    """Check the folders, annotation files and classes of a config's data loaders.

    Each annotation file is read once, and of each loader a few label maps; no image is opened.
    Data sets of classes unknown here and data that is not in local files are left to the libraries.

    Args:
        cfg: A whole mmdet, mmseg or mmpretrain config with `default_scope`.
        splits: Which of `{split}_dataloader` and `{split}_evaluator` to check.

    Returns:
        For the log, one line for each data set of which the library leaves something out.

    Raises:
        DataError: one line for each problem: which loader, what is wrong, where, what to do.
    """
    check = DataCheck(cfg, splits)
    errors = [one.text for one in check.findings if one.severity == "error"]
    if errors:
        lines = "".join(f"\n  - {problem}" for problem in dict.fromkeys(errors))
        raise DataError(f"the data does not fit the config:{lines}")
    left_out: dict[str, list[str]] = {}
    for one in check.findings:
        if one.left_out:
            left_out.setdefault(one.where, []).append(one.left_out)
    return [
        f"{where}: {cfg.default_scope} leaves out {'; '.join(what)} "
        "(tools/data/check_dataset.py names them)"
        for where, what in left_out.items()
    ]


class DataCheck:
    """The findings over all loaders of one config.

    Attributes:
        cfg: The whole config.
        findings: What is wrong, left out, or worth a note.
        listings: The files of each data set, as far as they are there.
        classes: Data set -> its classes, in label order.
        coco: Annotation file -> its content, or what is wrong with it.
        ann_files: Split -> the annotation files of its loader.
        num_classes: (key, value) of every `num_classes` of the model.
        label_maps: How many of a data set to read.
    """

    def __init__(self, cfg: Config, splits: tuple[str, ...], label_maps: int = _LABEL_MAPS) -> None:
        """See `check_data` and the attributes."""
        self.label_maps = label_maps
        self.findings: list[Finding] = []
        self.listings: list[Listing] = []
        self.classes: dict[str, tuple[str, ...]] = {}
        self.coco: dict[str, dict | str] = {}
        self.ann_files: dict[str, list[str]] = {}
        self.num_classes = list(_num_classes(cfg.get("model")))
        self.cfg = cfg
        for split in splits:
            loader = cfg.get(f"{split}_dataloader")
            if loader is None:
                continue
            for where, dataset in leaves(f"{split}_dataloader.dataset", loader.get("dataset")):
                self._dataset(where, dataset)
            coco.check_evaluators(self, split, cfg.get(f"{split}_evaluator"))
        self._classes_agree()

    def _dataset(self, where: str, dataset: dict) -> None:
        kind = dataset.get("type")
        if isinstance(kind, str):
            with DATASETS.switch_scope_and_registry(self.cfg.get("default_scope")) as registry:
                kind = registry.get(kind)
        root = dataset.get("data_root") or ""
        if not inspect.isclass(kind) or dataset.get("backend_args") or "://" in root:
            return
        if root and not os.path.isdir(root):
            self.missing(where, "data_root", root, "folder")
            return
        families = {base.__name__ for base in kind.__mro__}
        if "CocoDataset" in families:
            coco.check(self, where, dataset, kind, root)
        elif "BaseSegDataset" in families:
            segmentation.check(self, where, dataset, kind, root)
        elif "CustomDataset" in families:
            folders.check(self, where, dataset, kind, root)

    def error(self, where: str, kind: str, text: str, names: list[str] | None = None) -> None:
        """Note what cannot be trained on; `names`: all that it holds for."""
        names = names or []
        found = Finding("error", kind, where, text, len(names) or 1, tuple(names))
        self.findings.append(found)

    def missing(self, where: str, key: str, path: str, what: str) -> None:
        """Note that a file or folder is not there; `key`: the option that names it."""
        self.error(
            where,
            "missing",
            f"{where}.{key}: no {what} {path!r} (seen from {os.getcwd()!r}): put the data there, "
            f"or set {where}.{key} in the config or by --cfg-options{hint(path)}",
        )

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

    def _classes_agree(self) -> None:
        if not self.classes:
            return
        first, expected = next(iter(self.classes.items()))
        for where, classes in self.classes.items():
            if classes != expected:
                if set(classes) == set(expected):
                    difference = "the same names in another order"
                else:
                    difference = (
                        f"only there: {some([c for c in expected if c not in classes])}; "
                        f"only here: {some([c for c in classes if c not in expected])}"
                    )
                self.error(
                    where,
                    "classes-differ",
                    f"{where}: its {len(classes)} classes differ from the {len(expected)} of "
                    f"{first} ({difference}): give every loader the same classes",
                )
        for key, count in self.num_classes:
            if count != len(expected):
                self.error(
                    first,
                    "num-classes",
                    f"{key} is {count}, but {first} has {len(expected)} classes "
                    f"({some(expected)}): set it to {len(expected)}",
                )


def _num_classes(model: Any) -> Iterator[tuple[str, int]]:
    """`(key, value)` of every `num_classes` of a model's heads and of its preprocessor."""
    for where, part in parts("model", model):
        wanted = part_name(where) in (*_HEADS, "data_preprocessor")
        if wanted and part.get("num_classes") is not None:
            yield f"{where}.num_classes", part["num_classes"]
