"""The second half of a block, keeping its input and what the first layer gives: 6.3 C a token.

Of narrow channels the kernels compute that again, too: the input alone is kept.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vig_mm.kernels.dispatch import KERNELS, PLAIN_OR_TRITON, select_backend
from vig_mm.kernels.feed_forward import MAX_CHANNELS
from vig_mm.kernels.norm import normalize, torch_norm_backward
from vig_mm.kernels.swiglu import torch_swiglu, torch_swiglu_backward

from .layout import by_blocks
from .linear import linear, linear_backward, linear_input_gradient, linear_weight_gradient
from .recompute import (
    accumulate,
    add_scaled,
    blocks_of,
    like,
    no_autocast,
    projection_dtype,
    recomputes,
    sample_scale,
    scale_of_rows,
    scaled,
)

ops = torch.ops.vig_mm


def feed_forward(
    x: Tensor, norm: Any, mlp: Any, drop_path: nn.Module, backend: str | None
) -> Tensor:
    """x + drop_path(mlp(norm(x))) of tokens ``[B, N, C]``.

    Args:
        norm: `nn.LayerNorm` or `RMSNorm`.
        mlp: `SwiGLU`.
        backend: of the model; ``torch`` leaves all to autograd.
    """
    if not recomputes(backend, x, norm, mlp):
        return by_blocks(lambda t: t + drop_path(mlp(norm(t))), x)
    if backend != "triton":
        backend = "torch" if backend else None
    settings = Settings(
        eps=norm.eps,
        dtype=projection_dtype(x),
        backend=select_backend(backend, PLAIN_OR_TRITON, "torch", limit_widths=False, x=x),
        fused=x.shape[-1] <= MAX_CHANNELS,
    )
    w_in, w_out = (getattr(mlp, name).weight for name in mlp.names)
    weights = (norm.weight, getattr(norm, "bias", None), w_in, w_out)
    return _FeedForward.apply(settings, x, sample_scale(drop_path, x), *weights)


class Settings(NamedTuple):
    """What the function needs beside tensors."""

    eps: float
    dtype: torch.dtype
    backend: str
    fused: bool  # the kernels take all in one


class _FeedForward(torch.autograd.Function):
    """x + scale * w_out(swiglu(w_in(norm(x))))."""

    @staticmethod
    def forward(
        ctx: Any, settings: Settings, x: Tensor, scale: Tensor | None, *weights: Any
    ) -> Tensor:
        x = x.contiguous()
        with no_autocast(x):
            norm_w, norm_b, w_in, w_out = weights
            out, kept = _forward(settings, x, scale, norm_w, norm_b, w_in, w_out)
        ctx.save_for_backward(x, scale, *weights, *kept)
        ctx.settings = settings
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        x, scale, *tensors = ctx.saved_tensors
        weights, kept = tensors[:4], tensors[4:]
        backward = _kernels_backward if ctx.settings.backend in KERNELS else _torch_backward
        with no_autocast(grad):
            norm_w, norm_b, w_in, w_out = weights
            dx, *gradients = backward(
                ctx.settings, grad.contiguous(), x, scale, norm_w, norm_b, w_in, w_out, kept
            )
        return None, dx, None, *like(gradients, weights)


def _forward(
    s: Settings,
    x: Tensor,
    scale: Tensor | None,
    norm_w: Tensor,
    norm_b: Tensor | None,
    w_in: Tensor,
    w_out: Tensor,
) -> tuple[Tensor, list[Tensor]]:
    """The result, and block by block what the first layer gives, if it is kept."""
    if s.backend in KERNELS and s.fused:
        samples = None if scale is None else scale.flatten()
        weights = (norm_w, norm_b, w_in.to(s.dtype), w_out.to(s.dtype))
        out = ops.feed_forward(x.flatten(0, 1), *weights, samples, s.eps, s.backend)
        return out.view(x.shape), []
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows_x, rows_out, scale = x.flatten(0, 1), out.flatten(0, 1), scale_of_rows(scale, x)
    w_in, w_out, kept = w_in.to(s.dtype), w_out.to(s.dtype), []
    for r in blocks_of(rows_x, _whole(s, x)):
        if s.backend in KERNELS:
            inside = linear(ops.norm(rows_x[r], norm_w, norm_b, s.eps, s.dtype, s.backend), w_in)
            hidden = ops.swiglu(inside, s.backend)
        else:
            inside = linear(normalize(rows_x[r], norm_w, norm_b, s.eps).to(s.dtype), w_in)
            hidden = torch_swiglu(inside)
        add_scaled(rows_x, linear(hidden, w_out), scale, r, rows_out)
        kept.append(inside)
    return out, kept


def _kernels_backward(
    s: Settings,
    grad: Tensor,
    x: Tensor,
    scale: Tensor | None,
    norm_w: Tensor,
    norm_b: Tensor | None,
    w_in: Tensor,
    w_out: Tensor,
    kept: list[Tensor],
) -> tuple[Any, ...]:
    """Gradients of x, of the norm's weight and bias, of both layers; one block of tokens.

    The kernels give what both weights' gradients need beside the gradients that they compute.
    """
    residual, w_in, w_out = grad.flatten(0, 1), w_in.to(s.dtype), w_out.to(s.dtype)
    grad, scale = residual.to(s.dtype), None if scale is None else scale.flatten()
    if s.fused:
        dx, dinside, hidden, normed, dnorm_w, dnorm_b = ops.feed_forward_backward(
            residual, x.flatten(0, 1), norm_w, norm_b, w_in, w_out, scale, s.eps, s.backend
        )
        dw_out = linear_weight_gradient(grad, hidden, w_out)
        dw_in = linear_weight_gradient(dinside, normed, w_in)
        return dx.view(x.shape), dnorm_w, dnorm_b, dw_in, dw_out
    (inside,) = kept
    dinside, hidden = ops.swiglu_backward(
        linear_input_gradient(grad, w_out), inside, scale, s.backend
    )
    dw_out = linear_weight_gradient(grad, hidden, w_out)
    del hidden
    dx, normed, dnorm_w, dnorm_b = ops.norm_backward(
        linear_input_gradient(dinside, w_in), x.flatten(0, 1), norm_w, norm_b, residual,
        s.eps, s.backend,
    )  # fmt: skip
    dw_in = linear_weight_gradient(dinside, normed, w_in)
    return dx.view(x.shape), dnorm_w, dnorm_b, dw_in, dw_out


def _torch_backward(
    s: Settings,
    grad: Tensor,
    x: Tensor,
    scale: Tensor | None,
    norm_w: Tensor,
    norm_b: Tensor | None,
    w_in: Tensor,
    w_out: Tensor,
    kept: list[Tensor],
) -> tuple[Any, ...]:
    """The same in plain PyTorch, block by block."""
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows_x, rows_dx, rows_grad = (t.flatten(0, 1) for t in (x, dx, grad))
    w_in, w_out, scale = w_in.to(s.dtype), w_out.to(s.dtype), scale_of_rows(scale, x)
    sums: list[Tensor | None] = []
    for r, inside in zip(blocks_of(rows_x, _whole(s, x)), kept, strict=True):
        dy = scaled(rows_grad, scale, r).to(s.dtype)
        dinside, hidden = torch_swiglu_backward(linear_input_gradient(dy, w_out), inside)
        dw_out = linear_weight_gradient(dy, hidden, w_out)
        normed = normalize(rows_x[r], norm_w, norm_b, s.eps).to(s.dtype)
        dnormed, dw_in = linear_backward(dinside, normed, w_in)
        dx_r, _, *dnorm = torch_norm_backward(dnormed.to(x.dtype), rows_x[r], norm_w, norm_b, s.eps)
        torch.add(dx_r, rows_grad[r], out=rows_dx[r])
        accumulate(sums, *dnorm, dw_in, dw_out)
    return dx, *sums


def _whole(s: Settings, x: Tensor) -> bool:
    return s.backend in KERNELS or x.device.type != "cpu"
