"""The gate between global and local features: checks, backends, registration with torch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_device, check_floating, check_shape, check_tokens
from .dispatch import select_backend
from .locality_gate_backward import torch_locality_gate_backward

GATE_BACKENDS = ("torch", "cpu", "triton")


def locality_gate(
    o: Tensor,
    local: Tensor,
    gate: Tensor,
    g_weight: Tensor,
    l_weight: Tensor,
    *,
    eps: float = 1e-6,
    act: bool = False,
    backend: str | None = None,
) -> Tensor:
    """2D gating locality injection (ViG, section 3.3): both inputs normalised, then blended::

        y = RMSNorm_g(o) * sigmoid(gate) + RMSNorm_l(local) * (1 - sigmoid(gate))

    The norms are taken over the D channels of a head. Whatever the inputs are, also under autocast,
    this is computed in float32 at least, and only the result is rounded.

    Args:
        o: ``[B, N, H, D]``: B batch, N tokens, H heads, D head width; output of the attention.
        local: ``[B, N, H, D]``, features of the tokens' neighbourhood.
        gate: ``[B, N, H, D]``, *logits*.
        g_weight, l_weight: ``[D]``, weights of the norms of o and local.
        eps: added to the mean squares.
        act: return silu(y) instead of y.
        backend: ``triton`` (one fused kernel; the default for CUDA tensors), ``cpu`` (one in
            machine code by numba, with gradients in plain PyTorch; the default on a CPU with numba)
            or ``torch`` (the default in all other cases, which are those of `bidirectional_gla`).

    Returns:
        ``[B, N, H, D]``, contiguous, in the dtype of ``o``.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: shapes or devices do not fit together, or the backend is unknown or does not
            take these inputs.
        ImportError: ``backend="triton"`` and there is no Triton, or "cpu" and no numba.
        RuntimeError: ``backend="cpu"`` and numba cannot compile here.
    """
    _check(o, local, gate, g_weight, l_weight)
    backend = select_backend(
        backend, GATE_BACKENDS, "torch", o=o, local=local, gate=gate, g_weight=g_weight
    )
    if backend == "cpu":
        return _cpu_gate_op(o, local, gate, g_weight, l_weight, eps, act)
    function = _gate_op if backend == "triton" else torch_locality_gate
    return function(o, local, gate, g_weight, l_weight, eps, act)


def _check(o: Tensor, local: Tensor, gate: Tensor, g_weight: Tensor, l_weight: Tensor) -> None:
    check_tokens(o=o, local=local, gate=gate)
    check_shape("local", local, "o", o)
    check_shape("gate", gate, "o", o)
    for name, weight in (("g_weight", g_weight), ("l_weight", l_weight)):
        check_floating(name, weight)
        check_device(name, weight, "o", o)
        if weight.shape != o.shape[-1:]:
            raise ValueError(
                f"{name} must be {tuple(o.shape[-1:])} to fit o {tuple(o.shape)}, "
                f"got {tuple(weight.shape)}"
            )


def torch_locality_gate(
    o: Tensor,
    local: Tensor,
    gate: Tensor,
    g_weight: Tensor,
    l_weight: Tensor,
    eps: float,
    act: bool,
) -> Tensor:
    """In plain PyTorch; differentiable by autograd."""
    inputs = (o, local, gate, g_weight, l_weight)
    double = any(x.dtype == torch.float64 for x in inputs)
    x, y, z, w_x, w_y = (t.to(torch.float64 if double else torch.float32) for t in inputs)
    x = F.rms_norm(x, w_x.shape, w_x, eps)
    y = F.rms_norm(y, w_y.shape, w_y, eps)
    y = torch.lerp(y, x, torch.sigmoid(z))
    return (F.silu(y) if act else y).to(o.dtype).contiguous()


@torch.library.custom_op("vig_mm::locality_gate", mutates_args=())
def _gate_op(
    o: Tensor,
    local: Tensor,
    gate: Tensor,
    g_weight: Tensor,
    l_weight: Tensor,
    eps: float,
    act: bool,
) -> Tensor:
    from .triton import gate_forward

    return gate_forward(o, local, gate, g_weight, l_weight, eps, act)


@torch.library.custom_op("vig_mm::locality_gate_cpu", mutates_args=())
def _cpu_gate_op(
    o: Tensor,
    local: Tensor,
    gate: Tensor,
    g_weight: Tensor,
    l_weight: Tensor,
    eps: float,
    act: bool,
) -> Tensor:
    from .cpu.locality_gate import gate_forward

    return gate_forward(o, local, gate, g_weight, l_weight, eps, act)


@torch.library.custom_op("vig_mm::locality_gate_backward", mutates_args=())
def _gate_backward_op(
    grad: Tensor,
    o: Tensor,
    local: Tensor,
    gate: Tensor,
    g_weight: Tensor,
    l_weight: Tensor,
    eps: float,
    act: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    from .triton import gate_backward

    return gate_backward(grad, o, local, gate, g_weight, l_weight, eps, act)


@torch.library.custom_op("vig_mm::gate_projection", mutates_args=())
def _gate_projection_op(
    o: Tensor,
    local: Tensor,
    gate: Tensor,
    g_weight: Tensor,
    l_weight: Tensor,
    weight: Tensor,
    x: Tensor,
    scale: Tensor | None,
    eps: float,
    act: bool,
    backend: str,
) -> Tensor:
    """x + scale * locality_gate(...) weight^T of x ``[B, N, C]``, scale ``[B]``.

    The product is taken in the dtype of weight ``[C, H D]``.
    """
    tensors = (o, local, gate, g_weight, l_weight)
    if backend == "triton":
        from .triton.gate_projection import gate_projection

        return gate_projection(*tensors, weight, x, scale, eps, act)
    y = torch_locality_gate(*tensors, eps, act).flatten(2).to(weight.dtype) @ weight.mT
    return x + (y if scale is None else y * scale[:, None, None]).to(x.dtype)


@_gate_projection_op.register_fake
def _(o, local, gate, g_weight, l_weight, weight, x, scale, eps, act, backend):
    return x.new_empty(x.shape)


@torch.library.custom_op("vig_mm::locality_gate_backward_into", mutates_args=("dgate",))
def _gate_backward_into_op(
    grad: Tensor,
    o: Tensor,
    local: Tensor,
    gate: Tensor,
    g_weight: Tensor,
    l_weight: Tensor,
    scale: Tensor | None,
    dgate: Tensor,
    eps: float,
    act: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What a mixer needs of the gate in its backward pass, times ``scale [B]``.

    The gate's gradient goes to ``dgate``, such as a part of a projection's gradient. Returned are
    the output again, in dgate's dtype, and the gradients of o, local, the gate's bias ``[H D]``
    and both weights.
    """
    tensors = (grad, o, local, gate, g_weight, l_weight)
    if backend == "triton":
        from .triton import gate_backward_into

        return gate_backward_into(*tensors, scale, dgate, eps, act)
    double = any(x.dtype == torch.float64 for x in tensors)
    wide = [x.to(torch.float64 if double else torch.float32) for x in tensors]
    dy, x, y, z, w_x, w_y = wide
    if scale is not None:
        dy = dy * scale[:, None, None, None]
    out, do, dlocal, dz, dg, dl = torch_locality_gate_backward(dy, x, y, z, w_x, w_y, eps, act)
    if scale is not None:
        out *= scale[:, None, None, None]
    dgate.copy_(dz)
    return (
        out.to(dgate.dtype), do.to(o.dtype), dlocal.to(local.dtype), dz.sum((0, 1)).flatten(),
        dg.to(g_weight.dtype), dl.to(l_weight.dtype),
    )  # fmt: skip


