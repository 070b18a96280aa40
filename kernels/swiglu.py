"""SwiGLU: silu(gate) * up of the two halves of one projection, keeping only that projection."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_floating
from .dispatch import PLAIN_OR_TRITON, run, select_backend

FLOAT16_MAX = torch.finfo(torch.float16).max


def swiglu(x: Tensor, *, backend: str | None = None) -> Tensor:
    """silu(gate) * up with (gate, up) the halves of x (Shazeer, arXiv 2002.05202).

    In float16 the product is kept inside its range. The backward pass computes silu again: nothing
    but x is kept for it.

    Args:
        x: ``[..., 2I]``.
        backend: ``triton`` (the default for CUDA tensors) or ``torch``, see `locality_gate`.

    Returns:
        ``[..., I]``, contiguous, in the dtype of x.

    Raises:
        TypeError: x is not a floating-point tensor.
        ValueError: its last dimension is odd, or the backend is unknown or does not take it.
        ImportError: ``backend="triton"`` and there is no Triton.
    """
    check_floating("x", x)
    if x.dim() == 0 or x.shape[-1] % 2 or x.shape[-1] == 0:
        raise ValueError(f"x must be [..., 2I], the halves side by side, got {tuple(x.shape)}")
    return _swiglu_op(x, select_backend(backend, PLAIN_OR_TRITON, "torch", limit_widths=False, x=x))


@torch.library.custom_op("vig_mm::swiglu", mutates_args=())
def _swiglu_op(x: Tensor, backend: str) -> Tensor:
    def kernels() -> Tensor:
        from .triton.swiglu import swiglu_forward

        return swiglu_forward(x)

    return run("swiglu", backend, kernels, lambda: torch_swiglu(x), x)


@torch.library.custom_op("vig_mm::swiglu_backward", mutates_args=())
def _swiglu_backward_op(
    grad: Tensor, x: Tensor, scale: Tensor | None, backend: str
) -> tuple[Tensor, Tensor]:
    """Gradient of x, and the output again, which a linear layer behind it needs for its own.

    Both times ``scale [B]``, that of stochastic depth, if there is one; x is ``[B, ..., 2I]``, or
    its rows in this order.
    """

    def kernels() -> tuple[Tensor, Tensor]:
        from .triton.swiglu import swiglu_backward

        return swiglu_backward(grad, x, scale)

    def plain() -> tuple[Tensor, Tensor]:
        dx, out = torch_swiglu_backward(grad, x)
        if scale is not None:
            for t in (dx, out):
                t.view(len(scale), -1).mul_(scale[:, None])
        return dx, out

    return run("the gradient of swiglu", backend, kernels, plain, x, grad)


def torch_swiglu(x: Tensor) -> Tensor:
    """`swiglu` in plain PyTorch."""
    gate, up = x.chunk(2, dim=-1)
    out = F.silu(gate).mul_(up)
    if x.dtype == torch.float16:  # inf would be NaN behind the next layer
        out.clamp_(-FLOAT16_MAX, FLOAT16_MAX)
    return out


def torch_swiglu_backward(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of x from that of the output, and the output, in plain PyTorch."""
    gate, up = x.chunk(2, dim=-1)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dgate, dup = dx.chunk(2, dim=-1)
    out = F.silu(gate)
    if x.dtype == torch.float16:
        product = out * up
        grad = grad.masked_fill(product.isinf(), 0)
    torch.mul(grad, out, out=dup)
    torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=dgate)
    out.mul_(up)
    if x.dtype == torch.float16:
        out.clamp_(-FLOAT16_MAX, FLOAT16_MAX)
    return dx, out


@_swiglu_op.register_fake
def _(x, backend):
    return x.new_empty(*x.shape[:-1], x.shape[-1] // 2)


@_swiglu_backward_op.register_fake
def _(grad, x, scale, backend):
    return x.new_empty(x.shape), x.new_empty(grad.shape)


def _setup_context(ctx, inputs, output) -> None:
    x, ctx.backend = inputs
    ctx.save_for_backward(x)


def _backward(ctx, grad: Tensor):
    return _swiglu_backward_op(grad, *ctx.saved_tensors, None, ctx.backend)[0], None


_swiglu_op.register_autograd(_backward, setup_context=_setup_context)
