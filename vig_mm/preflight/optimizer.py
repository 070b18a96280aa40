"""Checks that a config has what a run needs, and that the optimizer it names exists."""

import difflib
from typing import Any

from mmengine.config import Config
from mmengine.registry import OPTIMIZERS

from .user_input import UsageError

_PARTS = {
    "train": ("train_dataloader", "train_cfg", "optim_wrapper"),
    "test": ("test_dataloader", "test_cfg", "test_evaluator"),
}


def check_loop(cfg: Config, mode: str) -> None:
    """See that a config can train, or test: some models' can only do the other.

    Args:
        cfg: A whole config.
        mode: "train" or "test".

    Raises:
        UsageError: names what the config lacks.
    """
    absent = [part for part in _PARTS[mode] if cfg.get(part) is None]
    if absent:
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
        UsageError: it is not; names one that comes close.
    """
    wrapper = cfg.get("optim_wrapper") or {}
    # one for each part of a model, where mmengine's OptimWrapperDict takes several
    several = [one for one in wrapper.values() if isinstance(one, dict) and "optimizer" in one]
    for one in several or [wrapper]:
        optimizer = one.get("optimizer")
        if isinstance(optimizer, dict):
            _check_type(optimizer.get("type"), cfg.get("default_scope"))


def _check_type(kind: Any, scope: str | None) -> None:
    with OPTIMIZERS.switch_scope_and_registry(scope) as registry:
        if not isinstance(kind, str) or registry.get(kind) is not None:
            return
        known = {x.lower(): x for x in (*registry.module_dict, *OPTIMIZERS.module_dict)}
    close = difflib.get_close_matches(kind.lower(), known, 1)
    raise UsageError(
        f"optim_wrapper.optimizer.type: there is no optimizer {kind!r}"
        + (f", did you mean {known[close[0]]!r}?" if close else "; correct it or import its module")
    )