@_cpu_gate_op.register_fake
@_gate_op.register_fake
def _(o, local, gate, g_weight, l_weight, eps, act):
    return o.new_empty(o.shape)


@_gate_backward_op.register_fake
def _(grad, o, local, gate, g_weight, l_weight, eps, act):
    return tuple(x.new_empty(x.shape) for x in (o, local, gate, g_weight, l_weight))


@_gate_backward_into_op.register_fake
def _(grad, o, local, gate, g_weight, l_weight, scale, dgate, eps, act, backend):
    dbias = o.new_empty(
        o.shape[2] * o.shape[3], dtype=torch.promote_types(grad.dtype, torch.float32)
    )
    out = o.new_empty(o.shape, dtype=dgate.dtype)
    like = (x.new_empty(x.shape) for x in (o, local))
    return out, *like, dbias, torch.empty_like(g_weight), torch.empty_like(l_weight)


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.eps, ctx.act = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad: Tensor):
    return *_gate_backward_op(grad, *ctx.saved_tensors, ctx.eps, ctx.act), None, None


_gate_op.register_autograd(_backward, setup_context=_setup_context)


def _cpu_backward(ctx, grad: Tensor):
    inputs = ctx.saved_tensors
    dy, x, y, z, w_x, w_y = (x.float().contiguous() for x in (grad, *inputs))
    _, *grads = torch_locality_gate_backward(dy, x, y, z, w_x, w_y, ctx.eps, ctx.act)
    return *(g.to(x.dtype) for g, x in zip(grads, inputs, strict=True)), None, None


_cpu_gate_op.register_autograd(_cpu_backward, setup_context=_setup_context)
