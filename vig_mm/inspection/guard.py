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

from .files.images import FAULTS, FIX, file_fault, open_image
from .files.label_maps import TOO_LARGE
from .findings import DataError, some

_CHECKER = "`python tools/data/check_dataset.py CONFIG` finds all such files"
_NO_LABEL = 255


class SampleError(DataError):
    """A file of a data set that cannot be trained or tested on; the message names it."""

    def __str__(self) -> str:
        # Out of a worker it comes with a traceback before it.
        return super().__str__().rpartition(f"{type(self).__name__}: ")[2].strip()


def guard_loaders(runner: Runner) -> None:
    """Let the data sets that a runner is going to build name their bad files."""
    build = runner.build_dataloader

    def build_guarded(*args, **kwargs):
        loader = build(*args, **kwargs)
        guard(loader.dataset)
        return loader

    # On the runner and not in a hook: loops may start their workers before the first hook.
    runner.build_dataloader = build_guarded


def guard(dataset: Any) -> None:
    """Guard the pipelines of a data set, and of those that it wraps."""
    own = getattr(dataset, "__dict__", {})  # wrappers may show what is their data set's as theirs
    pipeline = own.get("pipeline")
    if isinstance(pipeline, Compose) and not isinstance(pipeline, GuardedPipeline):
        dataset.pipeline = GuardedPipeline(pipeline, dataset)
    for one in (own.get("dataset"), own.get("_dataset"), *own.get("datasets", ())):
        if one is not None:
            guard(one)


class GuardedPipeline(Compose):
    """A pipeline whose loading transforms raise `SampleError`.

    Args:
        pipeline: Its transforms are used as they are.
        dataset: Whose pipeline it is; its classes bound the values of label maps.
    """

    def __init__(self, pipeline: Compose, dataset: Any) -> None:
        self.transforms = pipeline.transforms
        self._num_classes = len(getattr(dataset, "metainfo", {}).get("classes") or ())

    def __call__(self, data: dict) -> dict | None:
        for transform in self.transforms:
            if isinstance(transform, LoadImageFromFile):
                data = self._load_image(transform, data)
            elif type(transform).__name__ == "LoadAnnotations":
                data = self._load_annotations(transform, data)
            else:
                data = transform(data)
            if data is None:
                return None
        return data

    def _load_image(self, transform: LoadImageFromFile, data: dict) -> dict | None:
        path = data.get("img_path")
        try:
            if _is_local(path):
                _refuse_fault(path)
            data = _named(transform, data, path)
        except SampleError as error:
            if not transform.ignore_empty:
                raise
            data = None
            reason = str(error)
        else:
            reason = f"{path!r} cannot be read"
        if data is None:
            print_log(f"ignore_empty: another sample for {reason}", "current", logging.WARNING)
            return None
        _refuse_other_size(data)
        return data

    def _load_annotations(self, transform: Callable, data: dict) -> dict | None:
        # mmseg's: in mmdet a map may hold other classes than the boxes
        if "reduce_zero_label" not in data:
            return _named(transform, data, data.get("img_path"))
        path = data["seg_map_path"]
        if _is_local(path):
            _refuse_fault(path)
        data = _named(transform, data, path)
        if _is_local(path):
            _refuse_large_values(path)
        _refuse_labels(data, self._num_classes)
        return data


def _named(transform: Callable, data: dict, path: Any) -> dict | None:
    try:
        return transform(data)
    except Exception as error:  # whatever a decoder raises
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise SampleError(
            f"{path!r}: {type(transform).__name__} failed ({what}); correct the file or its "
            f"annotations, or take it out of the data set; {_CHECKER}"
        ) from error


def _is_local(path: Any) -> bool:
    return isinstance(path, str | os.PathLike) and "://" not in str(path)


def _refuse_fault(path: str) -> None:
    fault = file_fault(path)
    if fault and fault != "unreadable":  # the loader tells why
        raise SampleError(f"{path!r} {FAULTS[fault]}; {FIX}; {_CHECKER}")


def _refuse_other_size(data: dict) -> None:
    """See that the picture has the size that its annotations are for, if they say one."""
    annotated = (data.get("height"), data.get("width"))
    loaded = tuple(data["ori_shape"])
    if None in annotated or annotated == loaded:
        return
    turned = " (turned by its EXIF orientation?)" if annotated == loaded[::-1] else ""
    raise SampleError(
        f"{data['img_path']!r} is loaded as {loaded[1]}x{loaded[0]} pixels{turned}, but its "
        f"annotations are for {annotated[1]}x{annotated[0]}: boxes and masks do not fit; use the "
        "picture that was annotated, correct width and height in the annotation file, or load it "
        f"unturned with LoadImageFromFile(color_type='color_ignore_orientation'); {_CHECKER}"
    )


def _refuse_large_values(path: str) -> None:
    """Of the file, for mmseg has cast what it loaded to 8 bits."""
    try:
        with open_image(path) as image:
            if not image.mode.startswith("I"):
                return
            largest = int(np.asarray(image).max())
    except UnidentifiedImageError:
        return  # the loader knows more formats
    if largest >= TOO_LARGE:
        raise SampleError(
            f"{path!r} holds the value {largest}, and mmseg cuts label maps to 8 bits, which makes "
            f"another class of it; renumber the label maps; {_CHECKER}"
        )


def _refuse_labels(data: dict, num_classes: int) -> None:
    labels, path = data["gt_seg_map"], data["seg_map_path"]
    if labels.ndim != 2:
        raise SampleError(
            f"{path!r} is a picture of {labels.shape[-1]} colour channels, but a label map has "
            f"one, whose values number the classes; {_CHECKER}"
        )
    image = tuple(data.get("ori_shape", labels.shape))
    if labels.shape != image:
        raise SampleError(
            f"{path!r} is {labels.shape[1]}x{labels.shape[0]} pixels, but its image is loaded as "
            f"{image[1]}x{image[0]}; write it in the image's size; {_CHECKER}"
        )
    stray = labels[(labels >= num_classes) & (labels != _NO_LABEL)]
    if num_classes and len(stray):
        raise SampleError(
            f"{path!r} holds labels of no class: {some(np.unique(stray))} as they are loaded, and "
            f"the {num_classes} classes are 0 to {num_classes - 1} (255: no label); correct "
            f"metainfo.classes, reduce_zero_label or the label map; {_CHECKER}"
        )
