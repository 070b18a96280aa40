"""The convolutions in front of the blocks, keeping their outputs alone."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vig_mm.kernels.torch_utils import by_blocks, like, no_autocast

from .fuse import compute_dtype, fusable

ACTIVATIONS = (nn.GELU, nn.SiLU)


class Stem(nn.Sequential):
    """Convolution, `LayerNorm2d`, activation, convolution, `LayerNorm2d`.

    What lies between the convolutions is not kept for the backward pass, unless the attribute
    ``backend`` is 'torch'. Maps lie in memory channels last, as norms and convolutions want them.
    """

    backend: str | None = None

    def forward(self, x: Tensor) -> Tensor:
        """``[B, 3, H, W]`` -> ``[B, C, h, w]``."""
        first: Any
        norm: Any
        second: Any
        first, norm, act, second, last = self
        layers = ((first, True), (norm, True), (second, True))
        if not (
            type(act) in ACTIVATIONS
            and fusable(x, self.backend, layers, (act,))
            and second.padding_mode == "zeros"
        ):
            return super().forward(x)
        x = first(x.contiguous(memory_format=torch.channels_last))
        geometry = (second.stride, second.padding, second.dilation, second.groups)
        settings = (act, norm.eps, geometry, compute_dtype(x))
        weights = (norm.weight, norm.bias, second.weight, second.bias)
        if torch.is_grad_enabled():
            return last(_NormActConv.apply(settings, x, *weights))
        return last(_norm_act_conv(settings, x, *weights))


def _norm_act(act: nn.Module, eps: float, rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """act(norm(rows)) of ``[M, C]``, in the dtype of the weight."""
    return act(F.layer_norm(rows.to(weight.dtype), weight.shape, weight, bias, eps))


def _norm_act_conv(
    settings: tuple, x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """conv(act(norm(x))) of maps ``[B, C, h, w]``."""
    act, eps, geometry, dtype = settings
    rows = x.permute(0, 2, 3, 1)
    with no_autocast(x):
        hidden = by_blocks(
            lambda r: _norm_act(act, eps, r, norm_weight, norm_bias), rows.flatten(0, 2), dtype
        )
        hidden = hidden.view(rows.shape).permute(0, 3, 1, 2)
        return F.conv2d(hidden, weight.to(dtype), bias.to(dtype), *geometry)


class _NormActConv(torch.autograd.Function):
    """`_norm_act_conv` that keeps x."""

    @staticmethod
    def forward(ctx: Any, settings: tuple, x: Tensor, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(x, *weights)
        ctx.settings = settings
        return _norm_act_conv(settings, x, *weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        act, eps, (*geometry, groups), dtype = ctx.settings
        x, norm_weight, norm_bias, weight, bias = ctx.saved_tensors
        rows = x.permute(0, 2, 3, 1)
        leaves = [t.detach().requires_grad_() for t in (rows.flatten(0, 2), norm_weight, norm_bias)]
        with no_autocast(x):
            with torch.enable_grad():
                hidden = _norm_act(act, eps, *leaves)
            maps = hidden.detach().to(dtype).view(rows.shape).permute(0, 3, 1, 2)
            dhidden, *dconv = torch.ops.aten.convolution_backward(
                grad, maps, weight.to(dtype), bias.shape, *geometry, False,
                [0, 0], groups, [True, True, True],
            )  # fmt: skip
            dhidden = dhidden.permute(0, 2, 3, 1).flatten(0, 2).to(hidden.dtype)
            drows, *dnorm = torch.autograd.grad(hidden, leaves, dhidden)
            dx = drows.view(rows.shape).permute(0, 3, 1, 2)
            return None, dx, *dnorm, *like(dconv, (weight, bias))
