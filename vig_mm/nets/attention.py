"""The first half of a block: depth-wise convolution, bidirectional GLA, and the gate between them.

The half is stated twice: by modules (`GatedLinearAttention2d.forward`), and by operators
(`_forward`, with its gradients in `_backward`). The operators keep for the backward pass the half's
input, what the projections give and the attention's output: 6.2 numbers a channel and token, 4 of
them the projections' (q, k, v, both gates' logits before their second layer, the locality gate's
logits). The norm, the depth-wise convolution, the decay gates and the locality gate are computed
again.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vig_mm.kernels import BACKENDS, bidirectional_gla
from vig_mm.kernels.dispatch import select_backend
from vig_mm.kernels.gla import gla_backward_into, gla_forward
from vig_mm.kernels.locality_gate import gate_projection, gate_projection_backward
from vig_mm.kernels.norm_conv import norm_conv, norm_conv_backward
from vig_mm.kernels.torch_utils import (
    like,
    linear,
    linear_input_gradient,
    linear_weight_gradient,
    zeros,
)

from .drop_path import DropPath
from .fuse import compute_dtype, fusable
from .layout import to_map, to_tokens
from .norm import RMSNorm

GATE_RANK = 16


class GatedLinearAttention2d(nn.Module):
    """GLA with 2D gating locality injection (ViG, section 3.3).

    Args:
        channels: C; queries and keys are C/2 wide, values C.
        num_heads: H, must divide C/2.
        act: SiLU after the depth-wise convolution and before the output projection (ViG-T only).
        backend: of `vig_mm.kernels.bidirectional_gla`; ``torch`` is ``chunked``, and has
            `attention` leave all to autograd.
    """

    def __init__(
        self, channels: int, num_heads: int, act: bool = False, backend: str | None = None
    ) -> None:
        super().__init__()
        if channels % (2 * num_heads):
            raise ValueError(f"channels={channels} must be a multiple of 2 * num_heads={num_heads}")
        self.num_heads = num_heads
        self.act = act
        self.backend = backend
        conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.in_proj = nn.Sequential(conv)
        self.qkv_proj = nn.Linear(channels, 2 * channels, bias=False)
        self.gk_proj = nn.Sequential(
            nn.Linear(channels, GATE_RANK, bias=False), nn.Linear(GATE_RANK, channels)
        )
        self.g_proj = nn.Linear(channels, channels)
        self.g_norm = RMSNorm(channels // num_heads)
        self.l_norm = RMSNorm(channels // num_heads)
        self.o_proj = nn.Linear(channels, channels, bias=False)

    def draw_weights(self) -> None:
        """Xavier-uniform with gain 2^-2.5 for every projection, as the public models."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_uniform_(module.weight, gain=2**-2.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        """``[B, N, C]`` -> ``[B, N, C]``, N = h * w tokens in row-major order."""
        local = to_tokens(self.in_proj(to_map(x, hw)))
        if self.act:
            local = F.silu(local)
        channels = local.shape[-1]
        q, k, v = self.qkv_proj(local).split((channels // 2, channels // 2, channels), dim=-1)
        gate_f, gate_b = self.gk_proj(local).chunk(2, dim=-1)
        o = bidirectional_gla(
            *(t.unflatten(-1, (self.num_heads, -1)) for t in (q, k, v, gate_f, gate_b)),
            backend="chunked" if self.backend == "torch" else self.backend,
            # beyond float16's range o would be inf, and NaN behind its norm
            out_dtype=torch.float32 if v.dtype == torch.float16 else None,
        )
        # in float32 at least, as only the result is to be rounded
        wide = torch.promote_types(o.dtype, torch.float32)
        share = torch.sigmoid(self.g_proj(local).view_as(o).to(wide))
        y = torch.lerp(self.l_norm(local.view_as(o).to(wide)), self.g_norm(o.to(wide)), share)
        return self.o_proj((F.silu(y) if self.act else y).flatten(2).to(local.dtype))


def attention(
    x: Tensor,
    hw: tuple[int, int],
    norm: nn.LayerNorm | RMSNorm,
    attn: GatedLinearAttention2d,
    drop_path: DropPath,
    scale: Tensor | None,
) -> Tensor:
    """x + drop_path(attn(norm(x), hw), scale) of ``[B, N, C]``: by operators, or by the modules."""
    if not _fusable(x, norm, attn, drop_path):
        return x + drop_path(attn(norm(x), hw), scale)
    layers: Any = (*attn.in_proj, *attn.gk_proj)
    conv, low, high = layers
    settings = _Settings(
        hw=hw,
        num_heads=attn.num_heads,
        act=attn.act,
        norm_eps=norm.eps,
        gate_eps=attn.g_norm.eps,
        dtype=compute_dtype(x),
        backend=select_backend(
            attn.backend, BACKENDS, "chunked", v=x.unflatten(-1, (attn.num_heads, -1))
        ),
    )
    weights = _Weights(
        norm.weight, norm.bias, conv.weight, attn.qkv_proj.weight, attn.g_proj.weight, low.weight,
        attn.g_proj.bias, high.weight, high.bias, attn.g_norm.weight, attn.l_norm.weight,
        attn.o_proj.weight,
    )  # fmt: skip
    tensors: Any = (x.contiguous(), scale, *weights)
    if torch.is_grad_enabled():
        return _Attention.apply(settings, *tensors)
    return _forward(settings, *tensors)[0]


def _fusable(x: Tensor, norm: nn.Module, attn: nn.Module, drop_path: nn.Module) -> bool:
    if type(attn) is not GatedLinearAttention2d:
        return False
    conv, gk = attn.in_proj, attn.gk_proj
    if not (type(conv) is type(gk) is nn.Sequential and (len(conv), len(gk)) == (1, 2)):
        return False
    layers = (
        (norm, type(norm) is nn.LayerNorm),
        *((layer, False) for layer in (conv[0], attn.qkv_proj, gk[0], attn.o_proj)),
        *((layer, True) for layer in (attn.g_proj, gk[1])),
        *((layer, False) for layer in (attn.g_norm, attn.l_norm)),
    )
    return (
        fusable(x, attn.backend, layers, (attn, conv, gk, drop_path))
        and (conv[0].kernel_size, conv[0].padding) == ((3, 3), (1, 1))
        and conv[0].stride == conv[0].dilation == (1, 1)
        and conv[0].padding_mode == "zeros"
        and attn.g_norm.eps == attn.l_norm.eps
    )


class _Settings(NamedTuple):
    hw: tuple[int, int]
    num_heads: int
    act: bool
    norm_eps: float
    gate_eps: float
    dtype: torch.dtype
    backend: str


class _Weights(NamedTuple):
    """Of the half, or their gradients."""

    norm: Tensor
    norm_bias: Tensor | None
    conv: Tensor
    qkv: Tensor  # this and the next two read the convolution's output: one product
    gate: Tensor
    low: Tensor  # the decay gates' first layer
    gate_bias: Tensor
    high: Tensor  # ... and their second
    high_bias: Tensor
    g_norm: Tensor
    l_norm: Tensor
    out: Tensor


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, settings: _Settings, *tensors: Tensor) -> Tensor:
        x, scale, *weights = tensors
        out, *kept = _forward(settings, *tensors)
        ctx.save_for_backward(x, scale, *kept, *weights)
        ctx.settings = settings
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, stats, packed, o, *weights = ctx.saved_tensors
        dx, gradients = _backward(
            ctx.settings, grad.contiguous(), x, scale, stats, packed, o, _Weights(*weights)
        )
        return None, dx, None, *like(gradients, weights)


def _forward(
    s: _Settings, x: Tensor, scale: Tensor | None, *weights: Any
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """The result; the norm's statistics, the projections' and the attention's outputs."""
    w = _Weights(*weights)
    local, stats = norm_conv(
        x, None, w.norm, w.norm_bias, w.conv, s.hw,
        eps=s.norm_eps, act=s.act, dtype=s.dtype, backend=s.backend,
    )  # fmt: skip
    layers = _layers(s, w)
    packed = linear(local.flatten(0, 1), layers.weight, layers.bias)
    q, k, v, gate, rank = _split(packed, x.shape[-1])
    gates = _decay_gates(rank, layers)
    shape = (*x.shape[:2], s.num_heads, -1)
    o = gla_forward(
        *(t.view(shape) for t in (q, k, v, *gates)),
        s.backend,
        # beyond float16's range o would be inf, and NaN behind its norm
        torch.float32 if s.dtype == torch.float16 else None,
    )
    out = gate_projection(
        o, local.view(shape), gate.view(shape), w.g_norm, w.l_norm, layers.out, x, scale,
        eps=s.gate_eps, act=s.act, backend=s.backend,
    )  # fmt: skip
    return out, stats, packed, o


