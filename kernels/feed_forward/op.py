"""The function that a block calls, with its gradient."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..dispatch import run
from ..torch_utils import cast, like, no_autocast
from .torch import torch_feed_forward, torch_feed_forward_backward


def feed_forward(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    w_in: Tensor,
    w_out: Tensor,
    scale: Tensor | None,
    *,
    eps: float,
    dtype: torch.dtype,
    backend: str,
    inplace: bool = False,
) -> Tensor:
    """x + scale * w_out swiglu(w_in norm(x)), swiglu(a, u) = silu(a) u (arXiv 2002.05202).

    For the backward pass x is kept and, beside it, w_in's output, unless the kernels take the
    forward pass in one (`MAX_CHANNELS` in `.triton`): it is then computed again.

    Args:
        x: ``[B, N, C]``.
        norm_weight, norm_bias: ``[C]`` of a LayerNorm; a bias of None makes it an RMSNorm.
        w_in: ``[2I, C]``, the layer whose output's halves are a and u.
        w_out: ``[C, I]``.
        scale: ``[B]`` of stochastic depth, or None.
        eps: of the norm.
        dtype: in which products are taken. In float16 swiglu is kept inside its range.
        backend: what `select_backend` gave.
        inplace: x may be overwritten where no gradient is recorded.

    Returns:
        ``[B, N, C]``, contiguous, in the dtype of x.
    """
    keep = torch.is_grad_enabled()
    settings = _Settings(eps, dtype, backend, keep, inplace and not keep)
    tensors = (x.contiguous(), scale, norm_weight, norm_bias, w_in, w_out)
    if settings.keep:
        return _FeedForward.apply(settings, *tensors)
    return _forward(settings, *tensors)[0]


class _Settings(NamedTuple):
    eps: float
    dtype: torch.dtype
    backend: str
    keep: bool  # what the backward pass needs
    inplace: bool


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, settings: _Settings, x: Tensor, scale: Tensor | None, *weights: Tensor
    ) -> Tensor:
        out, inside = _forward(settings, x, scale, *weights)
        ctx.save_for_backward(x, scale, inside, *weights)
        ctx.settings = settings
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, inside, *weights = ctx.saved_tensors
        dx, *gradients = _backward(ctx.settings, grad.contiguous(), x, scale, inside, *weights)
        return None, dx, None, *like(gradients, weights)


def _forward(
    s: _Settings,
    x: Tensor,
    scale: Tensor | None,
    norm_w: Tensor,
    norm_b: Tensor | None,
    w_in: Tensor,
    w_out: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """The result, and w_in's output ``[B N, 2I]`` where it is kept."""
    w_in, w_out = cast(s.dtype, w_in, w_out)
    rows, weights = x.flatten(0, 1), (norm_w, norm_b, w_in, w_out)

    def kernels() -> tuple[Tensor, Tensor | None]:
        from .triton import triton_feed_forward

        return triton_feed_forward(rows, *weights, scale, s.eps)

    def plain() -> tuple[Tensor, Tensor | None]:
        with no_autocast(x):
            return torch_feed_forward(rows, *weights, scale, s.eps, s.keep, s.inplace)

    out, inside = run("feed_forward", s.backend, kernels, plain, rows, w_out)
    return out.view(x.shape), inside if s.keep else None


def _backward(
    s: _Settings,
    grad: Tensor,
    x: Tensor,
    scale: Tensor | None,
    inside: Tensor | None,
    norm_w: Tensor,
    norm_b: Tensor | None,
    w_in: Tensor,
    w_out: Tensor,
) -> tuple[Tensor, ...]:
    """Gradients of x, of the norm's weight and bias, of both layers."""
    rows, rows_grad = x.flatten(0, 1), grad.flatten(0, 1)
    w_in, w_out = cast(s.dtype, w_in, w_out)
    weights = (norm_w, norm_b, w_in, w_out)

    def kernels() -> tuple[Tensor, ...]:
        from .triton import triton_feed_forward_backward

        return triton_feed_forward_backward(rows_grad, rows, *weights, scale, inside, s.eps)

    def plain() -> tuple[Tensor, ...]:
        with no_autocast(x):
            return torch_feed_forward_backward(rows_grad, rows, *weights, scale, inside, s.eps)

    dx, *gradients = run(
        "the gradient of feed_forward", s.backend, kernels, plain, rows, rows_grad, w_out
    )
    return dx.view(x.shape), *gradients
