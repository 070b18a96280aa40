"""The two halves of a block as functions that keep little for the backward pass.

Plain autograd keeps about 22 numbers a channel and token of a block. Here the mixer keeps its
input, what its projections give and the attention's output, and the MLP its input and what its
first layer gives: 11.5. Norms, the depth-wise convolution, the gates and the products with them
are cheap, and computed again. On a CPU what treats every token alike runs in blocks of tokens,
which stay in its caches.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vig_mm.kernels import locality_gate
from vig_mm.kernels.depthwise_conv import torch_norm_conv, torch_norm_conv_backward
from vig_mm.kernels.locality_gate_backward import torch_locality_gate_backward
from vig_mm.kernels.norm import normalize, torch_norm_backward
from vig_mm.kernels.swiglu import torch_swiglu, torch_swiglu_backward

from .layout import BLOCK, by_blocks
from .linear import linear, linear_backward, linear_input_gradient, linear_weight_gradient


class MixerSettings(NamedTuple):
    """What `mix` needs beside tensors."""

    hw: tuple[int, int]
    num_heads: int
    act: bool
    norm_eps: float
    gate_eps: float
    dtype: torch.dtype  # of the projections: autocast's, or that of x
    backend: str  # of the operator: chunked or triton


def _blocks(rows: int, whole: bool) -> Iterator[slice]:
    step = rows if whole else BLOCK
    return (slice(start, start + step) for start in range(0, rows, max(step, 1)))


def _scale_rows(scale: Tensor | None, x: Tensor) -> Tensor | None:
    """``[B, 1, 1]`` -> ``[B * N, 1]`` for ``x [B, N, C]``."""
    return None if scale is None else scale.expand(-1, x.shape[1], -1).reshape(-1, 1)


class _Mixer(torch.autograd.Function):
    """x + scale * mixer(norm(x))."""

    @staticmethod
    def forward(
        ctx, settings: MixerSettings, x: Tensor, scale: Tensor | None, *weights: Tensor | None
    ) -> Tensor:
        s, channels = settings, x.shape[-1]
        norm_w, norm_b, conv, qkv, low, high, high_bias, g, g_bias, g_norm, l_norm, last = weights
        with _no_autocast(x):
            local = torch_norm_conv(x, norm_w, norm_b, conv, s.hw, s.norm_eps, s.act, s.dtype)
            local = local.flatten(0, 1)
            bias = torch.cat([g_bias.new_zeros(2 * channels), g_bias, g_bias.new_zeros(len(low))])
            packed = linear(local, torch.cat([qkv, g, low]).to(s.dtype), bias.to(s.dtype))
            q, k, v, gate, rank = _unpack(packed, channels)
            gate_f, gate_b = _decay_gates(rank, high, high_bias)
            shape = (*x.shape[:2], s.num_heads, -1)
            o = torch.ops.vig_mm.bidirectional_gla(
                *(t.view(shape) for t in (q, k, v, gate_f, gate_b)),
                s.backend,
                torch.float32 if v.dtype == torch.float16 else None,
            )
            del gate_f, gate_b
            out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
            rows_x, rows_out, rows_o = (t.flatten(0, 1) for t in (x, out, o))
            scale_rows, last = _scale_rows(scale, x), last.to(s.dtype)
            for r in _blocks(len(rows_x), s.backend == "triton"):
                y = locality_gate(
                    rows_o[None, r],
                    _heads(local[r], s)[None],
                    _heads(gate[r], s)[None],
                    g_norm,
                    l_norm,
                    eps=s.gate_eps,
                    act=s.act,
                    backend="triton" if s.backend == "triton" else "torch",
                )
                y = linear(y[0].flatten(1).to(s.dtype), last)
                _add(rows_x[r], y, None if scale is None else scale_rows[r], rows_out[r])
        ctx.save_for_backward(x, scale, packed, o, *weights)
        ctx.settings = settings
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        with _no_autocast(grad):
            return _Mixer.gradients(ctx, grad)

    @staticmethod
    def gradients(ctx, grad: Tensor):
        s = ctx.settings
        x, scale, packed, o, *weights = ctx.saved_tensors
        norm_w, norm_b, conv, qkv, low, high, high_bias, g, g_bias, g_norm, l_norm, last = weights
        channels, grad = x.shape[-1], grad.contiguous()
        shape = (*x.shape[:2], s.num_heads, -1)
        local = torch_norm_conv(x, norm_w, norm_b, conv, s.hw, s.norm_eps, s.act, s.dtype)
        local = local.flatten(0, 1)
        q, k, v, gate, rank = _unpack(packed, channels)
        dpacked = torch.empty_like(packed)
        dq, dk, dv, dgate, drank = _unpack(dpacked, channels)
        dlocal, do = torch.empty_like(local), torch.empty_like(o)
        rows_o, rows_do, rows_grad = (t.flatten(0, 1) for t in (o, do, grad))
        scale_rows = _scale_rows(scale, x)
        sums: list[Tensor] = []  # gradients of last, g_norm, l_norm
        wide = _wide(s.dtype)
        low_precision = last.to(s.dtype)
        for r in _blocks(len(rows_grad), s.backend == "triton"):
            dy = rows_grad[r] if scale is None else rows_grad[r] * scale_rows[r]
            dy = dy.to(s.dtype)
            dhidden = linear_input_gradient(dy, low_precision)
            y, do_r, dlocal_r, dgate_r, dg_norm, dl_norm = torch_locality_gate_backward(
                _heads(dhidden, s).to(wide),
                rows_o[r].to(wide),
                _heads(local[r], s).to(wide),
                _heads(gate[r], s).to(wide),
                g_norm.to(wide),
                l_norm.to(wide),
                s.gate_eps,
                s.act,
            )
            rows_do[r] = do_r
            dlocal[r] = dlocal_r.flatten(1)
            dgate[r] = dgate_r.flatten(1)
            _accumulate(sums, linear_weight_gradient(dy, y.flatten(1).to(s.dtype), low_precision), dg_norm, dl_norm)
        gate_f, gate_b = _decay_gates(rank, high, high_bias)
        dgates = gate_f.new_empty(len(gate_f), channels)
        halves = dgates.chunk(2, dim=-1)
        torch.ops.vig_mm.bidirectional_gla_backward_into(
            do,
            *(t.view(shape) for t in (q, k, v, gate_f, gate_b)),
            *(t.view(shape) for t in (dq, dk, dv, *halves)),
            s.backend,
        )
        del gate_f, gate_b, do
        torch.mm(dgates, high.to(s.dtype), out=drank)
        dhigh = dgates.mT @ rank
        dhigh_bias = dgates.sum(0)
        weight = torch.cat([qkv, g, low]).to(s.dtype)
        dinput, dweight = linear_backward(dpacked, local, weight)
        dlocal.add_(dinput)
        dg_bias = dgate.sum(0)
        dx, dnorm_w, dnorm_b, dconv = torch_norm_conv_backward(
            dlocal.view(x.shape), x, norm_w, norm_b, conv, grad, s.hw, s.norm_eps, s.act
        )
        dqkv, dg, dlow = dweight.split([2 * channels, channels, len(low)])
        dlast, dg_norm, dl_norm = sums
        found = (
            dnorm_w, dnorm_b, dconv, dqkv, dlow, dhigh, dhigh_bias, dg, dg_bias,
            dg_norm, dl_norm, dlast,
        )  # fmt: skip
        return None, dx, None, *_like(found, weights)


class _FeedForward(torch.autograd.Function):
    """x + scale * w_out(swiglu(w_in(norm(x))))."""

    @staticmethod
    def forward(
        ctx,
        eps: float,
        dtype: torch.dtype,
        backend: str,
        x: Tensor,
        scale: Tensor | None,
        norm_w: Tensor,
        norm_b: Tensor | None,
        w_in: Tensor,
        w_out: Tensor,
    ) -> Tensor:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        rows_x, rows_out, scale_rows = x.flatten(0, 1), out.flatten(0, 1), _scale_rows(scale, x)
        kept = []
        with _no_autocast(x):
            first, last = w_in.to(dtype), w_out.to(dtype)
            for r in _blocks(len(rows_x), backend == "triton"):
                inside = linear(normalize(rows_x[r], norm_w, norm_b, eps).to(dtype), first)
                y = linear(torch_swiglu(inside), last)
                _add(rows_x[r], y, None if scale is None else scale_rows[r], rows_out[r])
                kept.append(inside)
        ctx.save_for_backward(x, scale, norm_w, norm_b, w_in, w_out, *kept)
        ctx.settings = eps, dtype, backend
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        with _no_autocast(grad):
            return _FeedForward.gradients(ctx, grad)

    @staticmethod
    def gradients(ctx, grad: Tensor):
        eps, dtype, backend = ctx.settings
        x, scale, norm_w, norm_b, w_in, w_out, *kept = ctx.saved_tensors
        dx = torch.empty_like(x)
        rows_x, rows_dx, rows_grad = (t.flatten(0, 1) for t in (x, dx, grad.contiguous()))
        scale_rows = _scale_rows(scale, x)
        first, last = w_in.to(dtype), w_out.to(dtype)
        sums: list[Tensor | None] = []
        for r, inside in zip(_blocks(len(rows_x), backend == "triton"), kept, strict=True):
            dy = rows_grad[r] if scale is None else rows_grad[r] * scale_rows[r]
            dy = dy.to(dtype)
            dhidden = linear_input_gradient(dy, last)
            dinside, hidden = torch_swiglu_backward(dhidden, inside)
            dlast = linear_weight_gradient(dy, hidden, last)
            normed = normalize(rows_x[r], norm_w, norm_b, eps).to(dtype)
            dnormed, dfirst = linear_backward(dinside, normed, first)
            dx_r, _, dnorm_w, dnorm_b = torch_norm_backward(
                dnormed.to(x.dtype), rows_x[r], norm_w, norm_b, eps
            )
            torch.add(dx_r, rows_grad[r], out=rows_dx[r])
            _accumulate(sums, dnorm_w, dnorm_b, dfirst, dlast)
        return None, None, None, dx, None, *_like(sums, (norm_w, norm_b, w_in, w_out))


class _NormActConv(torch.autograd.Function):
    """conv(act(norm(x))) that keeps x."""

    @staticmethod
    def forward(
        ctx, inner: Callable, geometry: tuple, dtype: torch.dtype, x: Tensor, *weights: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, *weights)
        ctx.settings = inner, geometry, dtype
        with _no_autocast(x):
            hidden = inner(x, *weights[:2]).to(dtype)
            return F.conv2d(hidden, *(t.to(dtype) for t in weights[2:]), *geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        inner, (*geometry, groups), dtype = ctx.settings
        x, *weights = ctx.saved_tensors
        leaves = [t.detach().requires_grad_() for t in (x, *weights[:2])]
        weight, bias = weights[2:]
        with _no_autocast(x):
            with torch.enable_grad():
                hidden = inner(*leaves)
            dhidden, *dconv = torch.ops.aten.convolution_backward(
                grad, hidden.detach().to(dtype), weight.to(dtype), bias.shape, *geometry, False,
                [0, 0], groups, [True, True, True],
            )  # fmt: skip
            grads = torch.autograd.grad(hidden, leaves, dhidden.to(hidden.dtype))
            return None, None, None, *grads, *_like(dconv, (weight, bias))


def norm_act_conv(
    x: Tensor, norm: nn.LayerNorm, act: nn.Module, conv: nn.Conv2d, backend: str | None
) -> Tensor:
    """conv(act(norm(x))) of maps ``[B, C, h, w]``."""
    if not _recomputes(backend, norm.weight.dtype, x, norm, act, conv):
        return conv(act(norm(x)))

    def inner(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1).to(weight.dtype)
        return act(F.layer_norm(x, weight.shape, weight, bias, norm.eps).permute(0, 3, 1, 2))

    geometry = (conv.stride, conv.padding, conv.dilation, conv.groups)
    weights = (norm.weight, norm.bias, conv.weight, conv.bias)
    return _NormActConv.apply(inner, geometry, _projection_dtype(x), x, *weights)


def _unpack(packed: Tensor, channels: int) -> tuple[Tensor, ...]:
    """q, k, v, gate logits, low-rank gates of ``[M, 3C + rank]``, as views."""
    half = channels // 2
    return packed.split([half, half, channels, channels, packed.shape[1] - 3 * channels], dim=1)


def _decay_gates(rank: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    """Logits of the forward and the backward scan."""
    return F.linear(rank, weight.to(rank.dtype), bias.to(rank.dtype)).chunk(2, dim=1)


def _heads(x: Tensor, s: MixerSettings) -> Tensor:
    return x.unflatten(-1, (s.num_heads, -1))


def _add(x: Tensor, y: Tensor, scale: Tensor | None, out: Tensor) -> None:
    """x + scale * y into ``out``."""
    if scale is None:
        torch.add(x, y, out=out)
    else:
        torch.addcmul(x, y.to(x.dtype), scale.to(x.dtype), out=out)


def _accumulate(sums: list, *terms: Tensor | None) -> None:
    """Add the gradients of another block of tokens, in float32 at least."""
    if not sums:
        sums.extend(None if x is None else x.to(_wide(x.dtype)) for x in terms)
        return
    for total, term in zip(sums, terms, strict=True):
        if total is not None:
            total.add_(term)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _projection_dtype(x: Tensor) -> torch.dtype:
    """Autocast's where it is on."""
    device = x.device.type
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if on else x.dtype


