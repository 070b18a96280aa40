"""Bidirectional GLA in Triton, both directions in one pass.

Imports triton; `vig_mm.kernels` must work without it and import this package only when needed.
With `TRITON_INTERPRET=1` (set before triton is imported) everything runs on a CPU, slowly.
"""

from .launch import triton_backward, triton_forward

__all__ = ["triton_backward", "triton_forward"]
