"""What a config says of a data set: its classes, options, transforms, and the files it lists."""

import inspect
from dataclasses import dataclass
from typing import Any

from mmengine.registry import DATASETS, TRANSFORMS, Registry

from ..config import transform, walk

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
    ann_file: str = ""
    label_folder: str = ""
    labels: tuple[str, ...] = ()  # of each image
    label_backend: str = "pillow"  # `imdecode_backend` of `LoadAnnotations`


def class_of(entry: dict, scope: str | None, registry: Registry = DATASETS) -> Any:
    """The class of a config's entry, whose `type` may be text; None if it is unknown."""
    kind = entry.get("type")
    if isinstance(kind, str):
        with registry.switch_scope_and_registry(scope) as found:
            return found.get(kind)
    return kind


def base_of(kind: Any, name: str, *methods: str) -> type | None:
    """The base of a name that a class is built on, if it has these methods of that base."""
    base = next((x for x in getattr(kind, "__mro__", ()) if x.__name__ == name), None)
    same = all(getattr(kind, x, None) is getattr(base, x, None) for x in methods)
    return base if same else None


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


def image_loader(pipeline: Any) -> tuple[str, str | None]:
    """`color_type` and `imdecode_backend` of a pipeline's `LoadImageFromFile`, or what reads it."""
    if transform(pipeline, "LoadTiff"):
        return "unchanged", "tifffile"
    if transform(pipeline, "LoadImageFromNpyFile"):  # of the forks' mmseg
        return "unchanged", "numpy"
    load = transform(pipeline, "LoadImageFromFile")
    return load.get("color_type", "color"), load.get("imdecode_backend", "cv2")


def turns(flag: str, backend: str | None) -> bool:
    """Whether a loader of mmcv follows the EXIF orientation."""
    return flag in ("color", "grayscale") and backend in (None, "cv2", "pillow")


def has_own_transform(entry: Any, scope: str | None) -> bool:
    """Whether a data set, or a part of its config, has a transform that is no library's."""
    steps = [one[k] for _, one in walk("", entry) for k in ("pipeline", "transforms") if k in one]
    return any(
        not (isinstance(one, list | tuple) or keeps_numbers(one, scope))
        for value in steps
        for one in (value if isinstance(value, list | tuple) else [value])
    )


def keeps_numbers(step: Any, scope: str | None) -> bool:
    """Whether a transform (or its config) is one of the libraries' or ours."""
    kind = class_of(step, scope, TRANSFORMS) if isinstance(step, dict) else type(step)
    return getattr(kind, "__module__", "").partition(".")[0] in _KEEP_NUMBERS
