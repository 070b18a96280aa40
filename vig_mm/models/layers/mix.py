"""The first half of a block, keeping its input, what its projections give, and the attention's output.

That is 6.2 numbers a channel and token, 4 of them the projections' (q, k, v, both gates' logits
before their second layer, the locality gate's logits). The norm, the depth-wise convolution, the
decay gates and the locality gate are computed again.
"""  # noqa: E501

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vig_mm.kernels import BACKENDS, locality_gate
from vig_mm.kernels.depthwise_conv import torch_norm_conv, torch_norm_conv_backward
from vig_mm.kernels.dispatch import KERNELS, select_backend
from vig_mm.kernels.locality_gate_backward import torch_locality_gate_backward

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
    wide,
)

ops = torch.ops.vig_mm


def mix(x: Tensor, norm: Any, mixer: Any, drop_path: nn.Module, hw: tuple[int, int]) -> Tensor:
    """x + drop_path(mixer(norm(x), hw)) of tokens ``[B, N, C]``, N = h * w.

    Args:
        norm: `nn.LayerNorm` or `RMSNorm`.
        mixer: `GatedLinearAttention2d`; its backend ``torch`` leaves all to autograd.
    """
    if not recomputes(mixer.backend, x, norm, mixer):
        return x + drop_path(mixer(norm(x), hw))
    heads = x.unflatten(-1, (mixer.num_heads, -1))
    settings = Settings(
        hw=hw,
        num_heads=mixer.num_heads,
        act=mixer.act,
        norm_eps=norm.eps,
        gate_eps=mixer.g_norm.eps,
        dtype=projection_dtype(x),
        backend=select_backend(mixer.backend, BACKENDS, "chunked", v=heads),
    )
    low, high = mixer.gk_proj
    weights = Weights(
        norm_w=norm.weight,
        norm_b=getattr(norm, "bias", None),
        conv=mixer.in_proj[0].weight,
        qkv=mixer.qkv_proj.weight,
        low=low.weight,
        high=high.weight,
        high_bias=high.bias,
        gate=mixer.g_proj.weight,
        gate_bias=mixer.g_proj.bias,
        g_norm=mixer.g_norm.weight,
        l_norm=mixer.l_norm.weight,
        last=mixer.o_proj.weight,
    )
    return _Mix.apply(settings, x, sample_scale(drop_path, x), *weights)


class Settings(NamedTuple):
    """What the function needs beside tensors."""

    hw: tuple[int, int]
    num_heads: int
    act: bool
    norm_eps: float
    gate_eps: float
    dtype: torch.dtype
    backend: str


class Weights(NamedTuple):
    """Of the norm and the mixer, or their gradients."""

    norm_w: Tensor
    norm_b: Tensor | None
    conv: Tensor
    qkv: Tensor
    low: Tensor
    high: Tensor
    high_bias: Tensor
    gate: Tensor
    gate_bias: Tensor
    g_norm: Tensor
    l_norm: Tensor
    last: Tensor

    def packed(self, dtype: torch.dtype) -> Tensor:
        """Of all layers that read the convolution's output, ``[3C + rank, C]``."""
        return torch.cat([self.qkv, self.gate, self.low]).to(dtype)

    def packed_bias(self, dtype: torch.dtype) -> Tensor:
        zeros = self.gate_bias.new_zeros
        return torch.cat([zeros(len(self.qkv)), self.gate_bias, zeros(len(self.low))]).to(dtype)


class _Mix(torch.autograd.Function):
    """x + scale * mixer(norm(x))."""

    @staticmethod
    def forward(
        ctx: Any, settings: Settings, x: Tensor, scale: Tensor | None, *weights: Any
    ) -> Tensor:
        with no_autocast(x):
            out, *kept = _forward(settings, x.contiguous(), scale, Weights(*weights))
        ctx.save_for_backward(scale, *kept, *weights)
        ctx.settings = settings
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        scale, x, stats, packed, o, *weights = ctx.saved_tensors
        with no_autocast(grad):
            dx, gradients = _backward(
                ctx.settings, grad.contiguous(), scale, x, stats, packed, o, Weights(*weights)
            )
        return None, dx, None, *like(gradients, weights)


