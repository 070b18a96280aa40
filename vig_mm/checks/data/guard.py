"""Data pipelines that raise an error with the file's name when a sample cannot be used.

The libraries' own loading takes a half-downloaded picture for a grey one, boxes of a picture that
was turned or resized since for good, and 16-bit labels for other classes; and what fails in it
often does not name the file.
"""

import logging
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmengine.dataset import Compose
from mmengine.logging import print_log
from mmengine.runner import Runner
from PIL import UnidentifiedImageError

from vig_mm.datasets.files import some
from vig_mm.datasets.transforms.map_labels import MapLabels
from vig_mm.errors import SampleError

from .check import check_of
from .coco import SIZES, turned_by
from .data_set import keeps_numbers
from .images import FAULTS, FIX, file_fault, open_image
from .label_maps import NO_LABEL, TOO_LARGE, ignored_numbers

_VOID = frozenset({NO_LABEL})
_MMSEG = "reduce_zero_label"  # key of its samples: mmdet's label maps may hold other classes
_CHECKER = (
    "; `python tools/data/check_dataset.py CONFIG` finds all such files; train and test with "
    "--no-check do not look"
)


def guard_loaders(runner: Runner) -> None:
    """Let the data sets that a runner is going to build name their bad files."""
    build, cfg = runner.build_dataloader, getattr(runner, "cfg", None) or {}
    # every number that a part of a config ignores: the check before the run compares them
    said = [ignored_numbers(cfg, split, {}) for split in ("train", "val", "test")]
    ignored = frozenset().union(*(one | other for one, other in said))

    def build_guarded(*args, **kwargs):
        loader = build(*args, **kwargs)
        guard(loader.dataset, ignored)
        return loader

    # On the runner and not in a hook: loops may start their workers before the first hook.
    runner.build_dataloader = build_guarded


def guard(dataset: Any, ignored: frozenset[int] = _VOID, has_more: bool = False) -> None:
    """Guard the pipelines of a data set, and of those that it wraps.

    `ignored`: numbers in label maps that are no class and no mistake; `has_more`: whether a wrapper
    has transforms that may give label maps other numbers.
    """
    own = getattr(dataset, "__dict__", {})  # wrappers may show what is their data set's as theirs
    pipeline = own.get("pipeline")
    if isinstance(pipeline, Compose) and not isinstance(pipeline, GuardedPipeline):
        dataset.pipeline = GuardedPipeline(pipeline, dataset, ignored, has_more)
    elif isinstance(pipeline, list | tuple):  # of MultiImageMixDataset
        has_more = has_more or any(
            isinstance(x, MapLabels) or hasattr(x, "transforms") or not keeps_numbers(x, "")
            for x in pipeline
        )
    for one in (own.get("dataset"), own.get("_dataset"), *own.get("datasets", ())):
        if one is not None:
            guard(one, ignored, has_more)


class GuardedPipeline(Compose):
    """A pipeline whose loading transforms raise `SampleError`; the arguments are as of `guard`."""

    def __init__(self, pipeline: Compose, dataset: Any, ignored=_VOID, has_more=False) -> None:
        self.transforms = pipeline.transforms
        classes = getattr(dataset, "metainfo", {}).get("classes") or ()
        self._num_classes = 0 if has_more else len(classes)
        self._ignored = sorted(ignored | {getattr(dataset, "ignore_index", NO_LABEL)})
        self._advice = _CHECKER if check_of(type(dataset)) else ""

    def __call__(self, data: dict) -> dict | None:
        try:
            for transform in self.transforms:
                if type(transform).__name__.startswith("Pack"):
                    self._check_labels(data)
                data = _run(transform, data)
                if data is None:
                    return None
            self._check_labels(data)  # where a wrapper packs them
            return data
        except SampleError as error:
            raise SampleError(f"{error}{self._advice}") from error

    def _check_labels(self, data: dict) -> None:
        """See that a label map holds classes, and numbers that are ignored, alone."""
        labels, count = data.get("gt_seg_map"), self._num_classes
        if labels is None or not count or _MMSEG not in data:
            return
        path = data["seg_map_path"]
        if labels.ndim != 2:
            raise SampleError(
                f"{path!r} is a picture of {labels.shape[-1]} colour channels, but a label map has "
                "one, whose values number the classes; give each colour its number by "
                "vig_mm.MapLabels"
            )
        stray = labels[(labels >= count) & ~np.isin(labels, self._ignored)]
        if len(stray):
            raise SampleError(
                f"{path!r} holds labels of no class: {some(np.unique(stray))} as they are loaded, "
                f"and the {count} classes are 0 to {count - 1} "
                f"({', '.join(map(str, self._ignored))}: no label); correct metainfo.classes, "
                "reduce_zero_label or the label map, or give it other numbers by vig_mm.MapLabels"
            )


