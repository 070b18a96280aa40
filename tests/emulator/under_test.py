"""The kernels: the one place here that knows where these are."""

from vig_mm.kernels.feed_forward import triton as feed_forward
from vig_mm.kernels.feed_forward import triton_norm as norm
from vig_mm.kernels.feed_forward import triton_swiglu as swiglu
from vig_mm.kernels.gla.triton import launch
from vig_mm.kernels.locality_gate import triton as locality_gate
from vig_mm.kernels.locality_gate import triton_projection
from vig_mm.kernels.norm_conv import triton as norm_conv

__all__ = [
    "feed_forward",
    "launch",
    "locality_gate",
    "norm",
    "norm_conv",
    "swiglu",
    "triton_projection",
]
