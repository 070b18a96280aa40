"""The operators of ViG (arXiv 2405.18425): bidirectional gated linear attention and locality gate.

Imports torch alone.
"""

from .bidirectional_gla import BACKENDS, bidirectional_gla
from .locality_gate import GATE_BACKENDS, locality_gate
from .reference import GATE_LOGIT_NORMALIZER

__all__ = [
    "BACKENDS",
    "GATE_BACKENDS",
    "GATE_LOGIT_NORMALIZER",
    "bidirectional_gla",
    "locality_gate",
]
