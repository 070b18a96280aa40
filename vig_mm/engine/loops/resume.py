"""Resuming an interrupted training: which checkpoint, which seed, which loop."""

import logging
import os
import re
from pathlib import Path

from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch.optim import Optimizer

from vig_mm.checkpoints.reading import read_checkpoint
from vig_mm.errors import CheckpointError
from vig_mm.registry import type_name

_OURS = {
    EpochBasedTrainLoop: "vig_mm.EpochBasedTrainLoop",
    IterBasedTrainLoop: "vig_mm.IterBasedTrainLoop",
    CheckpointHook: "vig_mm.SafeCheckpointHook",
}
"""mmengine's class -> ours, of the same options."""

_AS_IT_WAS = (
    "Set this as it was, or start a new run from its weights: --cfg-options load_from=FILE, "
    "without --resume"
)


def make_resumable(cfg: Config) -> None:
    """Put our training loop and checkpoint hook where a config has mmengine's.

    A loop or hook of another kind stays, with a warning of what that costs.

    Args:
        cfg: A whole config. One without training loop, which can only test, stays as it is.
    """
    if not (cfg.get("train_cfg") or {}).keys() & {"by_epoch", "type"}:
        return
    if "by_epoch" in cfg.train_cfg:  # mmengine's short form
        kind = EpochBasedTrainLoop if cfg.train_cfg.pop("by_epoch") else IterBasedTrainLoop
        cfg.train_cfg.type = kind.__name__
    _exchange(cfg.train_cfg, "train_cfg", "a resumed run may differ from an uninterrupted one")

    # mmengine's own default, which a config turns off with None
    default = dict(checkpoint=dict(type="CheckpointHook", interval=1))
    cfg.default_hooks = {**default, **(cfg.get("default_hooks") or {})}
    hook = cfg.default_hooks.checkpoint
    if hook is not None:
        lost = "a kill or a full disk while saving may leave half a checkpoint"
        _exchange(hook, "default_hooks.checkpoint", lost)


def _exchange(entry: dict, where: str, lost: str) -> None:
    name = type_name(entry)
    for theirs, ours in _OURS.items():
        if name in (theirs.__name__, type_name(ours)):
            entry["type"] = ours
            return
    print_log(f"{where}.type is {entry['type']}: {lost}", "current", logging.WARNING)


def latest_checkpoint(work_dir: str) -> str | None:
    """The checkpoint to go on from: the one that ``last_checkpoint`` names, if it is whole.

    If it is not (copied away, half written by mmengine's own hook), the newest whole one.

    Returns:
        Its path, or None if no checkpoint was ever finished.

    Raises:
        CheckpointError: there was one, and none is whole now.
    """
    work_dir = Path(work_dir).absolute()
    pointer = work_dir / "last_checkpoint"
    # broken bytes in it name no file; os.path's test is false for any text that is no path
    named = Path(pointer.read_text(errors="replace").strip()) if pointer.is_file() else None
    if named is not None and not os.path.isfile(named):
        named = work_dir / named.name  # the folder was moved, or is mounted elsewhere
    unfit = []
    for path in _candidates(work_dir, named):
        try:
            checkpoint = read_checkpoint(path)
        except CheckpointError as error:
            unfit.append(str(error))
            continue
        if path != named and "optimizer" not in checkpoint:
            continue  # some other file of weights
        if path != named:
            reason = unfit[0] if unfit else f"there is no file {str(pointer)!r}"
            print_log(f"{reason}; going on from {str(path)!r}", "current", logging.WARNING)
        return str(path)
    if named is not None:
        raise CheckpointError(
            f"no checkpoint in {str(work_dir)!r} is whole: {'; '.join(unfit)}. Bring one back, or "
            f"remove {str(pointer)!r} to start from the beginning"
        )
    for problem in unfit:
        print_log(f"{problem}; starting from the beginning", "current", logging.WARNING)
    return None


def how_to_resume(work_dir: str) -> str:
    """What is left of a training that was stopped, and how to go on."""
    pointer = Path(work_dir, "last_checkpoint")
    if not pointer.is_file():
        return "no checkpoint was written yet, so the same command begins anew"
    return (
        f"the last checkpoint is {pointer.read_text().strip()!r}: the same command with --resume "
        "goes on from it"
    )


def _candidates(work_dir: Path, named: Path | None) -> list[Path]:
    """The named checkpoint, then those beside it and in the work folder, the newest first."""
    folders = {work_dir, named.parent} if named else {work_dir}
    others = []
    for folder in folders:
        for path in folder.glob("*.pth"):
            number = re.search(r"_(\d+)\.pth$", path.name)
            if not number or path.name.startswith("best_") or path == named:
                continue
            if path.is_file():  # not a link that leads nowhere
                others.append((int(number[1]), path.stat().st_mtime, path))
    return ([named] if named else []) + [path for *_, path in sorted(others, reverse=True)]


def take_seed(cfg: Config) -> None:
    """Give a config the seed of the run that it resumes (`load_from`), before anything is built.

    mmengine does so, too, but after it has built the data loaders with a seed of their own.

    Raises:
        CheckpointError: training cannot go on from this file: it holds weights only.
    """
    checkpoint = read_checkpoint(cfg.load_from)
    meta = checkpoint.get("meta")
    if not isinstance(meta, dict):
        meta = {}
    lacking = [f"meta.{key}" for key in ("iter", "epoch") if not isinstance(meta.get(key), int)]
    lacking += [key for key in ("optimizer", "message_hub") if not checkpoint.get(key)]
    if lacking:
        raise CheckpointError(
            f"training cannot be resumed from {cfg.load_from!r}: it holds no {', '.join(lacking)}. "
            "To start a new run from its weights: --cfg-options load_from=FILE, without --resume"
        )
    randomness = cfg.get("randomness", {})
    seed, wanted = meta.get("seed"), randomness.get("seed")
    if seed is None:
        return
    if wanted not in (None, seed):
        print_log(
            f"the resumed run goes on with its own seed {seed}, not with {wanted}",
            "current",
            logging.WARNING,
        )
    cfg.randomness = {**randomness, "seed": seed}


def check_optimizer_state(optimizer: Optimizer, state: dict, path: str) -> None:
    """See that a checkpoint's state is one of this optimizer; torch's errors name no file.

    Args:
        state: What the checkpoint ``path`` has of its optimizer.

    Raises:
        CheckpointError: it was written by another one, or with other parameter groups.
    """
    groups = state["param_groups"]
    saved, own = ([len(g["params"]) for g in some] for some in (groups, optimizer.param_groups))
    if saved != own:
        raise CheckpointError(
            f"training cannot be resumed from {path!r}: its optimizer has {len(saved)} parameter "
            f"groups of {sum(saved)} weights, this run's has {len(own)} of {sum(own)}. That is "
            "other parameter groups than the run that wrote it had; frozen_stages, paramwise_cfg "
            f"and the constructor of optim_wrapper make them. {_AS_IT_WAS}"
        )
    lacking = set(optimizer.defaults).difference(*groups)
    foreign = set().union(*groups).difference(*optimizer.param_groups, ["initial_lr"])
    if lacking and foreign:  # either alone comes with another version of torch, too
        raise CheckpointError(
            f"training cannot be resumed from {path!r}: it was written by another optimizer, with "
            f"{', '.join(sorted(foreign))}, and {type(optimizer).__name__} has "
            f"{', '.join(sorted(lacking))}. {_AS_IT_WAS}"
        )
