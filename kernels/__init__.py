"""Bidirectional gated linear attention (BiGLA), the operator of ViG (arXiv 2405.18425).

Imports torch alone. `bidirectional_gla` is the one public function.
"""

from .bidirectional_gla import BACKENDS, bidirectional_gla
from .reference import GATE_LOGIT_NORMALIZER

__all__ = ["BACKENDS", "GATE_LOGIT_NORMALIZER", "bidirectional_gla"]
