"""Quick check of all data loaders of a config."""

import inspect
import os
from collections.abc import Callable

from mmengine.config import Config
from mmengine.registry import DATASETS

from ..files.coco_repair import repair
from ..findings import DataError, Finding, some
from . import coco, folders, segmentation
from .options import classes_of, leaves
from .report import Report

# Base of a data set's class -> its check, and the methods by which the base finds its files. A
# class with others of its own may read what the check does not know, and is left to the library.
_CHECKS = {
    "CocoDataset": (coco.check, ("load_data_list", "parse_data_info")),
    "BaseSegDataset": (segmentation.check, ("load_data_list",)),
    "CustomDataset": (folders.check, ("load_data_list", "_find_samples")),
}
# Kinds of warnings that a run begins with: what the checks cannot decide, and what costs a day.
_SAID = ("label", "two-values", "unused-class", "classes-differ", "num-classes", "empty-class")
_LABEL_MAPS = 20  # read of each loader: wrong numbering shows in most of them


def check_data(cfg: Config, splits: tuple[str, ...] = ("train", "val", "test")) -> list[str]:
    """Check the folders, annotation files and classes of a config's data loaders.

    Each annotation file is read once, and of each loader a few label maps; no image is opened.
    Data sets of classes unknown here and data that is not in local files are left to the libraries.

    Args:
        cfg: A whole mmdet, mmseg or mmpretrain config with `default_scope`. With `work_dir`, too,
            a data set's `ann_file` is replaced by a copy there where only the ids keep mmdet from
            reading it.
        splits: Which of `{split}_dataloader` and `{split}_evaluator` to check.

    Returns:
        For the log, one line for each such copy, for each grave warning, and for each data set of
        which the library leaves something out.

    Raises:
        DataError: one line for each problem: which loader, what is wrong, where, what to do.
    """
    check = DataCheck(cfg, splits)
    errors = [one.text for one in check.findings if one.severity == "error"]
    if errors:
        lines = "".join(f"\n  - {problem}" for problem in dict.fromkeys(errors))
        raise DataError(f"the data does not fit the config:{lines}")
    warnings = [x.text for x in check.findings if x.severity == "warning" and x.kind in _SAID]
    left_out: dict[str, list[str]] = {}
    for one in check.findings:
        if one.left_out:
            left_out.setdefault(one.where, []).append(one.left_out)
    return (
        _repaired(check, splits)
        + list(dict.fromkeys(warnings))
        + [
            f"{where}: {cfg.default_scope} leaves out {'; '.join(what)} "
            "(tools/data/check_dataset.py names them)"
            for where, what in left_out.items()
        ]
    )


class DataCheck(Report):
    """The findings over all loaders of one config."""

    def __init__(self, cfg: Config, splits: tuple[str, ...], label_maps: int = _LABEL_MAPS) -> None:
        """See `check_data` and `Report`."""
        super().__init__(cfg, label_maps)
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
        if not inspect.isclass(kind) or _is_remote(dataset):
            return
        check = _check_of(kind)
        if check is None:
            return
        classes = classes_of(dataset, kind)
        if classes:
            self.classes[where] = classes
        root = dataset.get("data_root") or ""
        if root and not os.path.isdir(root):
            self.missing(where, "data_root", root, "folder")
        else:
            check(self, where, dataset, kind, root)

    def _classes_agree(self) -> None:
        # models that take the names as text have no outputs of their own for them
        if not self.classes or "language_model" in (self.cfg.get("model") or {}):
            return
        first, expected = next(iter(self.classes.items()))
        # mmseg uses a training set's names for nothing: its label maps decide
        scope = self.cfg.get("default_scope")
        differing = "warning" if scope == "mmseg" else "error"
        for where, classes in self.classes.items():
            if classes != expected:
                if set(classes) == set(expected):
                    difference = "the same names in another order"
                else:
                    difference = (
                        f"only there: {some([c for c in expected if c not in classes])}; "
                        f"only here: {some([c for c in classes if c not in expected])}"
                    )
                text = (
                    f"{where}: its {len(classes)} classes differ from the {len(expected)} of "
                    f"{first} ({difference}): give every loader the same classes"
                )
                self.findings.append(Finding(differing, "classes-differ", where, text))
        for key, count in self.num_classes:
            if count != len(expected):
                # outputs without a class train and score all the same, but for mmdet's metrics,
                # which look up the class of every box
                spare = count > len(expected) and scope != "mmdet"
                # the preprocessor needs the number to make vectors of labels alone
                spare |= "data_preprocessor" in key and not _has_vector_labels(self.cfg.model)
                other = any(count == len(classes) for classes in self.classes.values())
                certain = not (spare or (other and scope == "mmseg"))
                text = (
                    f"{key} is {count}, but {first} has {len(expected)} classes "
                    f"({some(expected)}): set it to {len(expected)}"
                )
                severity = "error" if certain else "warning"
                self.findings.append(Finding(severity, "num-classes", first, text))


def _repaired(check: "DataCheck", splits: tuple[str, ...]) -> list[str]:
    """Have data sets whose annotations share ids, which mmdet refuses, read a copy; what to log."""
    cfg = check.cfg
    twice = {one.where for one in check.findings if one.kind == "annotations-id-twice"}
    lines = []
    for split in splits if twice and cfg.get("work_dir") else ():
        loader = cfg.get(f"{split}_dataloader") or {}
        for where, dataset in leaves(f"{split}_dataloader.dataset", loader.get("dataset")):
            if where in twice:
                path = os.path.join(dataset.get("data_root") or "", dataset["ann_file"])
                content = check.coco[path]
                if isinstance(content, dict):
                    lines += repair(where, dataset, path, content, cfg.work_dir, scored=False)
    return lines


def _has_vector_labels(model: dict) -> bool:
    """Whether a classifier's labels are one-hot vectors, as those of mixed pictures are."""
    options = ("batch_augments", "to_onehot")
    preprocessor = model.get("data_preprocessor") or {}
    mixed = (model.get("train_cfg") or {}).get("augments")
    return bool(mixed) or any(preprocessor.get(key) for key in options)


def _check_of(kind: type) -> Callable | None:
    """The check for a data set's class, if it finds its files as the base does."""
    for base in kind.__mro__:
        if base.__name__ in _CHECKS:
            check, methods = _CHECKS[base.__name__]
            same = all(getattr(kind, x, None) is getattr(base, x, None) for x in methods)
            return check if same else None
    return None


def _is_remote(dataset: dict) -> bool:
    """Whether the files of a data set are not on this machine, as far as its config tells."""
    prefix = dataset.get("data_prefix") or ""
    prefixes = prefix.values() if isinstance(prefix, dict) else [prefix]
    paths = [dataset.get("data_root"), dataset.get("ann_file"), *prefixes]
    return bool(dataset.get("backend_args")) or any("://" in str(path) for path in paths)
