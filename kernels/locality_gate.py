"""The gate between global and local features: checks, backends, registration with torch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_device, check_floating, check_shape, check_tokens
from .dispatch import KERNELS, run, select_backend
from .locality_gate_backward import torch_locality_gate_backward
from .norm import upcast

GATE_BACKENDS = ("torch", "triton")


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
        backend: ``triton`` (one fused kernel; the default for CUDA tensors) or ``torch`` (the
            default in all other cases, which are those of `bidirectional_gla`).

    Returns:
        ``[B, N, H, D]``, contiguous, in the dtype of ``o``.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: shapes or devices do not fit together, or the backend is unknown or does not
            take these inputs.
        ImportError: ``backend="triton"`` and there is no Triton.
    """
    _check(o, local, gate, g_weight, l_weight)
    backend = select_backend(backend, GATE_BACKENDS, "torch", o=o)
    if backend in KERNELS:
        return _gate_op(o, local, gate, g_weight, l_weight, eps, act, backend)
    return torch_locality_gate(o, local, gate, g_weight, l_weight, eps, act)


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
    backend: str,
) -> Tensor:
    inputs = (o, local, gate, g_weight, l_weight)

    def kernels() -> Tensor:
        from .triton import gate_forward

        return gate_forward(*inputs, eps, act)

    def plain() -> Tensor:
        return torch_locality_gate(*inputs, eps, act)

    return run("locality_gate", backend, kernels, plain, *inputs)


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
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = (o, local, gate, g_weight, l_weight)

    def kernels() -> tuple[Tensor, ...]:
        from .triton import gate_backward

        return gate_backward(grad, *inputs, eps, act)

    def plain() -> tuple[Tensor, ...]:
        dy, x, y, z, w_x, w_y = (t.contiguous() for t in upcast(grad, *inputs))
        _, *grads = torch_locality_gate_backward(dy, x, y, z, w_x, w_y, eps, act)
        return tuple(g.to(x.dtype) for g, x in zip(grads, inputs, strict=True))

    name = "the gradient of locality_gate"
    return run(name, backend, kernels, plain, *inputs)  # type: ignore[return-value]


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

    def kernels() -> Tensor:
        from .triton.gate_projection import gate_projection

        return gate_projection(*tensors, weight, x, scale, eps, act)

    def plain() -> Tensor:
        y = torch_locality_gate(*tensors, eps, act).flatten(2).to(weight.dtype) @ weight.mT
        return x + (y if scale is None else y * scale[:, None, None]).to(x.dtype)

    return run("gate_projection", backend, kernels, plain, o, gate, weight, x)


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

    def kernels() -> tuple[Tensor, ...]:
        from .triton import gate_backward_into

        return gate_backward_into(*tensors, scale, dgate, eps, act)

    def plain() -> tuple[Tensor, ...]:
        dy, x, y, z, w_x, w_y = (t.contiguous() for t in upcast(*tensors))
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

    name = "the gradient of locality_gate"
    return run(name, backend, kernels, plain, *tensors)  # type: ignore[return-value]


@_gate_op.register_fake
def _(o, local, gate, g_weight, l_weight, eps, act, backend):
    return o.new_empty(o.shape)


@_gate_backward_op.register_fake
def _(grad, o, local, gate, g_weight, l_weight, eps, act, backend):
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
    *tensors, ctx.eps, ctx.act, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad: Tensor):
    settings = (ctx.eps, ctx.act, ctx.backend)
    return *_gate_backward_op(grad, *ctx.saved_tensors, *settings), None, None, None


_gate_op.register_autograd(_backward, setup_context=_setup_context)