def _forward(s: Settings, x: Tensor, scale: Tensor | None, w: Weights) -> tuple[Any, ...]:
    """The result, and what is kept: x, statistics of its norm, projections, attention's output."""
    channels = x.shape[-1]
    local, stats = _local(s, x, None, w)
    packed = linear(local, w.packed(s.dtype), w.packed_bias(s.dtype))
    *qkv, gate, rank = _unpack(packed, channels)
    shape = (*x.shape[:2], s.num_heads, -1)
    o = ops.bidirectional_gla(
        *(t.view(shape) for t in (*qkv, *_decay_gates(rank, w))),
        s.backend,
        # beyond float16's range o would be inf, and NaN behind its norm
        torch.float32 if s.dtype == torch.float16 else None,
    )
    last = _last if s.backend in KERNELS else _torch_last
    return last(s, x, scale, local, gate, o, w), x, stats, packed, o


def _backward(
    s: Settings,
    grad: Tensor,
    scale: Tensor | None,
    x: Tensor,
    stats: Tensor | None,
    packed: Tensor,
    o: Tensor,
    w: Weights,
) -> tuple[Tensor, Weights]:
    """Gradients of x and of the weights."""
    channels, whole = x.shape[-1], _whole(s, x)
    local, _ = _local(s, x, stats, w)
    *qkv, gate, rank = _unpack(packed, channels)
    dpacked = torch.empty_like(packed)  # every gradient is written to its place
    *dqkv, dgate, drank = _unpack(dpacked, channels)
    last_backward = _last_backward if s.backend in KERNELS else _torch_last_backward
    do, dlocal, dgate_bias, dg_norm, dl_norm, dlast = last_backward(
        s, grad, scale, local, gate, o, dgate, w
    )
    # the attention
    shape = (*x.shape[:2], s.num_heads, -1)
    gates = _decay_gates(rank, w)
    dgates = rank.new_empty(len(rank), channels)
    ops.bidirectional_gla_backward_into(
        do.view(o.shape),
        *(t.view(shape) for t in (*qkv, *gates)),
        *(t.view(shape) for t in (*dqkv, *dgates.chunk(2, dim=1))),
        s.backend,
    )
    del gates, do
    # the layers that read local
    torch.mm(dgates, w.high.to(s.dtype), out=drank)
    dhigh, dhigh_bias = dgates.mT @ rank, dgates.sum(0)
    weight = w.packed(s.dtype)
    if whole:
        dlocal.addmm_(dpacked, weight)
        dweight = linear_weight_gradient(dpacked, local, weight)
    else:
        dinput, dweight = linear_backward(dpacked, local, weight)
        dlocal.add_(dinput)
    dqkv, dgate, dlow = dweight.split([2 * channels, channels, len(w.low)])
    # the convolution, the norm and the residual branch
    dx, dnorm_w, dnorm_b, dconv = _local_backward(s, dlocal.view(x.shape), x, stats, grad, w)
    return dx, Weights(
        dnorm_w, dnorm_b, dconv, dqkv, dlow, dhigh, dhigh_bias, dgate, dgate_bias,
        dg_norm, dl_norm, dlast,
    )  # fmt: skip


def _whole(s: Settings, x: Tensor) -> bool:
    return s.backend in KERNELS or x.device.type != "cpu"


def _unpack(packed: Tensor, channels: int) -> tuple[Any, ...]:
    """q, k, v, the locality gate's logits, the decay gates' first layer; views."""
    half = channels // 2
    return packed.split([half, half, channels, channels, packed.shape[1] - 3 * channels], dim=1)


def _decay_gates(rank: Tensor, w: Weights) -> tuple[Any, ...]:
    """Logits of the forward and the backward scan, from their first layer's output."""
    return F.linear(rank, w.high.to(rank.dtype), w.high_bias.to(rank.dtype)).chunk(2, dim=1)


def _heads(s: Settings, x: Tensor) -> Tensor:
    return x.unflatten(-1, (s.num_heads, -1))


def _local(
    s: Settings, x: Tensor, stats: Tensor | None, w: Weights
) -> tuple[Tensor, Tensor | None]:
    """Rows of the convolved norm of x, and, for the kernels, the norm's statistics."""
    if s.backend not in KERNELS:
        out = torch_norm_conv(x, w.norm_w, w.norm_b, w.conv, s.hw, s.norm_eps, s.act, s.dtype)
        return out.flatten(0, 1), None
    if stats is None:
        stats = ops.norm_statistics(x, w.norm_b is not None, s.norm_eps, s.backend)
    out = ops.norm_conv(
        x, stats, w.norm_w, w.norm_b, w.conv, *s.hw, s.norm_eps, s.act, s.dtype, s.backend
    )
    return out.flatten(0, 1), stats