def _run(transform: Callable, data: dict) -> dict | None:
    """Let a transform do its work, and look at what it loads."""
    name, is_image = type(transform).__name__, isinstance(transform, LoadImageFromFile)
    is_labels = name == "LoadAnnotations" and _MMSEG in data
    if not (is_image or name.startswith("Load") or isinstance(transform, MapLabels)):
        return transform(data)
    path = data.get("seg_map_path" if is_labels or name == "MapLabels" else "img_path")
    is_local = isinstance(path, str | os.PathLike) and "://" not in str(path)
    try:
        fault = file_fault(path) if is_local and (is_image or is_labels) else None
        if fault and fault != "unreadable":  # the loader tells why
            raise SampleError(f"{path!r} {FAULTS[fault]}; {FIX}")
        try:
            data = transform(data)
        except Exception as error:  # whatever a decoder raises
            what = " ".join(f"{type(error).__name__}: {error}".split())
            raise SampleError(
                f"{path!r}: {name} failed ({what}); correct the file or its annotations, or take "
                "it out of the data set"
            ) from error
        reason = f"{path!r} cannot be read"
    except SampleError as error:
        if not (is_image and transform.ignore_empty):
            raise
        data, reason = None, str(error)
    if is_image and data is None:
        print_log(f"ignore_empty: another sample for {reason}", "current", logging.WARNING)
    elif is_image:
        _refuse_other_size(data)
    elif is_labels:
        _refuse_label_map(data, path if is_local else None)
    return data


def _refuse_other_size(data: dict) -> None:
    """See that the picture has the size that its annotations are for, if they say one."""
    annotated, loaded = (data.get("height"), data.get("width")), tuple(data["ori_shape"])
    if None in annotated or annotated == loaded:
        return
    kind, turned = "size", ""
    if annotated == loaded[::-1]:
        boxes = [one["bbox"] for one in data.get("instances") or () if "bbox" in one]
        kind, turned = turned_by(boxes, annotated[::-1]), " (turned by its EXIF orientation?)"
    raise SampleError(
        f"{data['img_path']!r} is loaded as {loaded[1]}x{loaded[0]} pixels{turned}, but its "
        f"annotations are for {annotated[1]}x{annotated[0]}: {SIZES[kind]}"
    )


def _refuse_label_map(data: dict, path: str | None) -> None:
    """See that a label map has 8 bits and its picture's size."""
    try:
        if path is not None:  # of the file, for mmseg has cast what it loaded to 8 bits
            with open_image(path) as image:
                largest = int(np.asarray(image).max()) if image.mode.startswith("I") else 0
            if largest >= TOO_LARGE:
                raise SampleError(
                    f"{path!r} holds the value {largest}, and mmseg cuts label maps to 8 bits, "
                    "which makes another class of it; renumber the label maps"
                )
    except UnidentifiedImageError:
        pass  # the loader knows more formats
    shape = data["gt_seg_map"].shape[:2]
    image = tuple(data.get("ori_shape", shape))
    if shape != image:
        raise SampleError(
            f"{data['seg_map_path']!r} is {shape[1]}x{shape[0]} pixels, but its image is loaded as "
            f"{image[1]}x{image[0]}; write it in the image's size"
        )