def _backward(
    s: _Settings,
    grad: Tensor,
    x: Tensor,
    scale: Tensor | None,
    stats: Tensor | None,
    packed: Tensor,
    o: Tensor,
    w: _Weights,
) -> tuple[Tensor, _Weights]:
    """Gradients of x and of the weights."""
    local, stats = norm_conv(
        x, stats, w.norm, w.norm_bias, w.conv, s.hw,
        eps=s.norm_eps, act=s.act, dtype=s.dtype, backend=s.backend,
    )  # fmt: skip
    layers, channels, shape = _layers(s, w), x.shape[-1], (*x.shape[:2], s.num_heads, -1)
    q, k, v, gate, rank = _split(packed, channels)
    dpacked = torch.empty_like(packed)  # every gradient is written to its place
    dq, dk, dv, dgate, drank = _split(dpacked, channels)
    do, dlocal, dgate_bias, dg_norm, dl_norm, dout = gate_projection_backward(
        grad, o, local.view(shape), gate.view(shape), w.g_norm, w.l_norm, layers.out, scale,
        dgate.view(shape), eps=s.gate_eps, act=s.act, backend=s.backend,
    )  # fmt: skip
    gates, dgates = _decay_gates(rank, layers), rank.new_empty(rank.shape[0], channels)
    gla_backward_into(
        do,
        *(t.view(shape) for t in (q, k, v, *gates)),
        *(t.view(shape) for t in (dq, dk, dv, *dgates.chunk(2, dim=1))),
        s.backend,
    )
    del gates, do
    # the decay gates' second layer, then all that read the convolution's output
    torch.mm(dgates, layers.high, out=drank)
    dhigh, dhigh_bias = dgates.mT @ rank, dgates.sum(0)
    rows, weight = local.flatten(0, 1), layers.weight
    dlocal = dlocal.view(rows.shape)
    if dlocal.device.type == "cpu":
        dlocal.add_(linear_input_gradient(dpacked, weight))
    else:
        dlocal.addmm_(dpacked, weight)
    dweight = linear_weight_gradient(dpacked, rows, weight)
    dx, dnorm, dnorm_bias, dconv = norm_conv_backward(
        dlocal.view(x.shape), x, stats, w.norm, w.norm_bias, w.conv, grad, s.hw,
        eps=s.norm_eps, act=s.act, backend=s.backend,
    )  # fmt: skip
    return dx, _Weights(
        dnorm, dnorm_bias, dconv, *dweight.split([t.shape[0] for t in (w.qkv, w.gate, w.low)]),
        dgate_bias, dhigh, dhigh_bias, dg_norm, dl_norm, dout,
    )  # type: ignore[call-arg]  # fmt: skip


