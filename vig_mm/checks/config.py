"""Checks of command-line values, config files, what a run needs of them, and output folders."""

import argparse
import difflib
import inspect
import os
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.registry import OPTIMIZERS

from vig_mm.errors import UsageError
from vig_mm.own_configs import tell_mmengine_of_own_configs
from vig_mm.registry import type_name

from .environment import SCOPES

_SEEDS = 2**31  # numpy takes 2**32, and mmengine adds the numbers of processes and workers
_PARTS = {
    "train": ("train_dataloader", "train_cfg", "optim_wrapper"),
    "test": ("test_dataloader", "test_cfg", "test_evaluator"),
}


class ConfigOptions(DictAction):
    """mmengine's action for ``KEY=VALUE``, except that a mistake is argparse's kind of error."""

    def __call__(self, parser: Any, namespace: Any, values: Sequence[str], *more: Any) -> None:
        for value in values:
            key, sign, _ = value.partition("=")
            if not key or not sign:
                raise argparse.ArgumentError(self, f"{value!r} is not of the form KEY=VALUE")
            try:
                super().__call__(parser, namespace, [value], *more)
            except (AssertionError, RecursionError) as error:
                raise argparse.ArgumentError(self, f"brackets in {value!r} do not match") from error


def seed(text: str) -> int:
    """The value of ``--seed``, for argparse.

    Raises:
        ArgumentTypeError: It is no number that all generators take.
    """
    if not (text.isascii() and text.isdigit() and int(text) < _SEEDS):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {_SEEDS - 1}")
    return int(text)


def read_config(path: str) -> Config:
    """Read a config file and those in its ``_base_``, without its custom imports.

    What the code in a config raises stays as it is: the traceback shows the line. Where it has no
    `default_scope`, it gets that of its types.

    Raises:
        UsageError: A file is missing, cannot be parsed, or is no config.
    """
    if not os.path.isfile(path):
        raise UsageError(f"config {path!r} is not a file (seen from {os.getcwd()!r})")
    tell_mmengine_of_own_configs()
    try:
        cfg = Config.fromfile(path, import_custom_modules=False)
    except Exception as error:  # mmengine raises all kinds for files that it cannot take
        if isinstance(error, SyntaxError):
            why = f"is no valid Python: {error.msg}"
            if error.lineno:
                why += f", line {error.lineno}: {(error.text or '').strip()!r}"
        elif any(one.name == "<module>" for one in traceback.extract_tb(error.__traceback__)):
            raise  # from a config's own code
        else:
            why = "cannot be read: " + " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(f"config {path!r}, or a file in its _base_, {why}") from error
    if cfg.get("default_scope") is None and (scope := _scope_of(cfg)):
        cfg.default_scope = scope
    return cfg


def _scope_of(cfg: Config) -> str | None:
    """The library that the model's or a data set's type is of, or is built on."""
    entries = [cfg.get("model")]
    entries += [(cfg.get(f"{x}_dataloader") or {}).get("dataset") for x in ("train", "val", "test")]
    for entry in entries:
        kind = entry.get("type") if isinstance(entry, dict) else None
        bases = inspect.getmro(kind) if inspect.isclass(kind) else ()
        for name in [kind] if isinstance(kind, str) else [base.__module__ for base in bases]:
            if name.partition(".")[0] in SCOPES and "." in name:
                return name.partition(".")[0]
    return None


def walk(where: str, entry: Any) -> Iterator[tuple[str, dict]]:
    """(key in the config, entry) of an entry and of all entries inside it, outer ones first."""
    if isinstance(entry, dict):
        yield where, entry
    parts = entry.items() if isinstance(entry, dict) else ()
    for key, value in enumerate(entry) if isinstance(entry, list | tuple) else parts:
        yield from walk(f"{where}.{key}", value)


