"""Optimizer wrapper for training in bfloat16, on a GPU or a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from mmengine.runner.amp import autocast
from torch import Tensor, nn

from vig_mm.registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class Bf16OptimWrapper(OptimWrapper):
    """mmengine's OptimWrapper with the forward pass under bfloat16 autocast.

    bfloat16 has the range of float32: gradients are not scaled, no step is skipped, and there is
    nothing to resume. mmengine's AmpOptimWrapper always has a scaler and refuses to run on a CPU.

    Detectors keep their boxes in float32, see `keep_boxes_in_float32`.

    Args:
        kwargs: of OptimWrapper.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self._prepared: nn.Module | None = None

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """The context of a training step's forward pass."""
        if self._prepared is not model:
            self._prepared = model
            keep_boxes_in_float32(model)
        with super().optim_context(model), autocast(dtype=torch.bfloat16):
            yield


def keep_boxes_in_float32(model: nn.Module) -> None:
    """Convert what heads with anchors give, and the maps that RoI extractors get, to float32.

    Under autocast a detector of mmdet would compute anchors and proposals in the dtype of the maps,
    which in bfloat16 moves boxes by up to 4 of 1333 pixels; and mmcv's NMS and RoIAlign do not
    support bfloat16.
    """
    for module in model.modules():
        if hasattr(module, "prior_generator"):
            module.register_forward_hook(lambda module, args, outs: _widen(outs))
        if hasattr(module, "roi_layers"):
            module.register_forward_pre_hook(lambda module, args: _widen(args))


def _widen(x: Any) -> Any:
    """The same tuples and lists with bfloat16 tensors in float32."""
    if isinstance(x, Tensor):
        return x.float() if x.dtype == torch.bfloat16 else x
    return type(x)(map(_widen, x)) if type(x) in (tuple, list) else x
