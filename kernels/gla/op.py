"""The public function: argument checks, choice of the backend, registration with torch."""

import math
from typing import Any

import torch
from torch import Tensor

from ..dispatch import LIBRARY, check_shape, check_tokens, operator, run, select_backend
from ..torch_utils import no_autocast, upcast
from .chunk import chunked_backward, chunked_forward
from .naive import reference_bidirectional_gla

BACKENDS = ("reference", "chunked", "cpu", "triton")
"""``reference``: the recurrence. ``chunked``: plain PyTorch, for everything else and in exported
graphs. ``cpu``: machine code by numba, the default on a CPU where numba is installed. ``triton``:
the fused kernels, the default on a GPU. They have been tested in Triton's interpreter and compiled
for six GPU architectures, but not yet run on a GPU."""


def bidirectional_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate_f: Tensor,
    gate_b: Tensor,
    *,
    backend: str | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Bidirectional gated linear attention with direction-wise, per-channel gates.

    Every token t attends to all tokens s, each direction with its own decay (ViG, section 3.2)::

        log alpha = logsigmoid(gate) / 16
        o_t = K^-1/2 / 2 * [ sum_{s<=t} (q_t . k_s * prod_{s<j<=t} alpha_f[j]) v_s
                           + sum_{s>=t} (q_t . k_s * prod_{t<=j<s} alpha_b[j]) v_s ]

    Time and memory are linear in N. Any gate logit is safe, -inf and inf too; sums, gates and
    states are float32 at least, whatever the inputs are.

    Args:
        q, k: ``[B, N, H, K]``: B batch, N tokens, H heads, K key width. Strided views (halves of
            one projection) are read in place.
        v: ``[B, N, H, V]``, V the value width.
        gate_f, gate_b: ``[B, N, H, K]``, gate *logits* of the forward and the backward scan.
        backend: one of `BACKENDS`. None takes ``triton`` for CUDA tensors, ``cpu`` on a CPU with
            numba, and ``chunked`` for all others, in exported graphs (torch.export, ONNX,
            torch.jit.trace), in graphs that torch.compile makes for a CPU, for float64 and for K or
            V above 128; and, with one warning that says why, where Triton is missing, lacks a C
            compiler, or fails to compile or launch a kernel, where the GPU is older than compute
            capability 8.0, or numba cannot compile. An explicit ``triton`` or ``cpu`` raises
            instead.
        out_dtype: of the result; None is that of ``v``. Sums over many tokens leave the range of
            float16 (65504) long before q, k and v do; float32 holds them.

    Returns:
        ``[B, N, H, V]``, contiguous, in ``out_dtype``.

    Raises:
        TypeError: an argument is not a floating-point tensor, q, k, v differ in dtype, or
            ``out_dtype`` is not floating point.
        ValueError: shapes or devices do not fit together, or the backend is unknown or does not
            take these inputs.
        ImportError: ``backend="triton"`` and there is no Triton, or "cpu" and no numba.
        RuntimeError: ``backend="triton"`` and Triton cannot work on this machine, or "cpu" and
            numba cannot. What Triton raises while it compiles or launches a kernel passes as it is.
    """
    _check(q, k, v, gate_f, gate_b)
    if out_dtype is not None and not out_dtype.is_floating_point:
        raise TypeError(f"out_dtype must be floating point, got {out_dtype}")
    backend = select_backend(backend, BACKENDS, "chunked", q=q, v=v, gate_f=gate_f)
    if backend == "reference":
        return reference_bidirectional_gla(q, k, v, gate_f, gate_b, out_dtype)
    return gla_forward(q, k, v, gate_f, gate_b, backend, out_dtype)


def _check(q: Tensor, k: Tensor, v: Tensor, gate_f: Tensor, gate_b: Tensor) -> None:
    check_tokens(q=q, k=k, v=v, gate_f=gate_f, gate_b=gate_b)
    for name, x in (("k", k), ("gate_f", gate_f), ("gate_b", gate_b)):
        check_shape(name, x, "q", q)
    if v.shape[:3] != q.shape[:3]:
        raise ValueError(
            f"v must be {(*q.shape[:3], 'V')} to fit q {tuple(q.shape)}, got {tuple(v.shape)}"
        )
    if not q.dtype == k.dtype == v.dtype:
        raise TypeError(f"q, k and v must share a dtype, got {q.dtype}, {k.dtype}, {v.dtype}")
    if gate_f.dtype != gate_b.dtype:
        raise TypeError(f"gates must share a dtype, got {gate_f.dtype} and {gate_b.dtype}")


def recurrence_flops(q_shape: torch.Size, k_shape: torch.Size, v_shape: torch.Size, *_: Any) -> int:
    """FLOPs (2 per multiply-add) of the two products that define the operator, k v^T and q S.

    8 B N H K V for both directions: what the recurrence needs, whatever a backend spends.
    """
    return 8 * math.prod(q_shape) * v_shape[-1]


def _backward_flops(grad_shape: torch.Size, *shapes: torch.Size) -> int:
    # dq, dk, dv and the states of both directions, recomputed: each product has two gradients
    return 2 * recurrence_flops(*shapes)


def _fake_forward(q, k, v, gate_f, gate_b, backend="chunked", out_dtype=None):
    return v.new_empty(v.shape, dtype=out_dtype)


@operator("bidirectional_gla", _fake_forward, flops=recurrence_flops)
def gla_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate_f: Tensor,
    gate_b: Tensor,
    backend: str = "chunked",
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """`bidirectional_gla` without its checks, by the backend that `select_backend` gave."""
    out_dtype = out_dtype or v.dtype
    if q.shape[0] == 0:
        return v.new_empty(v.shape, dtype=out_dtype)
    if backend == "cpu":
        from ..cpu import cpu_forward

        out = v.new_empty(v.shape, dtype=out_dtype)
        return cpu_forward(q, k, v, gate_f, gate_b, out=out)

    def kernels() -> Tensor:
        from .triton import triton_forward

        return triton_forward(q, k, v, gate_f, gate_b, out_dtype=out_dtype)

    def plain() -> Tensor:
        with no_autocast(q):  # the products inside stay float32
            return chunked_forward(*upcast(q, k, v, gate_f, gate_b)).to(out_dtype)

    return run("bidirectional_gla", backend, kernels, plain, q, v, gate_f)


def _fake_backward(grad, q, k, v, gate_f, gate_b, backend="chunked"):
    return tuple(x.new_empty(x.shape) for x in (q, k, v, gate_f, gate_b))


@operator("bidirectional_gla_backward", _fake_backward, flops=_backward_flops)
def gla_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate_f: Tensor,
    gate_b: Tensor,
    backend: str = "chunked",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the five inputs, contiguous."""
    inputs = (q, k, v, gate_f, gate_b)
    grads = tuple(x.new_empty(x.shape) for x in inputs)
    gla_backward_into(grad, *inputs, *grads, backend=backend)  # type: ignore[misc,arg-type]
    return grads  # type: ignore[return-value]


