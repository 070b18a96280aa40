"""Bidirectional GLA as machine code, made by numba's LLVM for the CPU that runs it: no compiler.

    launch      cuts a call into programs and runs them on torch's threads
    forward, backward, states   the kernels, functions of addresses and sizes as in Triton
    recurrence, gates, blocks   their parts, for a block of tokens in the L1 cache
    vectors     vectors of float32 as values in numba functions
    host        the CPU's features and threads, and the folder that keeps what has been compiled

numba is imported with the first call, never with `vig_mm.kernels`, which must work without it.
"""

import functools

import torch
from torch import Tensor


@functools.cache
def problem() -> str | None:
    """Why the kernels cannot run here, or None; compiles or, in the next process, loads one."""
    try:
        from . import host

        if reason := host.problem():
            return reason
        one = torch.ones(1, 1, 1, 1, device="cpu", dtype=torch.float32)
        cpu_forward(one, one, one, one, one)
    except Exception as error:  # whatever it is, there is another backend
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return None


def cpu_forward(
    q: Tensor, k: Tensor, v: Tensor, gate_f: Tensor, gate_b: Tensor, *, out: Tensor | None = None
) -> Tensor:
    """``[B, N, H, V]`` from ``[B, N, H, K]`` (q, k, gate logits) and ``[B, N, H, V]`` (v).

    float32, bfloat16 and float16, in any mixture, with any strides, are read where they are and
    converted on the way; sums, gates and states are float32. Gates are exact down to alpha =
    2^-126, which is what a logit of -inf gives; NaN stays NaN.

    Args:
        out: written to, in its own dtype; None makes one like v.
    """
    from .launch import run

    out = torch.empty(v.shape, dtype=v.dtype, device=v.device) if out is None else out
    run((q, k, v, gate_f, gate_b), (out,))
    return out


def cpu_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate_f: Tensor,
    gate_b: Tensor,
    *,
    out: tuple[Tensor, ...] | None = None,
) -> tuple[Tensor, ...]:
    """Gradients of q, k, v and both gate logits, each shaped like its input.

    They are written to ``out`` if it is given, for instance to parts of one buffer ``[B, N, C]``.
    """
    from .launch import run

    inputs = (q, k, v, gate_f, gate_b)
    grads = out or tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in inputs)
    run((*inputs, grad), grads)
    return grads