def leaves(where: str, dataset: Any) -> Iterator[tuple[str, dict]]:
    """(key in the config, data set) of those inside wrappers (RepeatDataset, lists, ...)."""
    inner = dict(enumerate(dataset)) if isinstance(dataset, list | tuple) else {}
    if isinstance(dataset, dict):
        keys = ("dataset", "datasets")
        inner = {key: dataset[key] for key in keys if isinstance(dataset.get(key), dict | list)}
        if not inner:
            yield where, dataset
    for key, one in inner.items():
        yield from leaves(f"{where}.{key}", one)


def transform(pipeline: Any, name: str) -> dict:
    """The config of the first transform of a type in a pipeline, at any depth; {} if none."""
    return next((one for _, one in walk("", pipeline) if type_name(one) == name), {})


def part_name(where: str) -> str:
    """`model.roi_head.bbox_head.1` -> `bbox_head`."""
    return next(name for name in reversed(where.split(".")) if not name.isdigit())


def meant(name: str, known: Iterable[str]) -> str:
    """The words for the known name that comes closest, in any case of letters; "" if none does."""
    lower = {one.lower(): one for one in known}
    close = difflib.get_close_matches(name.lower(), lower, n=1)
    return f", did you mean {lower[close[0]]!r}?" if close else ""


def metrics_of(cfg: Mapping, split: str) -> list[dict]:
    """The configs of a split's metrics."""
    evaluator = cfg.get(f"{split}_evaluator")
    metrics = evaluator if isinstance(evaluator, list | tuple) else [evaluator]
    return [metric for metric in metrics if isinstance(metric, dict)]


def pipeline_of(cfg: Config, split: str) -> list[dict]:
    """The transforms of a loader's first data set."""
    loader = cfg.get(f"{split}_dataloader") or {}
    first = next(leaves("dataset", loader.get("dataset")), ("", {}))
    return first[1].get("pipeline") or []


def check_folder(path: str, option: str) -> None:
    """See that there is a folder, or room for one; `option`: where it can be changed.

    Raises:
        UsageError: The path, or a part of it, is something else, such as a file.
    """
    absolute = Path(path).absolute()
    for part in (absolute, *absolute.parents):
        if os.path.lexists(part) and not os.path.isdir(part):
            why = f"{str(part)!r} is no folder; choose another"
            raise UsageError(f"{option} {path!r} cannot be used: {why}")


def check_loop(cfg: Config, mode: str) -> None:
    """See that a config can train, or test (`mode`): some models' can only do the other.

    Raises:
        UsageError: Names what the config lacks.
    """
    if absent := [part for part in _PARTS[mode] if cfg.get(part) is None]:
        other = "test" if mode == "train" else "train"
        can = all(cfg.get(part) is not None for part in _PARTS[other])
        raise UsageError(
            f"this config has no {' and no '.join(absent)}, which it takes to {mode}: add them"
            + (f", or {other} with it (tools/{other}.py)" if can else "")
        )
    loop = cfg[f"{mode}_cfg"]
    if mode == "train" and "type" not in loop and "by_epoch" not in loop:
        raise UsageError(
            "train_cfg has no by_epoch and no type, so that mmengine cannot tell epochs from "
            "iterations: set train_cfg.by_epoch=True (with max_epochs) or False (with max_iters)"
        )


def check_optimizer(cfg: Config) -> None:
    """See that the optimizer's type is known; what mmengine says otherwise does not name it.

    Raises:
        UsageError: It is not; names one that comes close.
    """
    wrapper = cfg.get("optim_wrapper") or {}
    # one for each part of a model, where mmengine's OptimWrapperDict takes several
    several = [one for one in wrapper.values() if isinstance(one, dict) and "optimizer" in one]
    with OPTIMIZERS.switch_scope_and_registry(cfg.get("default_scope")) as registry:
        for optimizer in [one.get("optimizer") for one in several or [wrapper]]:
            kind = optimizer.get("type") if isinstance(optimizer, dict) else None
            if isinstance(kind, str) and registry.get(kind) is None:
                advice = meant(kind, {**registry.module_dict, **OPTIMIZERS.module_dict})
                raise UsageError(
                    f"optim_wrapper.optimizer.type: there is no optimizer {kind!r}"
                    f"{advice or '; correct it or import its module'}"
                )
