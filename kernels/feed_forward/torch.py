"""The feed-forward half of a block in plain PyTorch, forward and backward, by blocks of tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..torch_utils import (
    add_scaled,
    add_up,
    linear,
    linear_input_gradient,
    linear_weight_gradient,
    normalize,
    normalize_backward,
    scale_of_rows,
    token_blocks,
)

FLOAT16_MAX = torch.finfo(torch.float16).max


def torch_feed_forward(
    x: Tensor,
    norm_w: Tensor,
    norm_b: Tensor | None,
    w_in: Tensor,
    w_out: Tensor,
    scale: Tensor | None,
    eps: float,
    keep: bool,
    inplace: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """See `feed_forward`, of rows ``x [M, C]``; and w_in's output ``[M, 2I]`` for ``keep``."""
    out = x if inplace else torch.empty_like(x)
    kept = x.new_empty(len(x), len(w_in), dtype=w_in.dtype) if keep else None
    factor = scale_of_rows(scale, len(x))
    for r in token_blocks(x):
        inside = linear(normalize(x[r], norm_w, norm_b, eps).to(w_in.dtype), w_in)
        if kept is not None:
            kept[r] = inside
        y = linear(torch_swiglu(inside), w_out)
        add_scaled(x[r], y, None if factor is None else factor[r], out[r])
    return out, kept


def torch_feed_forward_backward(
    grad: Tensor,
    x: Tensor,
    norm_w: Tensor,
    norm_b: Tensor | None,
    w_in: Tensor,
    w_out: Tensor,
    scale: Tensor | None,
    inside: Tensor | None,
    eps: float,
) -> tuple[Tensor, ...]:
    """Gradients of ``x [M, C]``, of the norm's weight and bias (or zeros), of w_in and w_out.

    ``inside``: w_in's output; computed again where it was not kept.
    """
    dx, factor = torch.empty_like(x), scale_of_rows(scale, len(x))
    sums: list[Tensor] = []
    for r in token_blocks(x):
        normed = normalize(x[r], norm_w, norm_b, eps).to(w_in.dtype)
        dy = grad[r].to(w_in.dtype)
        if factor is not None:
            dy = dy * factor[r].to(dy.dtype)
        dinside, hidden = torch_swiglu_backward(
            linear_input_gradient(dy, w_out), linear(normed, w_in) if inside is None else inside[r]
        )
        dw_out = linear_weight_gradient(dy, hidden, w_out)
        dw_in = linear_weight_gradient(dinside, normed, w_in)
        dnormed = linear_input_gradient(dinside, w_in).to(x.dtype)
        dx_r, *dnorm = normalize_backward(dnormed, x[r], norm_w, norm_b, eps)
        torch.add(dx_r, grad[r], out=dx[r])
        add_up(sums, *dnorm, dw_in, dw_out)
    return dx, *sums


def torch_swiglu(x: Tensor) -> Tensor:
    """silu(a) u with (a, u) the halves of ``x [M, 2I]``."""
    gate, up = x.chunk(2, dim=-1)
    out = F.silu(gate).mul_(up)
    if x.dtype == torch.float16:  # inf would be NaN behind the next layer
        out.clamp_(-FLOAT16_MAX, FLOAT16_MAX)
    return out


def torch_swiglu_backward(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of ``x [M, 2I]`` from that of `torch_swiglu`'s result, and the result."""
    gate, up = x.chunk(2, dim=-1)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dgate, dup = dx.chunk(2, dim=-1)
    out = F.silu(gate)
    if x.dtype == torch.float16:
        grad = grad.masked_fill((out * up).isinf(), 0)
    torch.mul(grad, out, out=dup)
    torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=dgate)
    out.mul_(up)
    if x.dtype == torch.float16:
        out.clamp_(-FLOAT16_MAX, FLOAT16_MAX)
    return dx, out
