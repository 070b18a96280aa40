"""Quick check of all data loaders of a config."""

import inspect
import os

from mmengine.config import Config
from mmengine.registry import DATASETS

from ..findings import DataError, some
from . import coco, folders, segmentation
from .options import leaves
from .report import Report

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
