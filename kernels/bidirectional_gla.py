"""The public function: argument checks, choice of the backend, registration with torch."""

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .chunked import chunked_backward, chunked_forward
from .reference import reference_bidirectional_gla

BACKENDS = ("reference", "chunked", "triton")
"""``reference``: the recurrence. ``chunked``: plain PyTorch, the default. ``triton``: the fused GPU
kernels, on request only, as they have run in Triton's interpreter but not yet on a GPU."""


def bidirectional_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate_f: Tensor,
    gate_b: Tensor,
    *,
    backend: str | None = None,
) -> Tensor:
    """Bidirectional gated linear attention with direction-wise, per-channel gates.

    Every token t attends to all tokens s, each direction with its own decay (ViG, section 3.2):

        log alpha = logsigmoid(gate) / 16
        o_t = K^-1/2 / 2 * [ sum_{s<=t} (q_t . k_s * prod_{s<j<=t} alpha_f[j]) v_s
                           + sum_{s>=t} (q_t . k_s * prod_{t<=j<s} alpha_b[j]) v_s ]

    Time and memory are linear in N. Any finite gate logit is safe; sums, gates and states are
    float32 at least, whatever the inputs are.

    Args:
        q, k: ``[B, N, H, K]``: B batch, N tokens, H heads, K key width. Strided views (halves of
            one projection) are read in place.
        v: ``[B, N, H, V]``, V the value width.
        gate_f, gate_b: ``[B, N, H, K]``, gate *logits* of the forward and the backward scan.
        backend: one of `BACKENDS`; None takes the default.

    Returns:
        ``[B, N, H, V]``, contiguous, in the dtype of ``v``.

    Raises:
        TypeError: an argument is not a floating-point tensor, or q, k, v differ in dtype.
        ValueError: shapes or devices do not fit together, or the backend is unknown or does not
            take these inputs.
        ImportError: ``backend="triton"`` and there is no Triton.
    """
    _check(q, k, v, gate_f, gate_b)
    if backend is None:
        backend = "chunked"
    if backend == "reference":
        return reference_bidirectional_gla(q, k, v, gate_f, gate_b)
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; choose one of {', '.join(BACKENDS)} or None")
    if backend == "triton":
        _check_triton(q, v)
    return _forward_op(q, k, v, gate_f, gate_b, backend)


def _check_triton(q: Tensor, v: Tensor) -> None:
    try:
        from .triton import unsupported
    except ModuleNotFoundError as error:
        raise ImportError(
            "backend='triton' needs the package triton: pip install triton, or leave backend out"
        ) from error
    if reason := unsupported(q, v):
        raise ValueError(f"backend='triton': {reason}; leave backend out")


def _check(q: Tensor, k: Tensor, v: Tensor, gate_f: Tensor, gate_b: Tensor) -> None:
    named = {"q": q, "k": k, "v": v, "gate_f": gate_f, "gate_b": gate_b}
    for name, x in named.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
        if not x.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {x.dtype}")
        if x.dim() != 4:
            raise ValueError(f"{name} must be [B, N, H, width], got shape {tuple(x.shape)}")
        if x.device != q.device:
            raise ValueError(f"{name} is on {x.device}, q on {q.device}; put all on one device")
    for name in ("k", "gate_f", "gate_b"):
        if named[name].shape != q.shape:
            raise ValueError(
                f"{name} must have q's shape {tuple(q.shape)}, got {tuple(named[name].shape)}"
            )
    if v.shape[:3] != q.shape[:3]:
        raise ValueError(
            f"v must be {(*q.shape[:3], 'V')} to fit q {tuple(q.shape)}, got {tuple(v.shape)}"
        )
    for name in ("q", "v"):
        for size, meaning in zip(named[name].shape[1:], ("tokens", "heads", "width"), strict=True):
            if size == 0:
                raise ValueError(f"{name} needs {meaning} >= 1, got {tuple(named[name].shape)}")
    if not q.dtype == k.dtype == v.dtype:
        raise TypeError(f"q, k and v must share a dtype, got {q.dtype}, {k.dtype}, {v.dtype}")
    if gate_f.dtype != gate_b.dtype:
        raise TypeError(f"gates must share a dtype, got {gate_f.dtype} and {gate_b.dtype}")


def _upcast(*tensors: Tensor) -> list[Tensor]:
    """Half precision to float32; nothing is copied otherwise."""
    double = any(x.dtype == torch.float64 for x in tensors)
    dtype = torch.float64 if double else torch.float32
    return [x.to(dtype) for x in tensors]


@torch.library.custom_op("vig_mm::bidirectional_gla", mutates_args=())
def _forward_op(
    q: Tensor, k: Tensor, v: Tensor, gate_f: Tensor, gate_b: Tensor, backend: str = "chunked"
) -> Tensor:
    if q.shape[0] == 0:
        return v.new_empty(v.shape)
    if backend == "triton":
        from .triton import triton_forward

        return triton_forward(q, k, v, gate_f, gate_b)
    with torch.autocast(q.device.type, enabled=False):  # the products inside stay float32
        return chunked_forward(*_upcast(q, k, v, gate_f, gate_b)).to(v.dtype)


@torch.library.custom_op("vig_mm::bidirectional_gla_backward", mutates_args=())
def _backward_op(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate_f: Tensor,
    gate_b: Tensor,
    backend: str = "chunked",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = (q, k, v, gate_f, gate_b)
    if q.shape[0] == 0:
        return tuple(x.new_empty(x.shape) for x in inputs)
    if backend == "triton":
        from .triton import triton_backward

        return triton_backward(grad, *inputs)
    with torch.autocast(q.device.type, enabled=False):
        grads = chunked_backward(*_upcast(grad, *inputs))
    return tuple(g.to(x.dtype) for g, x in zip(grads, inputs, strict=True))


@_forward_op.register_fake
def _(q, k, v, gate_f, gate_b, backend="chunked"):
    return v.new_empty(v.shape)


@_backward_op.register_fake
def _(grad, q, k, v, gate_f, gate_b, backend="chunked"):
    return tuple(x.new_empty(x.shape) for x in (q, k, v, gate_f, gate_b))


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad: Tensor):
    return *_backward_op(grad, *ctx.saved_tensors, ctx.backend), None


_forward_op.register_autograd(_backward, setup_context=_setup_context)


def recurrence_flops(q_shape: torch.Size, v_shape: torch.Size) -> int:
    """FLOPs (2 per multiply-add) of the two products that define the operator, k v^T and q S.

    8 B N H K V for both directions: what the recurrence needs, whatever a backend spends.
    """
    batch, num_tokens, heads, width = q_shape
    return 8 * batch * num_tokens * heads * width * v_shape[-1]


@register_flop_formula(torch.ops.vig_mm.bidirectional_gla)
def _forward_flops(q_shape, k_shape, v_shape, *args, **kwargs) -> int:
    return recurrence_flops(q_shape, v_shape)


@register_flop_formula(torch.ops.vig_mm.bidirectional_gla_backward)
def _backward_flops(grad_shape, q_shape, k_shape, v_shape, *args, **kwargs) -> int:
    # dq, dk, dv and the states of both directions, recomputed: each product has two gradients
    return 2 * recurrence_flops(q_shape, v_shape)
