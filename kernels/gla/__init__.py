"""Bidirectional gated linear attention."""

from .op import BACKENDS, bidirectional_gla, gla_backward_into, gla_forward

__all__ = ["BACKENDS", "bidirectional_gla", "gla_backward_into", "gla_forward"]
