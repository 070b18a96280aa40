"""The gate between global and local features: checks, backends, registration with torch."""

import torch
from torch import Tensor

from ..dispatch import (
    LIBRARY,
    check_device,
    check_floating,
    check_shape,
    check_tokens,
    operator,
    run,
    select_backend,
)
from ..torch_utils import upcast
from .torch import torch_locality_gate, torch_locality_gate_backward

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
    """
    _check(o, local, gate, g_weight, l_weight)
    backend = select_backend(
        backend, GATE_BACKENDS, "torch", o=o, local=local, gate=gate, g_weight=g_weight
    )
    if backend == "torch":
        return torch_locality_gate(o, local, gate, g_weight, l_weight, eps=eps, act=act)
    return _gate(o, local, gate, g_weight, l_weight, eps, act, backend)


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


def _fake(o, local, gate, g_weight, l_weight, eps, act, backend):
    return o.new_empty(o.shape)


@operator("locality_gate", _fake)
def _gate(
    o: Tensor,
    local: Tensor,
    gate: Tensor,
    g_weight: Tensor,
    l_weight: Tensor,
    eps: float,
    act: bool,
    backend: str,
) -> Tensor:
    tensors = (o, local, gate, g_weight, l_weight)
    if backend == "cpu":
        from ..cpu.locality_gate import gate_forward as cpu_gate_forward

        return cpu_gate_forward(*tensors, eps=eps, act=act)

    def kernels() -> Tensor:
        from .triton import gate_forward

        return gate_forward(*tensors, eps, act)

    def plain() -> Tensor:
        return torch_locality_gate(*tensors, eps=eps, act=act)

    return run("locality_gate", backend, kernels, plain, *tensors)


def _fake_backward(grad, o, local, gate, g_weight, l_weight, eps, act, backend):
    return tuple(x.new_empty(x.shape) for x in (o, local, gate, g_weight, l_weight))


@operator("locality_gate_backward", _fake_backward)
def _gate_backward(
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
    tensors = (o, local, gate, g_weight, l_weight)

    def kernels() -> tuple[Tensor, ...]:
        from .triton import gate_backward

        return gate_backward(grad, *tensors, eps, act)

    def plain() -> tuple[Tensor, ...]:
        wide = (x.contiguous() for x in upcast(grad, *tensors))
        _, *gradients = torch_locality_gate_backward(*wide, eps=eps, act=act)
        return tuple(g.to(x.dtype) for g, x in zip(gradients, tensors, strict=True))

    return run(  # type: ignore[return-value]
        "the gradient of locality_gate", backend, kernels, plain, *tensors, grad
    )


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.eps, ctx.act, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad: Tensor):
    settings = dict(eps=ctx.eps, act=ctx.act, backend=ctx.backend)
    gradients = _gate_backward(grad, *ctx.saved_tensors, **settings)
    return *gradients, None, None, None


torch.library.register_autograd(
    "vig_mm::locality_gate", _backward, setup_context=_setup_context, lib=LIBRARY
)