def _fake_backward_into(*args):
    return None


@operator(
    "bidirectional_gla_backward_into",
    _fake_backward_into,
    mutates=("dq", "dk", "dv", "dgate_f", "dgate_b"),
    flops=_backward_flops,
)
def gla_backward_into(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate_f: Tensor,
    gate_b: Tensor,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    dgate_f: Tensor,
    dgate_b: Tensor,
    backend: str = "chunked",
) -> None:
    """Write the gradients into tensors that exist, such as parts of a projection's gradient."""
    inputs, results = (q, k, v, gate_f, gate_b), (dq, dk, dv, dgate_f, dgate_b)
    if q.shape[0] == 0:
        return
    if backend == "cpu":
        from ..cpu import cpu_backward

        cpu_backward(grad, *inputs, out=results)
        return

    def kernels() -> None:
        from .triton import triton_backward

        triton_backward(grad, *inputs, out=results)

    def plain() -> None:
        with no_autocast(q):
            if {x.dtype for x in (grad, *inputs, *results)} in ({torch.float32}, {torch.float64}):
                chunked_backward(grad, *inputs, out=results)
                return
            for x, y in zip(results, chunked_backward(*upcast(grad, *inputs)), strict=True):
                x.copy_(y)

    run("the gradient of bidirectional_gla", backend, kernels, plain, q, v, gate_f, grad)


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.backend, _ = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad: Tensor):
    gradients = gla_backward(grad, *ctx.saved_tensors, ctx.backend)  # type: ignore[call-arg]
    return *gradients, None, None


torch.library.register_autograd(
    "vig_mm::bidirectional_gla", _backward, setup_context=_setup_context, lib=LIBRARY
)