def _local_backward(
    s: Settings, grad: Tensor, x: Tensor, stats: Tensor | None, residual: Tensor, w: Weights
) -> tuple[Any, ...]:
    """Gradients of x, with the residual's, of the norm's weight and bias, of the convolution."""
    if s.backend not in KERNELS:
        return torch_norm_conv_backward(
            grad, x, w.norm_w, w.norm_b, w.conv, residual, s.hw, s.norm_eps, s.act
        )
    return ops.norm_conv_backward(
        grad, x, stats, w.norm_w, w.norm_b, w.conv, residual,
        *s.hw, s.norm_eps, s.act, s.backend,
    )  # fmt: skip


def _last(
    s: Settings,
    x: Tensor,
    scale: Tensor | None,
    local: Tensor,
    gate: Tensor,
    o: Tensor,
    w: Weights,
) -> Tensor:
    """x + scale * the last layer of the locality gate's output."""
    scale = None if scale is None else scale.flatten()
    local, gate = local.view(o.shape), gate.view(o.shape)
    return ops.gate_projection(
        o, local, gate, w.g_norm, w.l_norm, w.last.to(s.dtype), x, scale, s.gate_eps, s.act,
        s.backend,
    )  # fmt: skip


def _torch_last(
    s: Settings,
    x: Tensor,
    scale: Tensor | None,
    local: Tensor,
    gate: Tensor,
    o: Tensor,
    w: Weights,
) -> Tensor:
    """The same in plain PyTorch, block by block."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows_x, rows_out, rows_o = (t.flatten(0, 1) for t in (x, out, o))
    scale, last = scale_of_rows(scale, x), w.last.to(s.dtype)
    for r in blocks_of(rows_x, _whole(s, x)):
        y = locality_gate(
            *(t.unsqueeze(0) for t in (rows_o[r], _heads(s, local[r]), _heads(s, gate[r]))),
            w.g_norm,
            w.l_norm,
            eps=s.gate_eps,
            act=s.act,
            backend="torch",
        )
        y = linear(y[0].flatten(1).to(s.dtype), last)
        add_scaled(rows_x, y, scale, r, rows_out)
    return out


def _last_backward(
    s: Settings,
    grad: Tensor,
    scale: Tensor | None,
    local: Tensor,
    gate: Tensor,
    o: Tensor,
    dgate: Tensor,
    w: Weights,
) -> tuple[Any, ...]:
    """Back through the last layer and the locality gate, whose logits' gradient goes to ``dgate``.

    Returns:
        Gradients of o and local, of the gate's bias, of both norms' and the last layer's weights.
    """
    last, dy = w.last.to(s.dtype), grad.flatten(0, 1).to(s.dtype)
    dhidden, local, gate, dgate = (
        t.view(o.shape) for t in (linear_input_gradient(dy, last), local, gate, dgate)
    )
    scale = None if scale is None else scale.flatten()
    y, do, dlocal, *sums = ops.locality_gate_backward_into(
        dhidden, o, local, gate, w.g_norm, w.l_norm, scale, dgate, s.gate_eps, s.act, s.backend
    )
    dlast = linear_weight_gradient(dy, y.view(dy.shape), last)
    return do, dlocal.view(dy.shape), *sums, dlast


def _torch_last_backward(
    s: Settings,
    grad: Tensor,
    scale: Tensor | None,
    local: Tensor,
    gate: Tensor,
    o: Tensor,
    dgate: Tensor,
    w: Weights,
) -> tuple[Any, ...]:
    """The same in plain PyTorch, block by block."""
    rows_grad, rows_o = grad.flatten(0, 1), o.flatten(0, 1)
    scale, last = scale_of_rows(scale, grad), w.last.to(s.dtype)
    sums: list[Tensor] = []
    parts = []
    whole = _whole(s, grad)
    for r in blocks_of(rows_grad, whole):
        dy = scaled(rows_grad, scale, r).to(s.dtype)
        dhidden = _heads(s, linear_input_gradient(dy, last))
        inputs = (dhidden, rows_o[r], _heads(s, local[r]), _heads(s, gate[r]), w.g_norm, w.l_norm)
        y, do, dlocal, dgate_r, *dnorms = torch_locality_gate_backward(
            *(t.to(wide(s.dtype)) for t in inputs), s.gate_eps, s.act
        )
        dgate[r] = dgate_r.flatten(1)
        parts.append((do.to(o.dtype), dlocal.flatten(1).to(local.dtype)))
        accumulate(sums, *dnorms, linear_weight_gradient(dy, y.flatten(1).to(s.dtype), last))
    do, dlocal = (t[0] if whole else torch.cat(t) for t in zip(*parts, strict=True))
    return do, dlocal, dgate.sum(0), *sums
