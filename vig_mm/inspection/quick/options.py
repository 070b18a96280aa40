"""Options of data sets and transforms, read out of a config."""

import inspect
from typing import Any

from mmengine.registry import TRANSFORMS

from vig_mm.datasets.transforms.map_labels import read_mapping
from vig_mm.preflight.config import leaves  # noqa: F401
from vig_mm.registry import type_name

# What these do to a label map, they do to its pixels' places, not to their numbers.
_KEEP_NUMBERS = ("mmcv", "mmdet", "mmengine", "mmpretrain", "mmseg", "vig_mm")


def classes_of(dataset: dict, kind: type) -> tuple[str, ...]:
    """The classes a data set will have, in label order; () where its folders decide."""
    given = dataset.get("metainfo") or {}
    if dataset.get("classes") is not None:  # mmpretrain's short form
        given = {"classes": dataset["classes"], **given}
    return tuple(kind._load_metainfo(given).get("classes") or ())


def option(dataset: dict, kind: type, name: str, default: Any = None) -> Any:
    """An argument of a data set: from the config, else what its class gives it."""
    if name in dataset:
        return dataset[name]
    constructors = [base for base in kind.__mro__ if "__init__" in vars(base)]
    for base in constructors:
        parameter = inspect.signature(base.__init__).parameters.get(name)
        if parameter is not None and parameter.default is not inspect.Parameter.empty:
            if base is not constructors[0]:  # a subclass may hand on another value
                return getattr(_empty(dataset, kind), name, parameter.default)
            return parameter.default
    return default


def _empty(dataset: dict, kind: type) -> Any:
    """A data set that has not looked for its files; None if that cannot be."""
    arguments = {key: value for key, value in dataset.items() if key not in ("type", "_scope_")}
    try:
        return kind(**{**arguments, "pipeline": [], "lazy_init": True})
    except Exception:  # whatever a user's class raises, building it will say
        return None


def transform(pipeline: Any, name: str) -> dict:
    """The config of the first transform of a type in a pipeline, at any depth; {} if none."""
    if isinstance(pipeline, dict):
        if type_name(pipeline) == name:
            return pipeline
        pipeline = list(pipeline.values())
    if isinstance(pipeline, list | tuple):
        for one in pipeline:
            found = transform(one, name)
            if found:
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
    """Whether there is a transform that is none of the libraries', at any depth of a data set.

    Args:
        entry: A data set's config, its pipeline, or an entry of one.
        scope: The config's `default_scope`.
    """
    if isinstance(entry, list | tuple):
        return any(has_own_transform(one, scope) for one in entry)
    if not isinstance(entry, dict):
        return False
    for key, value in entry.items():
        if key not in ("pipeline", "transforms"):
            if has_own_transform(value, scope):
                return True
            continue
        for one in value if isinstance(value, list | tuple) else [value]:
            if not (isinstance(one, list | tuple) or keeps_numbers(one, scope)):
                return True
            if has_own_transform(one, scope):
                return True
    return False


def keeps_numbers(transform: Any, scope: str) -> bool:
    """Whether a transform (or its config) is one of the libraries' or ours."""
    kind = transform.get("type") if isinstance(transform, dict) else type(transform)
    if isinstance(kind, str):
        with TRANSFORMS.switch_scope_and_registry(scope) as registry:
            kind = registry.get(kind)
    return getattr(kind, "__module__", "").partition(".")[0] in _KEEP_NUMBERS


def label_mapping(dataset: Any) -> tuple[dict | None, int | None]:
    """`mapping` and `others` of the first `vig_mm.MapLabels` of a data set; None without.

    Raises:
        ValueError: the mapping is none.
    """
    found = transform(dataset, "MapLabels")
    return (read_mapping(found.get("mapping")), found.get("others")) if found else (None, None)
