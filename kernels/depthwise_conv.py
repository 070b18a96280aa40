"""Norm and depth-wise 3x3 convolution of tokens in one, keeping the tokens alone."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .norm import normalize, torch_norm_backward

_DEPTHWISE = ([1, 1], [1, 1], [1, 1], False, [0, 0])


def torch_norm_conv(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    weight: Tensor,
    hw: tuple[int, int],
    eps: float,
    act: bool,
    dtype: torch.dtype,
) -> Tensor:
    """silu(conv(norm(x))) or conv(norm(x)) in ``dtype``, in plain PyTorch.

    Args:
        x: ``[B, h*w, C]``, row-major.
        norm_weight, norm_bias: ``[C]``, see `normalize`.
        weight: ``[C, 1, 3, 3]``.
    """
    out = _conv(normalize(x, norm_weight, norm_bias, eps).to(dtype), weight.to(dtype), hw)
    return F.silu(out, inplace=True) if act else out


def torch_norm_conv_backward(
    grad: Tensor,
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    weight: Tensor,
    residual: Tensor,
    hw: tuple[int, int],
    eps: float,
    act: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Gradients of x (``residual`` added), of the norm's weight and bias, and of the weight."""
    normed = normalize(x, norm_weight, norm_bias, eps).to(grad.dtype)
    taps = weight.to(grad.dtype)
    if act:
        grad = torch.ops.aten.silu_backward(grad, _conv(normed, taps, hw))
    dnormed, dweight, _ = torch.ops.aten.convolution_backward(
        _map(grad, hw), _map(normed, hw), taps, None, *_DEPTHWISE, len(weight), [True, True, False]
    )
    del normed
    dnormed = dnormed.permute(0, 2, 3, 1).flatten(1, 2).to(x.dtype).contiguous()
    dx, _, dnorm_weight, dnorm_bias = torch_norm_backward(dnormed, x, norm_weight, norm_bias, eps)
    return dx.add_(residual), dnorm_weight, dnorm_bias, dweight.to(weight.dtype)


def _map(x: Tensor, hw: tuple[int, int]) -> Tensor:
    return x.unflatten(1, hw).permute(0, 3, 1, 2)


def _conv(x: Tensor, weight: Tensor, hw: tuple[int, int]) -> Tensor:
    out = F.conv2d(_map(x, hw), weight, padding=1, groups=len(weight))
    return out.permute(0, 2, 3, 1).flatten(1, 2).contiguous()  # a copy on the meta device only
