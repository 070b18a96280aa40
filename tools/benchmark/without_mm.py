"""For benchmarks and GPU tests: run the backbones where mmengine and mmcv are not installed.

A GPU machine for benchmarks may have torch and little else. `stand_in` makes imports from a missing
package succeed. The few classes that building and running a backbone needs are here; any other
name is a class that cannot be instantiated.
"""

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

PACKAGES = ("mmengine", "mmcv")


class BaseModule(nn.Module):
    """Of mmengine's, what a backbone uses when it is built and run."""

    def __init__(self, init_cfg: dict | list[dict] | None = None) -> None:
        super().__init__()
        self.init_cfg = init_cfg
        self._is_init = False

    @property
    def is_init(self) -> bool:
        return self._is_init


class Registry:
    """Registers nothing: classes are built by calling them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def register_module(self, *args: Any, **kwargs: Any):
        return lambda cls: cls


class DropPath(nn.Module):
    """Stochastic depth: drops a whole sample's residual with probability ``drop_prob``."""

    def __init__(self, drop_prob: float = 0.1) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_prob == 0:
            return x
        keep = 1 - self.drop_prob
        mask = torch.empty(x.shape[0], *[1] * (x.dim() - 1), device=x.device, dtype=x.dtype)
        return x * mask.bernoulli_(keep) / keep


_CONTENTS: dict[str, dict[str, Any]] = {
    "mmengine.model": {"BaseModule": BaseModule},
    "mmengine.registry": {"Registry": Registry},
    "mmcv.cnn.bricks": {"DropPath": DropPath},
}


class _Importer(MetaPathFinder, Loader):
    """Makes a module of any name in the missing packages."""

    def __init__(self, packages: list[str]) -> None:
        self.packages = packages

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.partition(".")[0] in self.packages:
            return ModuleSpec(name, self, is_package=True)
        return None

    def exec_module(self, module: ModuleType) -> None:
        def unknown(name: str) -> type:
            if name.startswith("__"):
                raise AttributeError(name)
            return _refusing(f"{module.__name__}.{name}")

        vars(module).update(_CONTENTS.get(module.__name__, {}), __getattr__=unknown)


def _refusing(name: str) -> type:
    def refuse(self: Any, *args: Any, **kwargs: Any) -> None:
        package = name.partition(".")[0]
        raise RuntimeError(f"{name} is used, but {package} is not installed: pip install {package}")

    return type(name.rpartition(".")[2], (), {"__init__": refuse})


def stand_in() -> list[str]:
    """Stand in for those of `PACKAGES` that are missing, and return them; usually none is."""
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        sys.meta_path.append(_Importer(missing))
    return missing


def pytest_configure() -> None:
    """For ``pytest -p without_mm``."""
    stand_in()
