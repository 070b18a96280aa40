"""Inference in bfloat16."""

import torch
from mmengine.structures import BaseDataElement
from torch import nn

from vig_mm.engine.optimizers.bf16 import keep_boxes_in_float32


def infer_in_bfloat16(model: nn.Module) -> None:
    """Have ``model.test_step`` run under bfloat16 autocast; its results are float32 as before.

    Detectors keep their boxes in float32, see `keep_boxes_in_float32`.

    Args:
        model: detector, segmentor or classifier of the three libraries, or one inside a wrapper.
    """
    keep_boxes_in_float32(model)
    device, step = next(model.parameters()).device.type, model.test_step

    def test_step(data: dict) -> list[BaseDataElement]:
        with torch.autocast(device, torch.bfloat16):
            samples = step(data)
        for sample in samples:
            _to_float32(sample)
        return samples

    model.test_step = test_step


def _to_float32(sample: BaseDataElement) -> None:
    """Metrics and visualizers make arrays of the results, and NumPy has no bfloat16."""
    for name, value in sample.items():
        if isinstance(value, BaseDataElement):
            _to_float32(value)
        elif isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16:
            setattr(sample, name, value.float())
