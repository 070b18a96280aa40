"""Check of all data loaders of a config: quick, before a run, and in full."""

import inspect
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from mmengine.config import Config

from vig_mm.errors import DataError

from ..config import leaves
from . import coco, folders, images, label_maps
from .findings import Finding, finding, some
from .images import ImageFacts, image_facts
from .options import Listing, class_of, classes_of
from .report import Report

# Base of a data set's class -> its check, and the methods by which the base finds its files. A
# class with others of its own may read what the check does not know, and is left to the library.
_CHECKS = {
    "CocoDataset": (coco.check, ("load_data_list", "parse_data_info")),
    "BaseSegDataset": (label_maps.check, ("load_data_list",)),
    "CustomDataset": (folders.check, ("load_data_list", "_find_samples")),
}
# Kinds of warnings that a run begins with: what the checks cannot decide, and what costs a day.
_SAID = ("label-undecided", "two-values", "unused-class", "classes-differ", "num-classes",
         "empty-class", "area", "rotated", "seg-pad")  # fmt: skip
_LABEL_MAPS = 20  # read of each loader: wrong numbering shows in most of them

# `run(stage, function, items)`: the function's value for each item, in order. The function and the
# items can be pickled, so that other processes may do it.
Run = Callable[[str, Callable[[Any], Any], Sequence[Any]], Iterable[Any]]


def check_data(
    cfg: Config,
    splits: tuple[str, ...] = ("train", "val", "test"),
    read: dict[str, dict | str] | None = None,
) -> list[str]:
    """Check the folders, annotation files and classes of a config's data loaders; change nothing.

    Each annotation file is read once, and of each loader a few label maps; no image is opened.
    Data sets of classes unknown here and data that is not in local files are left to the libraries.

    Args:
        cfg: A whole mmdet, mmseg or mmpretrain config with `default_scope`.
        splits: Which of `{split}_dataloader` and `{split}_evaluator` to check.
        read: Takes what annotation files hold, for `repair`.

    Returns:
        For the log, one line for each grave warning, and for each data set of which the library
        leaves something out.

    Raises:
        DataError: One line for each problem: which loader, what is wrong, where, what to do.
    """
    check = DataCheck(cfg, splits, read=read)
    errors = [one.text for one in check.findings if one.severity == "error"]
    if errors:
        lines = "".join(f"\n  - {problem}" for problem in dict.fromkeys(errors))
        raise DataError(f"the data does not fit the config:{lines}")
    warnings = [x.text for x in check.findings if x.severity == "warning" and x.kind in _SAID]
    left_out: dict[str, list[str]] = {}
    for one in check.findings:
        if one.left_out:
            left_out.setdefault(one.where, []).append(one.left_out)
    return list(dict.fromkeys(warnings)) + [
        f"{where}: {cfg.default_scope} leaves out {'; '.join(what)} "
        "(tools/data/check_dataset.py names them)"
        for where, what in left_out.items()
    ]


