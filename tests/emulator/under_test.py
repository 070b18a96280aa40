"""The kernels and their definitions: the one place here that knows where these are."""

from vig_mm.kernels.feed_forward import triton as feed_forward
from vig_mm.kernels.feed_forward import triton_norm as norm
from vig_mm.kernels.feed_forward import triton_swiglu as swiglu
from vig_mm.kernels.gla.naive import reference_bidirectional_gla
from vig_mm.kernels.gla.triton import launch
from vig_mm.kernels.locality_gate import triton as locality_gate
from vig_mm.kernels.locality_gate import triton_projection
from vig_mm.kernels.locality_gate.torch import torch_locality_gate
from vig_mm.kernels.norm_conv import triton as norm_conv
from vig_mm.kernels.norm_conv.torch import torch_norm_conv
from vig_mm.kernels.torch_utils import normalize
from vig_mm.nets.hier_vig import HierBlock
from vig_mm.nets.vig import PlainBlock

__all__ = [
    "HierBlock",
    "PlainBlock",
    "feed_forward",
    "launch",
    "locality_gate",
    "norm",
    "norm_conv",
    "normalize",
    "reference_bidirectional_gla",
    "swiglu",
    "torch_locality_gate",
    "torch_norm_conv",
    "triton_projection",
]
