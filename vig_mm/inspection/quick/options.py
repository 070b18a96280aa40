"""Options of data sets and transforms, read out of a config."""

import inspect
from collections.abc import Iterator
from typing import Any


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


def classes_of(dataset: dict, kind: type) -> tuple[str, ...]:
    """The classes a data set will have, in label order; () where its folders decide."""
    given = dataset.get("metainfo") or {}
    if dataset.get("classes") is not None:  # mmpretrain's short form
        given = {"classes": dataset["classes"], **given}
    return tuple(kind._load_metainfo(given).get("classes") or ())


def option(dataset: dict, kind: type, name: str, default: Any = None) -> Any:
    """An argument of a data set: from the config, else the default of the class that has it."""
    if name in dataset:
        return dataset[name]
    for base in kind.__mro__:
        parameter = inspect.signature(base.__init__).parameters.get(name)
        if parameter is not None and parameter.default is not inspect.Parameter.empty:
            return parameter.default
    return default


def transform(pipeline: Any, name: str) -> dict:
    """The config of the first transform of a type in a pipeline, at any depth; {} if none."""
    if isinstance(pipeline, dict):
        kind = pipeline.get("type")
        kind = kind if isinstance(kind, str) else getattr(kind, "__name__", "")
        if kind.rpartition(".")[2] == name:
            return pipeline
        pipeline = list(pipeline.values())
    if isinstance(pipeline, list | tuple):
        for one in pipeline:
            found = transform(one, name)
            if found:
                return found
    return {}


def image_loader(dataset: dict) -> tuple[str, str | None]:
    """`color_type` and `imdecode_backend` of a data set's `LoadImageFromFile`."""
    load = transform(dataset.get("pipeline"), "LoadImageFromFile")
    return load.get("color_type", "color"), load.get("imdecode_backend", "cv2")
