"""Checks that the data a config names is there and fits the model, before anything is built.

The libraries notice most of these mistakes late, far from their cause, or never: mmdet drops the
annotations of classes it does not find and trains on what is left.
"""

import inspect
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS
from PIL import Image, UnidentifiedImageError

from .model_check import part_name, parts

_HEADS = ("head", "bbox_head", "mask_head", "decode_head", "auxiliary_head")
_DIGITS = "python tools/data/make_digits.py"
_IGNORED = 255  # mmseg's value of a pixel without a label
_LABEL_MAPS = 20  # read of each loader: wrong numbering shows in most of them


class DataError(ValueError):
    """The data does not fit the config; the message lists everything that is wrong."""


def check_data(cfg: Config, splits: tuple[str, ...] = ("train", "val", "test")) -> None:
    """Check the folders, annotation files and classes of a config's data loaders.

    Each annotation file is read once, and of each loader a few label maps; no image is opened.
    Data sets of classes unknown here and data that is not in local files are left to the libraries.

    Args:
        cfg: A whole mmdet, mmseg or mmpretrain config with `default_scope`.
        splits: Which of `{split}_dataloader` and `{split}_evaluator` to check.

    Raises:
        DataError: one line for each problem: which loader, what is wrong, where, what to do.
    """
    check = _Check(cfg)
    for split in splits:
        loader = cfg.get(f"{split}_dataloader")
        if loader is None:
            continue
        for where, dataset in leaves(f"{split}_dataloader.dataset", loader.get("dataset")):
            check.dataset(where, dataset)
        check.evaluators(split)
    check.classes_agree()
    if check.problems:
        lines = "".join(f"\n  - {problem}" for problem in dict.fromkeys(check.problems))
        raise DataError(f"the data does not fit the config:{lines}")


def leaves(where: str, dataset: Any) -> Iterator[tuple[str, dict]]:
    """The data sets inside wrappers (RepeatDataset, ConcatDataset, lists...).

    Args:
        where: Key of `dataset` in its config.
        dataset: A data set's config, wrapped or not, or a list of them.

    Yields:
        (key in the config, data set's config).
    """
    if isinstance(dataset, list | tuple):
        for i, one in enumerate(dataset):
            yield from leaves(f"{where}.{i}", one)
    elif isinstance(dataset, dict):
        inner = [k for k in ("dataset", "datasets") if isinstance(dataset.get(k), dict | list)]
        for key in inner:
            yield from leaves(f"{where}.{key}", dataset[key])
        if not inner:
            yield where, dataset