def _no_autocast(x: Tensor) -> AbstractContextManager:
    device = x.device.type
    if not torch.amp.is_autocast_available(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def _like(gradients, weights) -> Iterator[Tensor | None]:
    return (
        None if w is None else g.to(w.dtype) for g, w in zip(gradients, weights, strict=True)
    )


def _recomputes(
    backend: str | None, dtype: torch.dtype, x: Tensor, *modules: nn.Module
) -> bool:
    """Whether the functions above take the place of these modules.

    Not without gradients, where nothing is kept; not in graphs that are recorded, whose compiler
    decides what it keeps; not where a module is hooked or was exchanged.
    """
    if backend in ("torch", "reference") or not torch.is_grad_enabled():
        return False
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if torch._C._are_functorch_transforms_active():
        return False
    parameters = [p for module in modules for p in module.parameters()]
    if not (x.requires_grad or any(p.requires_grad for p in parameters)):
        return False
    if any(p.dtype != dtype or p.device != x.device for p in parameters):
        return False
    return all(_untouched(part) for module in modules for part in module.modules())


def _untouched(module: nn.Module) -> bool:
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return not any(hooks) and type(module).__module__.startswith(("torch.nn.modules.", __package__))


def mix(x: Tensor, norm: nn.Module, mixer: nn.Module, drop_path: nn.Module, hw) -> Tensor:
    """x + drop_path(mixer(norm(x), hw)) of tokens ``[B, N, C]``."""
    if not _recomputes(mixer.backend, x.dtype, x, norm, mixer):
        return x + drop_path(mixer(norm(x), hw))
    dtype = _projection_dtype(x)
    settings = MixerSettings(
        hw, mixer.num_heads, mixer.act, norm.eps, mixer.g_norm.eps, dtype, mixer.backend or "chunked"
    )
    m = mixer
    return _Mixer.apply(
        settings, x, _scale(drop_path, x), norm.weight, getattr(norm, "bias", None),
        m.in_proj[0].weight, m.qkv_proj.weight, m.gk_proj[0].weight, m.gk_proj[1].weight,
        m.gk_proj[1].bias, m.g_proj.weight, m.g_proj.bias, m.g_norm.weight, m.l_norm.weight,
        m.o_proj.weight,
    )  # fmt: skip


def _scale(drop_path: nn.Module, x: Tensor) -> Tensor | None:
    """What stochastic depth multiplies the samples with, ``[B, 1, 1]``."""
    if isinstance(drop_path, nn.Identity) or not drop_path.training:
        return None
    return drop_path(x.new_ones(len(x), 1, 1))


def feed_forward(x: Tensor, norm: nn.Module, mlp: nn.Module, drop_path: nn.Module, backend) -> Tensor:
    """x + drop_path(mlp(norm(x))) of tokens ``[B, N, C]``."""
    if not _recomputes(backend, x.dtype, x, norm, mlp):
        return by_blocks(lambda t: t + drop_path(mlp(norm(t))), x)
    dtype = _projection_dtype(x)
    w_in, w_out = (getattr(mlp, name).weight for name in mlp.names)
    return _FeedForward.apply(
        norm.eps, dtype, backend or "chunked", x, _scale(drop_path, x), norm.weight,
        getattr(norm, "bias", None), w_in, w_out,
    )  # fmt: skip
