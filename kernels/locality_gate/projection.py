"""The gate, the linear layer behind it and the residual branch as one step, and its gradients."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..dispatch import run
from ..torch_utils import (
    add_scaled,
    add_up,
    linear,
    linear_input_gradient,
    linear_weight_gradient,
    no_autocast,
    scale_of_rows,
    token_blocks,
    upcast,
)
from .torch import torch_locality_gate, torch_locality_gate_backward


def gate_projection(
    o: Tensor,
    local: Tensor,
    gate: Tensor,
    g_weight: Tensor,
    l_weight: Tensor,
    weight: Tensor,
    x: Tensor,
    scale: Tensor | None,
    *,
    eps: float,
    act: bool,
    backend: str,
) -> Tensor:
    """x + scale * weight locality_gate(o, local, gate): how ViG's attention ends.

    Not differentiable by autograd: `gate_projection_backward` gives the gradients.

    Args:
        o, local, gate, g_weight, l_weight, eps, act: see `locality_gate`; ``[B, N, H, D]``, heads
            and channels are neighbours in memory.
        weight: ``[C, H D]``; the product is taken in its dtype.
        x: ``[B, N, C]``, contiguous.
        scale: ``[B]`` of stochastic depth, or None.
        backend: what `select_backend` gave.

    Returns:
        ``[B, N, C]``, contiguous, in the dtype of x.
    """

    blend: Callable[..., Tensor] = torch_locality_gate
    if backend == "cpu":
        from ..cpu.locality_gate import gate_forward as blend

    def kernels() -> Tensor:
        from .triton_projection import gate_projection

        return gate_projection(o, local, gate, g_weight, l_weight, weight, x, scale, eps, act)

    def plain() -> Tensor:
        out = torch.empty_like(x)
        rows = [t.flatten(0, 1) for t in (o, local, gate, x, out)]
        factor = scale_of_rows(scale, len(rows[0]))
        for r in token_blocks(rows[0]):
            *inputs, x_r, out_r = (t[r] for t in rows)
            with no_autocast(x):
                y = blend(*inputs, g_weight, l_weight, eps=eps, act=act).flatten(1)
                y = linear(y.to(weight.dtype), weight)
            add_scaled(x_r, y, None if factor is None else factor[r], out_r)
        return out

    return run("gate_projection", backend, kernels, plain, o, x)


def gate_projection_backward(
    grad: Tensor,
    o: Tensor,
    local: Tensor,
    gate: Tensor,
    g_weight: Tensor,
    l_weight: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    dgate: Tensor,
    *,
    eps: float,
    act: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of o, local, the gate's bias ``[H D]``, g_weight, l_weight and weight.

    Those of weights may be in float32 where these are in half precision.

    Args:
        grad: ``[B, N, C]``, of the result.
        dgate: ``[B, N, H, D]``; the gradient of gate is written there, such as a part of a
            projection's gradient.
        The others: as `gate_projection` had them.
    """
    dy = grad.flatten(0, 1).to(weight.dtype)

    def kernels() -> tuple[Tensor, ...]:
        from .triton import gate_backward_into

        dhidden = linear_input_gradient(dy, weight).view(o.shape)
        y, do, dlocal, sums = gate_backward_into(
            dhidden, o, local, gate, g_weight, l_weight, scale, dgate, eps, act
        )
        dweight = linear_weight_gradient(dy, y.flatten(0, 1).flatten(1), weight)
        dg_weight, dl_weight = sums[:2].sum(1).unbind()
        return do, dlocal, sums[2].flatten(), dg_weight, dl_weight, dweight

    def plain() -> tuple[Tensor, ...]:
        do, dlocal = torch.empty_like(o), torch.empty(o.shape, dtype=local.dtype, device=o.device)
        rows = [t.flatten(0, 1) for t in (o, local, gate, do, dlocal, dgate)]
        factor = scale_of_rows(scale, len(dy))
        sums: list[Tensor] = []
        for r in token_blocks(dy):
            *inputs, do_r, dlocal_r, dgate_r = (t[r] for t in rows)
            dy_r = dy[r] if factor is None else dy[r] * factor[r].to(dy.dtype)
            dhidden = linear_input_gradient(dy_r, weight).view(do_r.shape)
            wide = upcast(dhidden, *inputs, g_weight, l_weight)
            with no_autocast(o):
                y, do_f, dlocal_f, dgate_f, *dnorms = torch_locality_gate_backward(
                    *wide, eps=eps, act=act
                )
            for t, f in ((do_r, do_f), (dlocal_r, dlocal_f), (dgate_r, dgate_f)):
                t.copy_(f)
            dbias = dgate_f.sum(0).flatten()
            dweight = linear_weight_gradient(dy_r, y.flatten(1).to(dy.dtype), weight)
            add_up(sums, dbias, *dnorms, dweight)
        return do, dlocal, *sums

    return run(  # type: ignore[return-value]
        "the gradient of gate_projection", backend, kernels, plain, o, grad
    )
