"""The gate between global and local features, alone and with the projection behind it."""

from .op import GATE_BACKENDS, locality_gate
from .projection import gate_projection, gate_projection_backward

__all__ = ["GATE_BACKENDS", "gate_projection", "gate_projection_backward", "locality_gate"]
