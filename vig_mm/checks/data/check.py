"""Check of all data loaders of a config: quick, before a run, and in full."""

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS

from vig_mm.datasets.files import some
from vig_mm.errors import DataError

from ..config import leaves, part_name
from ..model import parts
from . import coco, folders, images, label_maps
from .data_set import DataSet, Finding, Report, base_of, class_of, classes_of
from .images import ImageFacts, image_facts

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
_HEADS = ("head", "bbox_head", "mask_head", "decode_head", "auxiliary_head", "data_preprocessor")
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
        Lines for the log: grave warnings, and what a library leaves out of a data set.

    Raises:
        DataError: One line for each problem: which loader, what is wrong, where, what to do.
    """
    found = DataCheck(cfg, splits, read=read).findings
    if errors := dict.fromkeys(one.text for one in found if one.severity == "error"):
        raise DataError.of("the data does not fit the config", errors)
    left_out: dict[str, list[str]] = {}
    for one in found:
        if one.left_out:
            left_out.setdefault(one.where, []).append(one.left_out)
    said = dict.fromkeys(x.text for x in found if x.severity == "warning" and x.kind in _SAID)
    by, full = f"{cfg.get('default_scope')} leaves out", "(tools/data/check_dataset.py names them)"
    return [*said, *(f"{where}: {by} {'; '.join(what)} {full}" for where, what in left_out.items())]


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
        super().__init__(cfg, sample, {} if read is None else read)
        self.num_classes += _num_classes(cfg)
        for split in splits:
            loader = cfg.get(f"{split}_dataloader")
            if loader is None:
                continue
            for where, entry in leaves(f"{split}_dataloader.dataset", loader.get("dataset")):
                data = DataSet(self, where, entry, class_of(entry, cfg.get("default_scope")))
                if why := _why_not(data):
                    data.add("not-checked", f"not checked: {why}", severity="note")
                else:
                    _check(data)
            coco.check_evaluators(self, split)
        # models that take the names as text have no outputs of their own for them
        if self.classes and "language_model" not in (cfg.get("model") or {}):
            self._classes_agree()

    def _classes_agree(self) -> None:
        first, expected = next(iter(self.classes.items()))
        scope, model = self.cfg.get("default_scope"), self.cfg.get("model") or {}
        for where, classes in self.classes.items():
            if classes == expected:
                continue
            both = ((expected, classes), (classes, expected))
            there, here = (some([x for x in one if x not in other]) for one, other in both)
            difference = f"only there: {there}; only here: {here}"
            if set(classes) == set(expected):
                difference = "the same names in another order"
            text = f"its {len(classes)} classes differ from the {len(expected)} of {first} "
            text += f"({difference}): give every loader the same classes"
            # mmseg uses a training set's names for nothing: its label maps decide
            severity = "warning" if scope == "mmseg" else "error"
            found = Finding(severity, "classes-differ", where, f"{where}: {text}")
            self.findings.append(found)
        for key, count in self.num_classes:
            if count == len(expected):
                continue
            # outputs without a class train and score all the same, but for mmdet's metrics,
            # which look up the class of every box
            spare = count > len(expected) and scope != "mmdet"
            # the preprocessor needs the number to make vectors of labels alone, as of mixed ones
            preprocessor = model.get("data_preprocessor") or {}
            vectors = (model.get("train_cfg") or {}).get("augments")
            vectors = vectors or any(preprocessor.get(x) for x in ("batch_augments", "to_onehot"))
            spare |= "data_preprocessor" in key and not vectors
            spare |= scope == "mmseg" and count in map(len, self.classes.values())
            text = f"{key} is {count}, but {first} has {len(expected)} classes ({some(expected)}): "
            text += f"set it to {len(expected)}"
            severity = "warning" if spare else "error"
            self.findings.append(Finding(severity, "num-classes", first, text))

    def survey(self, run: Run) -> None:
        """Read every image, label map and annotation, and add what is wrong with them."""
        every: list[tuple[DataSet, list[ImageFacts]]] = []
        read: dict[tuple, ImageFacts] = {}  # loaders often share their files
        for data in self.listings:
            function = partial(image_facts, flag=data.flag, backend=data.backend)
            keys = [(os.path.join(data.folder, x), data.flag, data.backend) for x in data.names]
            new = [key[0] for key in keys if key not in read]
            for facts in run(f"images of {data.where}", function, new):
                read[facts.path, data.flag, data.backend] = facts
            every.append((data, [read[key] for key in keys]))
            images.survey(*every[-1])
            if data.content is not None:
                coco.survey(*every[-1], run)
            elif data.label_folder:
                label_maps.survey(*every[-1], run)
        images.duplicates(every)


def _why_not(data: DataSet) -> str:
    """Why a data set is not read, if it is not."""
    if not inspect.isclass(data.kind):
        return f"the type {data.entry.get('type')!r} is not known"
    prefix = data.entry.get("data_prefix") or ""
    prefixes = prefix.values() if isinstance(prefix, dict) else [prefix]
    paths = [data.root, data.ann_file, *prefixes]
    if data.entry.get("backend_args") or any("://" in str(path) for path in paths):
        return "its files are not on this machine"
    own = "finds its files in a way of its own, and nothing of it was read"
    return "" if check_of(data.kind) else f"{data.kind.__name__} {own}"


def _check(data: DataSet) -> None:
    classes = classes_of(data.entry, data.kind)
    if isinstance(classes, str):
        said = f"its classes are text, {classes!r}, and a list of names is needed"
        if "," in classes:
            meant = ", ".join(repr(one.strip()) for one in classes.split(","))
            data.add("class-text", f"{said}: write ({meant})")
            return
        text = f"{said}: a comma makes one of it, ({classes!r},)"
        data.add("class-text", text, severity="warning")
        classes = (classes,)
    if classes:
        data.report.classes[data.where] = classes
    if not data.root or data.has_folder(".data_root", data.root, "folder"):
        check_of(data.kind)(data)


def check_of(kind: type) -> Callable | None:
    """The check for a data set's class, if it finds its files as the base does."""
    found = (check for name, (check, how) in _CHECKS.items() if base_of(kind, name, *how))
    return next(found, None)


def _num_classes(cfg: Config) -> Iterator[tuple[str, int]]:
    """`(key, value)` of every `num_classes` of a model's heads and of its preprocessor."""
    for where, part in parts(cfg.get("model")):
        if part_name(where) in _HEADS and part.get("num_classes") is not None:
            # a head of mmseg may compute what it learns, such as edges, from the label maps
            kind = class_of(part, cfg.get("default_scope"), MODELS)
            if not base_of(kind, "FCNHead") or base_of(kind, "FCNHead", "loss_by_feat"):
                yield f"{where}.num_classes", part["num_classes"]
