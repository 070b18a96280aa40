"""The feed-forward half of a block as one operator each way, for narrow channels."""

import torch
from torch import Tensor

from .dispatch import run
from .norm import normalize, torch_norm_backward, upcast
from .swiglu import torch_swiglu, torch_swiglu_backward

MAX_CHANNELS = 256
"""Widest C for which the kernels hold whole rows: no more than two tiles of 128 fit in registers.

Up to there the half is bound by memory, so that computing w_in's output twice costs less than to
write and to read it. Beyond it products are bound by arithmetic, and larger tiles are worth more.
"""


@torch.library.custom_op("vig_mm::feed_forward", mutates_args=())
def _feed_forward_op(
    x: Tensor,
    norm_w: Tensor,
    norm_b: Tensor | None,
    w_in: Tensor,
    w_out: Tensor,
    scale: Tensor | None,
    eps: float,
    backend: str,
) -> Tensor:
    """x + scale * w_out(swiglu(w_in(norm(x)))) of ``[M, C]``, C <= `MAX_CHANNELS`.

    Products are taken in the dtype of w_in ``[2I, C]`` and w_out ``[C, I]``. ``scale [B]``, that of
    stochastic depth: B divides M, and a sample's rows are neighbours.
    """

    def kernels() -> Tensor:
        from .triton.feed_forward import feed_forward

        return feed_forward(x, norm_w, norm_b, w_in, w_out, scale, eps)

    def plain() -> Tensor:
        wide, wide_w, wide_b = upcast(x, norm_w, norm_b)
        hidden = torch_swiglu(normalize(wide, wide_w, wide_b, eps).to(w_in.dtype) @ w_in.mT)
        return (wide + _by_sample(hidden @ w_out.mT, scale)).to(x.dtype)

    return run("feed_forward", backend, kernels, plain, x, w_in, w_out)


@torch.library.custom_op("vig_mm::feed_forward_backward", mutates_args=())
def _feed_forward_backward_op(
    grad: Tensor,
    x: Tensor,
    norm_w: Tensor,
    norm_b: Tensor | None,
    w_in: Tensor,
    w_out: Tensor,
    scale: Tensor | None,
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, of w_in's output, and of the norm's weight and bias (zeros if None).

    Between them, second to fourth: w_in's output's gradient, SwiGLU's output and the norm's, of
    which the weights' gradients are products; the first two of them times ``scale``.
    """

    def kernels() -> tuple[Tensor, ...]:
        from .triton.feed_forward import feed_forward_backward

        return feed_forward_backward(grad, x, norm_w, norm_b, w_in, w_out, scale, eps)

    def plain() -> tuple[Tensor, ...]:
        wide, wide_w, wide_b = upcast(x, norm_w, norm_b)
        normed = normalize(wide, wide_w, wide_b, eps).to(w_in.dtype)
        dinside, hidden = torch_swiglu_backward(grad.to(w_in.dtype) @ w_out, normed @ w_in.mT)
        dinside, hidden = _by_sample(dinside, scale), _by_sample(hidden, scale)
        dnormed = (dinside @ w_in).to(wide.dtype)
        dx, _, dnorm_w, dnorm_b = torch_norm_backward(dnormed, wide, wide_w, wide_b, eps)
        dnorm_b = torch.zeros_like(dnorm_w) if dnorm_b is None else dnorm_b
        return (
            (dx + grad).to(x.dtype), dinside, hidden, normed,
            dnorm_w.to(norm_w.dtype), dnorm_b.to(norm_w.dtype),
        )  # fmt: skip

    tensors = (x, w_in, w_out, grad)
    return run(  # type: ignore[return-value]
        "the gradient of feed_forward", backend, kernels, plain, *tensors
    )


def _by_sample(x: Tensor, scale: Tensor | None) -> Tensor:
    if scale is None:
        return x
    return (x.unflatten(0, (len(scale), -1)) * scale.to(x.dtype)[:, None, None]).flatten(0, 1)


@_feed_forward_op.register_fake
def _(x, norm_w, norm_b, w_in, w_out, scale, eps, backend):
    return x.new_empty(x.shape)


@_feed_forward_backward_op.register_fake
def _(grad, x, norm_w, norm_b, w_in, w_out, scale, eps, backend):
    channels, width = w_out.shape
    between = (w_in.new_empty(len(x), n) for n in (2 * width, width, channels))
    return x.new_empty(x.shape), *between, torch.empty_like(norm_w), torch.empty_like(norm_w)
