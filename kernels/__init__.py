"""The operators of ViG (arXiv 2405.18425), each in a folder of its own. Imports torch alone.

`bidirectional_gla` and `locality_gate` are differentiable functions of their own. The others are
the steps of a block that keep little for the backward pass; `vig_mm.nets` puts them together.
"""

from .gla import BACKENDS, bidirectional_gla
from .gla.naive import GATE_LOGIT_NORMALIZER
from .locality_gate import GATE_BACKENDS, locality_gate

__all__ = [
    "BACKENDS",
    "GATE_BACKENDS",
    "GATE_LOGIT_NORMALIZER",
    "bidirectional_gla",
    "locality_gate",
]