class DataCheck(Report):
    """The findings over all loaders of one config."""

    def __init__(
        self,
        cfg: Config,
        splits: tuple[str, ...],
        sample: int = _LABEL_MAPS,
        read: dict[str, dict | str] | None = None,
    ) -> None:
        """See `check_data` and `Report`."""
        super().__init__(cfg, sample, read)
        for split in splits:
            loader = cfg.get(f"{split}_dataloader")
            if loader is None:
                continue
            for where, dataset in leaves(f"{split}_dataloader.dataset", loader.get("dataset")):
                if why := self._dataset(where, dataset):
                    text = f"{where}: not checked: {why}"
                    self.findings.append(finding("note", "not-checked", where, text))
            coco.check_evaluators(self, split)
        self._classes_agree()

    def _dataset(self, where: str, dataset: dict) -> str:
        """Check a data set; why it is not read, if it is not."""
        kind = class_of(dataset, self.cfg.get("default_scope"))
        if not inspect.isclass(kind):
            return f"the type {dataset.get('type')!r} is not known"
        if _is_remote(dataset):
            return "its files are not on this machine"
        check = check_of(kind)
        if check is None:
            return (
                f"{kind.__name__} finds its files in a way of its own, and nothing of it was read"
            )
        classes = classes_of(dataset, kind)
        if isinstance(classes, str):
            meant = ", ".join(repr(one.strip()) for one in classes.split(","))
            said = f"{where}: its classes are text, {classes!r}, and a list of names is needed"
            if "," in classes:
                self.error(where, "class-text", f"{said}: write ({meant})")
                return ""
            self.warning(where, "class-text", f"{said}: a comma makes one of it, ({meant},)")
            classes = (classes,)
        if classes:
            self.classes[where] = classes
        root = dataset.get("data_root") or ""
        if root and not os.path.isdir(root):
            self.missing(where, "data_root", root, "folder")
        else:
            check(self, where, dataset, kind, root)
        return ""

    def _classes_agree(self) -> None:
        # models that take the names as text have no outputs of their own for them
        if not self.classes or "language_model" in (self.cfg.get("model") or {}):
            return
        first, expected = next(iter(self.classes.items()))
        # mmseg uses a training set's names for nothing: its label maps decide
        scope = self.cfg.get("default_scope")
        differing = self.warning if scope == "mmseg" else self.error
        for where, classes in self.classes.items():
            if classes == expected:
                continue
            difference = "the same names in another order"
            if set(classes) != set(expected):
                difference = (
                    f"only there: {some([c for c in expected if c not in classes])}; "
                    f"only here: {some([c for c in classes if c not in expected])}"
                )
            text = (
                f"{where}: its {len(classes)} classes differ from the {len(expected)} of "
                f"{first} ({difference}): give every loader the same classes"
            )
            differing(where, "classes-differ", text)
        for key, count in self.num_classes:
            if count == len(expected):
                continue
            # outputs without a class train and score all the same, but for mmdet's metrics,
            # which look up the class of every box
            spare = count > len(expected) and scope != "mmdet"
            # the preprocessor needs the number to make vectors of labels alone
            spare |= "data_preprocessor" in key and not _has_vector_labels(self.cfg.model)
            other = any(count == len(classes) for classes in self.classes.values())
            note = self.warning if spare or (other and scope == "mmseg") else self.error
            text = (
                f"{key} is {count}, but {first} has {len(expected)} classes "
                f"({some(expected)}): set it to {len(expected)}"
            )
            note(first, "num-classes", text)


def survey(listings: Sequence[Listing], run: Run) -> list[Finding]:
    """Read every image, label map and annotation.

    Args:
        listings: Of `DataCheck`, which has found what needs no reading.
        run: Maps a function over files.
    """
    found: list[Finding] = []
    every: list[tuple[Listing, list[ImageFacts]]] = []
    read: dict[tuple, ImageFacts] = {}  # loaders often share their files
    for listing in listings:
        how = (listing.flag, listing.backend)
        paths = [os.path.join(listing.folder, name) for name in listing.names]
        new = [path for path in paths if (path, *how) not in read]
        function = partial(image_facts, flag=listing.flag, backend=listing.backend)
        for facts in run(f"images of {listing.where}", function, new):
            read[(facts.path, *how)] = facts
        facts_of = [read[(path, *how)] for path in paths]
        every.append((listing, facts_of))
        found += images.survey(listing, facts_of)
        if listing.content is not None:
            found += coco.survey(listing, facts_of, run)
        elif listing.label_folder:
            found += label_maps.survey(listing, facts_of, run)
    return found + list(images.duplicates(every))


def check_of(kind: type) -> Callable | None:
    """The check for a data set's class, if it finds its files as the base does."""
    for base in kind.__mro__:
        if base.__name__ in _CHECKS:
            check, methods = _CHECKS[base.__name__]
            same = all(getattr(kind, x, None) is getattr(base, x, None) for x in methods)
            return check if same else None
    return None


def _has_vector_labels(model: dict) -> bool:
    """Whether a classifier's labels are one-hot vectors, as those of mixed pictures are."""
    preprocessor = model.get("data_preprocessor") or {}
    mixed = (model.get("train_cfg") or {}).get("augments")
    return bool(mixed) or any(preprocessor.get(key) for key in ("batch_augments", "to_onehot"))


def _is_remote(dataset: dict) -> bool:
    """Whether the files of a data set are not on this machine, as far as its config tells."""
    prefix = dataset.get("data_prefix") or ""
    prefixes = prefix.values() if isinstance(prefix, dict) else [prefix]
    paths = [dataset.get("data_root"), dataset.get("ann_file"), *prefixes]
    return bool(dataset.get("backend_args")) or any("://" in str(path) for path in paths)