class _Check:
    """Collects problems over all loaders of one config."""

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg
        self.problems: list[str] = []
        self.classes: dict[str, tuple[str, ...]] = {}  # loader -> its classes, in label order
        self.files: dict[str, list[str]] = {}  # split -> annotation files of its loader
        self.coco: dict[str, dict | str] = {}  # annotation file -> contents or what is wrong
        self.num_classes = list(_num_classes(cfg.get("model")))

    def dataset(self, where: str, dataset: dict) -> None:
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
            self.coco_dataset(where, dataset, kind, root)
        elif "BaseSegDataset" in families:
            self.seg_dataset(where, dataset, kind, root)
        elif "CustomDataset" in families:
            self.folder_dataset(where, dataset, kind, root)

    # COCO ------------------------------------------------------------------------------------

    def coco_dataset(self, where: str, dataset: dict, kind: type, root: str) -> None:
        classes = _classes(dataset, kind)
        self.classes[where] = classes
        images = _join(root, (dataset.get("data_prefix") or {}).get("img", ""))
        folder_there = os.path.isdir(images)
        if not folder_there:
            self.missing(where, "data_prefix.img", images, "image folder")

        ann_file = _join(root, dataset.get("ann_file", ""))
        self.files.setdefault(where.partition("_")[0], []).append(ann_file)
        content = self.read_coco(where + ".ann_file", ann_file)
        if content is None:
            return
        names = content["images"]
        if not names:
            self.problems.append(f"{where}: {ann_file!r} lists no image")
        elif folder_there:
            self.listed_images(where, names, images, ann_file)
        self.coco_classes(where, classes, content["categories"], ann_file)
        self.coco_numbers(where, content, ann_file)

    def read_coco(self, where: str, path: str) -> dict | None:
        """What `_read_coco` finds in a file, or None after noting the problem."""
        real = os.path.realpath(path)
        if real not in self.coco:
            self.coco[real] = _read_coco(path)
        content = self.coco[real]
        if isinstance(content, dict):
            return content
        self.problems.append(f"{where}: {path!r} {content}{_hint(path)}")
        return None

    def listed_images(self, where: str, names: list[str], folder: str, ann_file: str) -> None:
        # One listing instead of a look-up per image, which is slow on network file systems.
        there = set(os.listdir(folder))
        gone = [
            name
            for name in names
            if name not in there and not ("/" in name and os.path.isfile(_join(folder, name)))
        ]
        if gone:
            self.problems.append(
                f"{where}.data_prefix.img: {len(gone)} of the {len(names)} images in {ann_file!r} "
                f"are not in {folder!r}, e.g. {gone[0]!r}{_hint(folder)}"
            )

    def coco_classes(
        self, where: str, classes: tuple[str, ...], categories: list[str], ann_file: str
    ) -> None:
        absent = [name for name in classes if name not in categories]
        if absent:
            self.problems.append(
                f"{where}.metainfo.classes: {len(absent)} of the {len(classes)} classes are not "
                f"among the categories of {ann_file!r} ({_some(categories)}): {_some(absent)}; "
                "mmdet would silently leave them out"
            )
        else:
            order = [name for name in categories if name in classes]
            if order != list(classes):
                self.problems.append(
                    f"{where}.metainfo.classes: {_some(classes)} are in another order in "
                    f"{ann_file!r} ({_some(order)}), and mmdet labels by the file's order: "
                    "put the classes in that order"
                )

    def coco_numbers(self, where: str, content: dict, ann_file: str) -> None:
        unlisted = content["unlisted"]
        if unlisted:
            self.problems.append(
                f"{where}.ann_file: {len(unlisted)} annotations in {ann_file!r} have a category_id "
                f"that its categories do not list, e.g. {unlisted[0]}; mmdet would silently leave "
                "them out"
            )
        if content["has_id_0"] and not where.startswith("train"):
            self.problems.append(
                f"{where}.ann_file: {ann_file!r} has an annotation with id 0, which to pycocotools "
                "means 'not matched', so that finding this object counts as a mistake: number the "
                "annotations from 1 (docs/troubleshooting.md)"
            )

    def evaluators(self, split: str) -> None:
        evaluator = self.cfg.get(f"{split}_evaluator") or []
        for metric in [evaluator] if isinstance(evaluator, dict) else evaluator:
            path = metric.get("ann_file") if isinstance(metric, dict) else None
            if not path or "://" in path:
                continue
            where = f"{split}_evaluator.ann_file"
            loaders = self.files.get(split, [])
            if self.read_coco(where, path) is not None and loaders:
                real = {os.path.realpath(file) for file in loaders}
                if os.path.realpath(path) not in real:
                    self.problems.append(
                        f"{where}: {path!r} is not the file of {split}_dataloader "
                        f"({', '.join(map(repr, loaders))}): give both the same"
                    )

    # Segmentation ----------------------------------------------------------------------------

    def seg_dataset(self, where: str, dataset: dict, kind: type, root: str) -> None:
        classes = _classes(dataset, kind)
        self.seg_classes(where, dataset, kind, classes)
        prefix = dataset.get("data_prefix") or {}
        images = _join(root, prefix.get("img_path") or "")
        if not os.path.isdir(images):
            self.missing(where, "data_prefix.img_path", images, "image folder")
            return
        suffix = _option(dataset, kind, "img_suffix")
        names = self.seg_names(where, dataset, images, suffix, root)
        if names is None or not prefix.get("seg_map_path"):
            return
        labels = _join(root, prefix["seg_map_path"])
        if not os.path.isdir(labels):
            self.missing(where, "data_prefix.seg_map_path", labels, "label folder")
            return
        seg_suffix = _option(dataset, kind, "seg_map_suffix")
        there = set(_files(labels, (seg_suffix,)))
        gone = [name + seg_suffix for name in names if name + seg_suffix not in there]
        if gone:
            self.problems.append(
                f"{where}.data_prefix.seg_map_path: {len(gone)} of {len(names)} images have no "
                f"label map in {labels!r}, e.g. {gone[0]!r}{_hint(labels)}"
            )
        elif classes:
            step = -(-len(names) // _LABEL_MAPS)
            some = [_join(labels, name + seg_suffix) for name in sorted(names)[::step]]
            self.label_maps(where, dataset, kind, classes, some)

    def seg_classes(self, where: str, dataset: dict, kind: type, classes: tuple[str, ...]) -> None:
        if not classes:
            self.problems.append(
                f"{where}: {kind.__name__} has no classes of its own: name them in metainfo=dict("
                "classes=(...), palette=[...]), in the order of the labels"
            )
            return
        self.classes[where] = classes
        own = kind.METAINFO.get("classes")
        foreign = [name for name in classes if own and name not in own]
        if foreign:
            self.problems.append(
                f"{where}.metainfo.classes: {kind.__name__} has no {_some(foreign)}: for other "
                "data use type='BaseSegDataset'"
            )
        palette = (dataset.get("metainfo") or {}).get("palette")
        if palette is not None and not own and len(palette) != len(classes):
            self.problems.append(
                f"{where}.metainfo.palette has {len(palette)} colours for {len(classes)} classes: "
                "give one (R, G, B) for each class"
            )

    def label_maps(
        self, where: str, dataset: dict, kind: type, classes: tuple[str, ...], paths: list[str]
    ) -> None:
        """See that label maps hold nothing but what the classes stand for."""
        reduced = bool(_option(dataset, kind, "reduce_zero_label"))
        own = kind.METAINFO.get("classes") or classes
        first = int(reduced)
        known = {*range(first, first + len(own)), _IGNORED, *([0] if reduced else [])}
        ignored = f"{'0 and ' if reduced else ''}{_IGNORED}: no label"
        for path in paths:
            try:
                with Image.open(path) as image:
                    labels = np.asarray(image)
            except (UnidentifiedImageError, OSError) as error:
                self.problems.append(f"{where}: label map {path!r} cannot be read: {error}")
                return
            if labels.ndim != 2:
                self.problems.append(
                    f"{where}: {path!r} is a picture of {labels.shape[2]} colour channels, but a "
                    "label map has one, whose values number the classes"
                )
                return
            foreign = [int(x) for x in np.unique(labels) if int(x) not in known]
            if foreign:
                self.problems.append(
                    f"{where}: {path!r} holds the values {_some(foreign)}, but with "
                    f"reduce_zero_label={reduced} its {len(own)} classes are {first} to "
                    f"{first + len(own) - 1} ({ignored}): correct metainfo.classes, "
                    "reduce_zero_label or the label maps"
                )
                return

    def seg_names(
        self, where: str, dataset: dict, images: str, suffix: str, root: str
    ) -> list[str] | None:
        """Names of the images without their suffix, or None after noting the problem."""
        ann_file = dataset.get("ann_file")
        if ann_file:
            path = _join(root, ann_file)
            if not os.path.isfile(path):
                self.missing(where, "ann_file", path, "list of images")
                return None
            names = Path(path).read_text().split()
            gone = [name for name in names if not os.path.isfile(_join(images, name + suffix))]
            if gone:
                self.problems.append(
                    f"{where}.ann_file: {len(gone)} of the {len(names)} images in {path!r} are not "
                    f"in {images!r}, e.g. {gone[0] + suffix!r}{_hint(images)}"
                )
                return None
        else:
            names = [name.removesuffix(suffix) for name in _files(images, (suffix,))]
        if not names:
            self.problems.append(
                f"{where}.data_prefix.img_path: no {suffix} image in {images!r}{_hint(images)}"
            )
            return None
        return names

    # Classification --------------------------------------------------------------------------

    def folder_dataset(self, where: str, dataset: dict, kind: type, root: str) -> None:
        split = dataset.get("split") or ""
        prefix = dataset.get("data_prefix") or split
        images = _join(root, prefix.get("img_path", "") if isinstance(prefix, dict) else prefix)
        classes = _classes(dataset, kind)
        if classes:
            self.classes[where] = classes
        if not os.path.isdir(images):
            self.missing(where, "data_prefix", images, "image folder")
            return
        ann_file = dataset.get("ann_file") or ""
        if not ann_file and split and os.path.isfile(_join(root, f"meta/{split}.txt")):
            ann_file = f"meta/{split}.txt"
        if ann_file:
            self.image_list(where, _join(root, ann_file))
            return
        if not dataset.get("with_label", split != "test"):
            return

        extensions = getattr(kind, "IMG_EXTENSIONS", None) or _option(dataset, kind, "extensions")
        folders = sorted(entry.name for entry in os.scandir(images) if entry.is_dir())
        if not folders:
            self.problems.append(
                f"{where}: {images!r} has no class folders ({images}/<class>/*.jpg is expected)"
                f"{_hint(images)}"
            )
            return
        empty = [f for f in folders if not any(_files(os.path.join(images, f), extensions, True))]
        if empty:
            self.problems.append(
                f"{where}: {len(empty)} of {len(folders)} class folders in {images!r} have no "
                f"image: {_some(empty)}{_hint(images)}"
            )
        if not classes:
            self.classes[where] = tuple(folders)
        elif len(classes) != len(folders):
            self.problems.append(
                f"{where}: {images!r} has {len(folders)} class folders ({_some(folders)}), but the "
                f"data set has {len(classes)} classes ({_some(classes)}): for other data than "
                f"{kind.__name__}'s own set metainfo.classes, or use type='CustomDataset'"
            )

    def image_list(self, where: str, path: str) -> None:
        """See that a file of lines `image label` has labels that the head knows."""
        if not os.path.isfile(path):
            self.missing(where, "ann_file", path, "list of images")
            return
        heads = [one for one in self.num_classes if "data_preprocessor" not in one[0]]
        if not heads:
            return
        key, count = heads[-1]
        for number, line in enumerate(Path(path).read_text().splitlines(), 1):
            label = line.strip().rpartition(" ")[2]
            if line.strip() and not (label.isdecimal() and int(label) < count):
                self.problems.append(
                    f"{where}.ann_file: line {number} of {path!r} ends in {label!r}, but with "
                    f"{key}={count} each line must end in a class number from 0 to {count - 1}"
                )
                return

    # All loaders -----------------------------------------------------------------------------

    def classes_agree(self) -> None:
        if not self.classes:
            return
        first, expected = next(iter(self.classes.items()))
        for where, classes in self.classes.items():
            if classes != expected:
                if set(classes) == set(expected):
                    difference = "the same names in another order"
                else:
                    difference = (
                        f"only there: {_some([c for c in expected if c not in classes])}; "
                        f"only here: {_some([c for c in classes if c not in expected])}"
                    )
                self.problems.append(
                    f"{where}: its {len(classes)} classes differ from the {len(expected)} of "
                    f"{first} ({difference}): give every loader the same classes"
                )
        for key, count in self.num_classes:
            if count != len(expected):
                self.problems.append(
                    f"{key} is {count}, but {first} has {len(expected)} classes "
                    f"({_some(expected)}): set it to {len(expected)}"
                )

    def missing(self, where: str, key: str, path: str, what: str) -> None:
        self.problems.append(
            f"{where}.{key}: no {what} {path!r} (seen from {os.getcwd()!r}): put the data there, "
            f"or set {where}.{key} in the config or by --cfg-options{_hint(path)}"
        )


def _read_coco(path: str) -> dict | str:
    """What counts of a COCO file, or what is wrong with it.

    Returns:
        `images` (file names), `categories` (names), `unlisted` (the category ids of annotations
        that are not among the categories) and `has_id_0` (an annotation's); or the problem.
    """
    if not os.path.isfile(path):
        return f"is no annotation file (seen from {os.getcwd()!r}): correct the path"
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        annotations = content["annotations"] if "annotations" in content else []
        listed = {category["id"] for category in content["categories"]}
        return {
            "images": [image["file_name"] for image in content["images"]],
            "categories": [category["name"] for category in content["categories"]],
            "unlisted": [x["category_id"] for x in annotations if x["category_id"] not in listed],
            "has_id_0": any(annotation["id"] == 0 for annotation in annotations),
        }
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        return f"is not a JSON file ({error})"
    except (KeyError, TypeError) as error:
        return f"is not a COCO annotation file ({type(error).__name__}: {error})"


def _classes(dataset: dict, kind: type) -> tuple[str, ...]:
    """The classes a data set will have, in label order; () where its folders decide."""
    given = dataset.get("metainfo") or {}
    if dataset.get("classes") is not None:  # mmpretrain's short form
        given = {"classes": dataset["classes"], **given}
    return tuple(kind._load_metainfo(given).get("classes") or ())


def _option(dataset: dict, kind: type, name: str, default: Any = None) -> Any:
    """An argument of a data set: from the config, else the default of the class that has it."""
    if name in dataset:
        return dataset[name]
    for base in kind.__mro__:
        parameter = inspect.signature(base.__init__).parameters.get(name)
        if parameter is not None and parameter.default is not inspect.Parameter.empty:
            return parameter.default
    return default


def _num_classes(model: Any) -> Iterator[tuple[str, int]]:
    """`(key, value)` of every `num_classes` of a model's heads and of its preprocessor."""
    for where, part in parts("model", model):
        wanted = part_name(where) in (*_HEADS, "data_preprocessor")
        if wanted and part.get("num_classes") is not None:
            yield f"{where}.num_classes", part["num_classes"]


def _files(folder: str, suffixes: tuple[str, ...], any_case: bool = False) -> Iterator[str]:
    """Files below a folder with one of the suffixes, relative to it."""
    for path, _, names in os.walk(folder, followlinks=True):
        for name in names:
            if (name.lower() if any_case else name).endswith(tuple(suffixes)):
                yield os.path.relpath(os.path.join(path, name), folder)


def _join(root: str, path: str) -> str:
    return os.path.join(root, path)


def _some(names: Any, limit: int = 5) -> str:
    names = list(names)
    more = f", ... ({len(names)} in all)" if len(names) > limit else ""
    return (", ".join(map(str, names[:limit])) or "none") + more


def _hint(path: str) -> str:
    return f"; the built-in digits are made by `{_DIGITS}`" if "digits" in Path(path).parts else ""
