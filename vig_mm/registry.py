"""Child registries of mmengine's, scope ``vig_mm``.

``type='vig_mm.ViG'`` in any config makes mmengine import this module, and ``locations`` makes it
import what is registered on the first look-up: no ``custom_imports`` is needed.
"""

from typing import Any

from mmengine.registry import FUNCTIONS as MMENGINE_FUNCTIONS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import LOOPS as MMENGINE_LOOPS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS
from mmengine.registry import STRATEGIES as MMENGINE_STRATEGIES
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import WEIGHT_INITIALIZERS as MMENGINE_WEIGHT_INITIALIZERS
from mmengine.registry import Registry

from . import ops  # noqa: F401 (mmcv-lite's operators, before anything imports mmcv.ops)
from .serialization import allow_mmengine_types

MODELS = Registry("model", parent=MMENGINE_MODELS, scope="vig_mm", locations=["vig_mm.models"])
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    "optimizer wrapper constructor",
    parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
    scope="vig_mm",
    locations=["vig_mm.engine.optimizers"],
)
OPTIM_WRAPPERS = Registry(
    "optimizer wrapper",
    parent=MMENGINE_OPTIM_WRAPPERS,
    scope="vig_mm",
    locations=["vig_mm.engine.optimizers"],
)
HOOKS = Registry(
    "hook",
    parent=MMENGINE_HOOKS,
    scope="vig_mm",
    locations=["vig_mm.engine.hooks", "vig_mm.engine.hooks.pictures_hook"],
)
LOOPS = Registry("loop", parent=MMENGINE_LOOPS, scope="vig_mm", locations=["vig_mm.engine.loops"])
FUNCTIONS = Registry(
    "function", parent=MMENGINE_FUNCTIONS, scope="vig_mm", locations=["vig_mm.engine.strategies"]
)
STRATEGIES = Registry(
    "strategy", parent=MMENGINE_STRATEGIES, scope="vig_mm", locations=["vig_mm.engine.strategies"]
)
TRANSFORMS = Registry(
    "transform",
    parent=MMENGINE_TRANSFORMS,
    scope="vig_mm",
    locations=["vig_mm.datasets.transforms"],
)
WEIGHT_INITIALIZERS = Registry(
    "weight initializer",
    parent=MMENGINE_WEIGHT_INITIALIZERS,
    scope="vig_mm",
    locations=["vig_mm.checkpoints.pretrained"],
)


def type_name(kind: Any) -> str:
    """The bare name of a type as configs write it, for comparison with text.

    Args:
        kind: A `type`, or the entry of a config that has one: ``"ViG"``, ``"vig_mm.ViG"``, the
            class itself (mmengine's pure-Python configs), or nothing.
    """
    if isinstance(kind, dict):
        kind = kind.get("type")
    name = kind if isinstance(kind, str) else getattr(kind, "__name__", "")
    return name.rpartition(".")[2]


# Here, because it also serves mmdet's, mmseg's and mim's own train and test tools.
allow_mmengine_types()
