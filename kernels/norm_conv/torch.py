"""Norm and depth-wise convolution in plain PyTorch, forward and backward."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..torch_utils import by_blocks, normalize, normalize_backward

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
    """See `norm_conv`: the norm in float32 at least, the convolution in ``dtype``."""
    out = _conv(_normalize(x, norm_weight, norm_bias, eps, dtype), weight.to(dtype), hw)
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `norm_conv_backward`."""
    normed = _normalize(x, norm_weight, norm_bias, eps, grad.dtype)
    taps = weight.to(grad.dtype)
    if act:
        grad = torch.ops.aten.silu_backward(grad, _conv(normed, taps, hw))
    dnormed, dweight, _ = torch.ops.aten.convolution_backward(
        _map(grad, hw), _map(normed, hw), taps, None, *_DEPTHWISE, len(weight), [True, True, False]
    )
    del normed
    dnormed = dnormed.permute(0, 2, 3, 1).flatten(1, 2).to(x.dtype).contiguous()
    dx, dnorm_weight, dnorm_bias = normalize_backward(dnormed, x, norm_weight, norm_bias, eps)
    return dx.add_(residual), dnorm_weight, dnorm_bias, dweight


def _normalize(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, dtype: torch.dtype
) -> Tensor:
    rows = by_blocks(lambda r: normalize(r, weight, bias, eps), x.flatten(0, 1), dtype)
    return rows.view(x.shape)


def _map(x: Tensor, hw: tuple[int, int]) -> Tensor:
    return x.unflatten(1, hw).permute(0, 3, 1, 2)


def _conv(x: Tensor, weight: Tensor, hw: tuple[int, int]) -> Tensor:
    out = F.conv2d(_map(x, hw), weight, padding=1, groups=len(weight))
    return out.permute(0, 2, 3, 1).flatten(1, 2).contiguous()  # a copy on the meta device only
