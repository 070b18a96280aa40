"""The operators in Triton: bidirectional GLA, both directions in one pass, and the locality gate.

Imports triton; `vig_mm.kernels` must work without it and import this package only when needed.
With `TRITON_INTERPRET=1` (set before triton is imported) everything runs on a CPU, slowly.
"""

from .launch import triton_backward, triton_forward
from .locality_gate import gate_backward, gate_backward_into, gate_forward

__all__ = [
    "gate_backward",
    "gate_backward_into",
    "gate_forward",
    "triton_backward",
    "triton_forward",
]
