"""The function that a block calls, the same once more, and its gradients."""

import torch
from torch import Tensor

from ..dispatch import run
from .torch import torch_norm_conv, torch_norm_conv_backward


def norm_conv(
    x: Tensor,
    stats: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    weight: Tensor,
    hw: tuple[int, int],
    *,
    eps: float,
    act: bool,
    dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor | None]:
    """Depth-wise 3x3 convolution of normed tokens, padded with zeros (ViG, section 3.3).

    Not differentiable by autograd: `norm_conv_backward` gives the gradients.

    Args:
        x: ``[B, h*w, C]``, row-major, contiguous.
        stats: what an earlier call with this x returned as its second result, or None.
        norm_weight, norm_bias: ``[C]`` of a LayerNorm; a bias of None makes it an RMSNorm.
        weight: ``[C, 1, 3, 3]``.
        hw: (h, w).
        eps: of the norm.
        act: return silu(y) instead of y.
        dtype: of the result; the norm is computed in float32 at least.
        backend: what `select_backend` gave.

    Returns:
        ``[B, h*w, C]``, contiguous; and what the kernels keep for the backward pass, two numbers a
        token ``[2, B*h*w]``, or None from plain PyTorch, which keeps nothing.
    """

    def kernels() -> tuple[Tensor, Tensor | None]:
        from .triton import conv, statistics

        known = statistics(x, norm_bias is not None, eps) if stats is None else stats
        return conv(x, known, norm_weight, norm_bias, weight, *hw, act, dtype), known

    def plain() -> tuple[Tensor, Tensor | None]:
        return torch_norm_conv(x, norm_weight, norm_bias, weight, hw, eps, act, dtype), None

    return run("norm_conv", backend, kernels, plain, x)


def norm_conv_backward(
    grad: Tensor,
    x: Tensor,
    stats: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    weight: Tensor,
    residual: Tensor,
    hw: tuple[int, int],
    *,
    eps: float,
    act: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, of the norm's weight and bias, of the convolution's weight.

    They may be in float32 for weights in half precision. The bias, where there is none, has zeros.

    Args:
        grad: ``[B, h*w, C]``, of the result.
        residual: ``[B, h*w, C]`` in the dtype of x; is added to the gradient of x.
        The others: as `norm_conv` had them and returned them.
    """

    def kernels() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        from .triton import conv_backward, statistics

        known = statistics(x, norm_bias is not None, eps) if stats is None else stats
        dx, sums = conv_backward(grad, x, known, norm_weight, norm_bias, weight, residual, *hw, act)
        dweight = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
        dweight.flatten(1).copy_(sums[:-2].mT)
        return dx, sums[-2], sums[-1], dweight

    def plain() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return torch_norm_conv_backward(
            grad, x, norm_weight, norm_bias, weight, residual, hw, eps, act
        )

    return run("the gradient of norm_conv", backend, kernels, plain, x, grad)
