"""The convolutions in front of the blocks, keeping their outputs alone."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vig_mm.kernels.torch_utils import like, no_autocast

from .fuse import compute_dtype, fusable
from .norm import LayerNorm2d

ACTIVATIONS = (nn.GELU, nn.SiLU)


class Stem(nn.Sequential):
    """Convolution, `LayerNorm2d`, activation, convolution, `LayerNorm2d`.

    What lies between the convolutions is not kept for the backward pass, unless the attribute
    ``backend`` is 'torch'.
    """

    backend: str | None = None

    def forward(self, x: Tensor) -> Tensor:
        """``[B, 3, H, W]`` -> ``[B, C, h, w]``."""
        norm: Any
        second: Any
        first, norm, act, second, last = self
        return last(_norm_act_conv(first(x), norm, act, second, self.backend))


def _norm_act_conv(
    x: Tensor, norm: LayerNorm2d, act: nn.Module, conv: nn.Conv2d, backend: str | None
) -> Tensor:
    """conv(act(norm(x))) of maps ``[B, C, h, w]``."""
    layers = ((norm, True), (conv, True))
    fused = type(act) in ACTIVATIONS and fusable(x, backend, layers, (act,))
    if not (fused and torch.is_grad_enabled() and conv.padding_mode == "zeros"):
        return conv(act(norm(x)))  # nothing is kept

    def inner(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1).to(weight.dtype)
        return act(F.layer_norm(x, weight.shape, weight, bias, norm.eps).permute(0, 3, 1, 2))

    geometry = (conv.stride, conv.padding, conv.dilation, conv.groups)
    weights = (norm.weight, norm.bias, conv.weight, conv.bias)
    return _NormActConv.apply(inner, geometry, compute_dtype(x), x, *weights)


class _NormActConv(torch.autograd.Function):
    """conv(act(norm(x))) that keeps x."""

    @staticmethod
    def forward(
        ctx, inner: Callable, geometry: tuple, dtype: torch.dtype, x: Tensor, *weights: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, *weights)
        ctx.settings = inner, geometry, dtype
        with no_autocast(x):
            hidden = inner(x, *weights[:2]).to(dtype)
            weight, bias = (t.to(dtype) for t in weights[2:])
            return F.conv2d(hidden, weight, bias, *geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        inner, (*geometry, groups), dtype = ctx.settings
        x, *weights = ctx.saved_tensors
        leaves = [t.detach().requires_grad_() for t in (x, *weights[:2])]
        weight, bias = weights[2:]
        with no_autocast(x):
            with torch.enable_grad():
                hidden = inner(*leaves)
            dhidden, *dconv = torch.ops.aten.convolution_backward(
                grad, hidden.detach().to(dtype), weight.to(dtype), bias.shape, *geometry, False,
                [0, 0], groups, [True, True, True],
            )  # fmt: skip
            grads = torch.autograd.grad(hidden, leaves, dhidden.to(hidden.dtype))
            return None, None, None, *grads, *like(dconv, (weight, bias))
