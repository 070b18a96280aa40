"""Allow-list with which torch >= 2.6 loads mmengine's checkpoints in its safe mode.

mmengine 0.10.7 calls `torch.load` without `weights_only`; since torch 2.6 that means `True`, and
the training log inside mmengine's own checkpoints (`HistoryBuffer`, numpy arrays) is refused, so
that neither `--resume` nor testing works. Here exactly the types that such a log consists of are
allow-listed.

onedl-mmengine, its fork, allows them by itself, but loads what torch refuses a second time without
the protection. That is taken back here.
"""

import pickle
from collections.abc import Callable
from functools import partial
from importlib import metadata
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from .errors import RequirementError

_STATISTICS = ("min", "max", "current", "mean")
# The dtypes of logged values and of their counts; pickling an array names its dtype's class.
_DTYPES = ("float64", "float32", "int64", "int32", "bool")


def check_torch() -> None:
    """Refuse a torch whose protection of `torch.load` can be got round.

    Raises:
        RequirementError: it is older than 2.6.
    """
    version = torch.__version__
    if tuple(int(part) for part in version.split(".")[:2]) < (2, 6):
        raise RequirementError(
            f"torch {version} is too old: before 2.6 a checkpoint can run code in spite of "
            "torch.load(weights_only=True) (CVE-2025-32434). pip install 'torch>=2.6'"
        )


def _statistic(owner: Any, name: str) -> Callable:
    """Stand-in for the `getattr` through which a `HistoryBuffer` pickles its four statistics.

    `getattr` itself must stay forbidden: it would hand out any attribute of any allowed type.
    """
    if owner is HistoryBuffer and name in _STATISTICS:
        return getattr(owner, name)
    raise pickle.UnpicklingError(
        f"the checkpoint asks for attribute {name!r} of {owner!r}; only the statistics "
        f"{', '.join(_STATISTICS)} of mmengine's HistoryBuffer are allowed"
    )


def _multiarray() -> list[tuple[Callable, str]]:
    """numpy's functions that rebuild arrays and scalars, under their numpy 1 and numpy 2 names."""
    reconstruct = np.zeros(0).__reduce__()[0]
    scalar = np.float64(0).__reduce__()[0]
    return [
        (function, f"numpy.{core}.multiarray.{name}")
        for function, name in ((reconstruct, "_reconstruct"), (scalar, "scalar"))
        for core in ("core", "_core")
    ]


def _is_fork() -> bool:
    try:
        return bool(metadata.version("onedl-mmengine"))
    except metadata.PackageNotFoundError:
        return False


def allow_mmengine_types() -> None:
    """Allow-list the types in mmengine's checkpoints for `torch.load(weights_only=True)`.

    May be called any number of times. Everything else, e.g. a pickle that calls `os.system`, is
    still refused.
    """
    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            (_statistic, "builtins.getattr"),
            np.ndarray,
            np.dtype,
            *(type(np.dtype(name)) for name in _DTYPES),
            *_multiarray(),
        ]
    )
    if _is_fork():
        from mmengine.runner import checkpoint

        checkpoint._safe_torch_load = partial(torch.load, weights_only=True)
