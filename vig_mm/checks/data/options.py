"""What a config says of a data set: its classes, options, transforms, and the files it lists."""

import inspect
from dataclasses import dataclass
from typing import Any

from mmengine.registry import DATASETS, TRANSFORMS, Registry

from vig_mm.datasets.transforms.map_labels import read_mapping
from vig_mm.registry import type_name

# What these do to a label map, they do to its pixels' places, not to their numbers.
_KEEP_NUMBERS = ("mmcv", "mmdet", "mmengine", "mmpretrain", "mmseg", "vig_mm")


@dataclass(frozen=True)
class Listing:
    """The files of a data set, as its config names them; names are relative to their folder."""

    where: str  # key of the data set in its config
    folder: str  # of the images
    names: tuple[str, ...]  # of the images
    flag: str = "color"  # `color_type` of `LoadImageFromFile`
    backend: str | None = "cv2"  # its `imdecode_backend`
    use: Any = None  # of annotations or label maps: a `CocoUse` or a `LabelUse`
    classes: tuple[str, ...] = ()  # of each image, or what the numbers in label maps stand for
    content: dict | None = None  # of a COCO file
    label_folder: str = ""
    labels: tuple[str, ...] = ()  # of each image
    label_backend: str = "pillow"  # `imdecode_backend` of `LoadAnnotations`

    @property
    def turns(self) -> bool:
        """Whether mmcv follows the EXIF orientation."""
        return self.flag in ("color", "grayscale") and self.backend in (None, "cv2", "pillow")


def class_of(entry: dict, scope: str | None, registry: Registry = DATASETS) -> Any:
    """The class of a config's entry, whose `type` may be text; None if it is unknown."""
    kind = entry.get("type")
    if isinstance(kind, str):
        with registry.switch_scope_and_registry(scope) as found:
            return found.get(kind)
    return kind


def classes_of(dataset: dict, kind: type) -> tuple[str, ...] | str:
    """The classes a data set will have, in label order; () where its folders decide.

    Text, with which the libraries go on letter by letter, stays what it is.
    """
    given = dataset.get("metainfo") or {}
    if dataset.get("classes") is not None:  # mmpretrain's short form
        given = {"classes": dataset["classes"], **given}
    classes = kind._load_metainfo(given).get("classes") or ()
    return classes if isinstance(classes, str) else tuple(classes)


def option(dataset: dict, kind: type, name: str, default: Any = None) -> Any:
    """An argument of a data set: from the config, else what its class gives it."""
    if name in dataset:
        return dataset[name]
    constructors = [base for base in kind.__mro__ if "__init__" in vars(base)]
    for base in constructors:
        parameter = inspect.signature(base.__init__).parameters.get(name)
        if parameter is not None and parameter.default is not inspect.Parameter.empty:
            if base is constructors[0]:
                return parameter.default
            # a subclass may hand on another value: ask one that has not looked for its files
            arguments = {k: v for k, v in dataset.items() if k not in ("type", "_scope_")}
            try:
                empty = kind(**{**arguments, "pipeline": [], "lazy_init": True})
            except Exception:  # whatever a user's class raises, building it will say
                return parameter.default
            return getattr(empty, name, parameter.default)
    return default


def transform(pipeline: Any, name: str) -> dict:
    """The config of the first transform of a type in a pipeline, at any depth; {} if none."""
    if isinstance(pipeline, dict):
        if type_name(pipeline) == name:
            return pipeline
        pipeline = list(pipeline.values())
    if isinstance(pipeline, list | tuple):
        for one in pipeline:
            if found := transform(one, name):
                return found
    return {}


def image_loader(dataset: dict) -> tuple[str, str | None]:
    """`color_type` and `imdecode_backend` of a data set's `LoadImageFromFile`, or what reads it."""
    pipeline = dataset.get("pipeline")
    if transform(pipeline, "LoadTiff"):
        return "unchanged", "tifffile"
    if transform(pipeline, "LoadImageFromNpyFile"):  # of the forks' mmseg
        return "unchanged", "numpy"
    load = transform(pipeline, "LoadImageFromFile")
    return load.get("color_type", "color"), load.get("imdecode_backend", "cv2")


def has_own_transform(entry: Any, scope: str) -> bool:
    """Whether a data set, or a part of its config, has a transform that is no library's."""
    if isinstance(entry, list | tuple):
        return any(has_own_transform(one, scope) for one in entry)
    if not isinstance(entry, dict):
        return False
    for key, value in entry.items():
        steps = value if isinstance(value, list | tuple) else [value]
        if key in ("pipeline", "transforms") and not all(
            isinstance(one, list | tuple) or keeps_numbers(one, scope) for one in steps
        ):
            return True
        if has_own_transform(value, scope):
            return True
    return False


def keeps_numbers(step: Any, scope: str) -> bool:
    """Whether a transform (or its config) is one of the libraries' or ours."""
    kind = class_of(step, scope, TRANSFORMS) if isinstance(step, dict) else type(step)
    return getattr(kind, "__module__", "").partition(".")[0] in _KEEP_NUMBERS


def label_mapping(dataset: Any) -> tuple[dict | None, int | None]:
    """`mapping` and `others` of the first `vig_mm.MapLabels` of a data set; None without.

    Raises:
        ValueError: The mapping is none.
    """
    found = transform(dataset, "MapLabels")
    return (read_mapping(found.get("mapping")), found.get("others")) if found else (None, None)
