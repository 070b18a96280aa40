"""Data sets in a config."""

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


def pipeline_of(cfg: Any, split: str) -> list[dict]:
    """The transforms of a loader's first data set."""
    loader = cfg.get(f"{split}_dataloader") or {}
    for _, dataset in leaves("dataset", loader.get("dataset")):
        return dataset.get("pipeline") or []
    return []
