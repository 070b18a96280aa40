"""The kernels and their definitions: the one place here that knows where these are."""

from vig_mm.kernels.depthwise_conv import torch_norm_conv
from vig_mm.kernels.locality_gate import torch_locality_gate
from vig_mm.kernels.norm import normalize
from vig_mm.kernels.reference import reference_bidirectional_gla
from vig_mm.kernels.triton import (
    depthwise_conv,
    feed_forward,
    gate_projection,
    launch,
    locality_gate,
    norm,
    swiglu,
)
from vig_mm.models.backbones import hier_vig, vig

__all__ = [
    "depthwise_conv",
    "feed_forward",
    "gate_projection",
    "hier_vig",
    "launch",
    "locality_gate",
    "norm",
    "normalize",
    "reference_bidirectional_gla",
    "swiglu",
    "torch_locality_gate",
    "torch_norm_conv",
    "vig",
]
