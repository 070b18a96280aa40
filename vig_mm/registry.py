"""Child registries of mmengine's, scope ``vig_mm``.

``type='vig_mm.ViG'`` in any config makes mmengine import this module, and ``locations`` makes it
import what is registered on the first look-up: no ``custom_imports`` is needed.
"""

from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import Registry

from .engine.serialization import allow_mmengine_types

MODELS = Registry("model", parent=MMENGINE_MODELS, scope="vig_mm", locations=["vig_mm.models"])
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    "optimizer wrapper constructor",
    parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
    scope="vig_mm",
    locations=["vig_mm.engine.layer_decay"],
)

# Here, because it also serves mmdet's, mmseg's and mim's own train and test tools.
allow_mmengine_types()