class _Layers(NamedTuple):
    """Linear layers, in the dtype that products are taken in."""

    weight: Tensor  # [3C + rank, C], of all that read the convolution's output
    bias: Tensor
    high: Tensor
    high_bias: Tensor
    out: Tensor


def _layers(s: _Settings, w: _Weights) -> _Layers:
    """Joined and cast in one launch."""
    parts, others = (w.qkv, w.gate, w.low), (w.high, w.high_bias, w.out)
    sizes = [x.shape[0] for x in parts]  # len of a tensor takes a microsecond
    rows, width = sum(sizes), w.qkv.shape[1]
    weight, bias = (w.qkv.new_empty(shape, dtype=s.dtype) for shape in ((rows, width), rows))
    no_bias = zeros(max(sizes), w.gate_bias)
    places = [*weight.split(sizes), *bias.split(sizes)]
    sources = [*parts, no_bias[: sizes[0]], w.gate_bias, no_bias[: sizes[2]]]
    cast = [x if x.dtype == s.dtype else torch.empty_like(x, dtype=s.dtype) for x in others]
    for place, source in zip(cast, others, strict=True):
        if place is not source:
            places.append(place)
            sources.append(source)
    torch._foreach_copy_(places, sources)
    return _Layers(weight, bias, *cast)


def _split(packed: Tensor, channels: int) -> tuple[Any, ...]:
    """q, k, v, the locality gate's logits, the decay gates' first layer; views."""
    half = channels // 2
    return packed.split([half, half, channels, channels, packed.shape[1] - 3 * channels], dim=1)


def _decay_gates(rank: Tensor, layers: _Layers) -> tuple[Tensor, ...]:
    """Logits of the forward and the backward scan, from their first layer's output."""
    return F.linear(rank, layers.high, layers.high_bias).chunk(2, dim=1)
