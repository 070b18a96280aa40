"""The operators of ViG (arXiv 2405.18425): bidirectional gated linear attention and locality gate.

And the parts of a block around them that keep little for the backward pass. Imports torch alone.
"""

from .bidirectional_gla import BACKENDS, bidirectional_gla
from .depthwise_conv import norm_conv
from .locality_gate import GATE_BACKENDS, locality_gate
from .norm import norm
from .reference import GATE_LOGIT_NORMALIZER
from .swiglu import swiglu

__all__ = [
    "BACKENDS",
    "GATE_BACKENDS",
    "GATE_LOGIT_NORMALIZER",
    "bidirectional_gla",
    "locality_gate",
    "norm",
    "norm_conv",
    "swiglu",
]
