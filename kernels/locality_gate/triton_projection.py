"""The locality gate, the projection behind it and the residual branch in one: x + scale * y w^T.

A program owns R tokens and BN channels of the result and walks through the heads: it blends a
head's channels (see `blend`), D of the product's inner dimension. More than one block of BN
channels blends a head more than once, from the cache.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dispatch import operator
from ..feed_forward.triton import load_factor, operand_dtype, product
from ..triton_rows import ACC
from ..triton_utils import by_tokens, cdiv, device_of, load, power_of_2
from .triton import blend, load_weight

ROWS = 64
CHANNELS = {2: 256, 4: 128}  # by bytes of an operand, such that nothing spills


@triton.jit(do_not_specialize=["M", "rows_a_sample"])
def gate_projection_kernel(
    o,
    local,
    gate,
    g_weight,
    l_weight,
    weight,
    x,
    scale,
    out,
    M,
    H,
    C,
    rows_a_sample,
    eps,
    strides,
    D: tl.constexpr,
    ACT: tl.constexpr,
    DOT: tl.constexpr,
    R: tl.constexpr,
    DP: tl.constexpr,
    BN: tl.constexpr,
):
    """Grid (M / R, C / BN); heads are neighbours in o, local and gate ``[M, H D]``, whose rows
    are ``strides`` apart."""
    o_n, l_n, z_n = strides
    rows = tl.arange(0, R)
    cols = tl.arange(0, DP)
    channels = tl.program_id(1) * BN + tl.arange(0, BN)
    start = tl.program_id(0).to(tl.int64) * R
    left = tl.minimum(M - start, R).to(tl.int32)
    w_g = load_weight(g_weight, cols, D, DP)
    w_l = load_weight(l_weight, cols, D, DP)
    o += start * o_n
    local += start * l_n
    gate += start * z_n
    total = tl.zeros([R, BN], tl.float32)
    for h in range(H):
        os = load(o + h * D, rows, cols, o_n, left, D, DP, 0.0).to(ACC)
        ls = load(local + h * D, rows, cols, l_n, left, D, DP, 0.0).to(ACC)
        zs = load(gate + h * D, rows, cols, z_n, left, D, DP, 0.0).to(ACC)
        y = blend(os, ls, zs, w_g, w_l, rows < left, eps, D, ACT)
        w = load(weight + h * D, channels, cols, H * D, C, D, DP, 0.0)
        total = product(y.to(DOT), tl.trans(w.to(DOT)), total)
    total *= load_factor(scale, start + rows, M, rows_a_sample)
    mask = (rows < left)[:, None] & (channels < C)[None, :]
    at = rows[:, None] * C + channels[None, :]
    total += tl.load(x + start * C + at, mask=mask, other=0.0).to(ACC)
    tl.store(out + start * C + at, total.to(out.dtype.element_ty), mask=mask)


def _fake(o, local, gate, g_weight, l_weight, weight, x, scale, eps, act):
    return x.new_empty(x.shape)


def _flops(o_shape, local_shape, gate_shape, g_shape, l_shape, weight_shape, *_):
    return 2 * o_shape[0] * o_shape[1] * weight_shape[0] * weight_shape[1]


@operator("gate_projection", _fake, flops=_flops)
def gate_projection(
    o: Tensor,
    local: Tensor,
    gate: Tensor,
    g_weight: Tensor,
    l_weight: Tensor,
    weight: Tensor,
    x: Tensor,
    scale: Tensor | None,
    eps: float,
    act: bool,
) -> Tensor:
    """``[B, N, C]`` like x from ``[B, N, H, D]``; products in the dtype of weight ``[C, H D]``."""
    batch, num_tokens, heads, width = o.shape
    channels = weight.shape[0]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if batch == 0:
        return out
    inputs = [by_tokens(t) for t in (o, local, gate)]
    # heads that are no neighbours are copied, too
    inputs = [t if heads == 1 or t.stride(2) == width else t.contiguous() for t in inputs]
    block = min(power_of_2(channels), CHANNELS[weight.element_size()])
    rows = batch * num_tokens
    with device_of(o):
        gate_projection_kernel[(cdiv(rows, ROWS), cdiv(channels, block))](
            *inputs, g_weight.contiguous(), l_weight.contiguous(), weight.contiguous(),
            x.contiguous(), scale, out, rows, heads, channels, num_tokens, eps,
            tuple(t.stride(1) for t in inputs), D=width, ACT=act,
            DOT=operand_dtype(weight.dtype), R=ROWS, DP=power_of_2(width), BN=block,
            num_warps=8 if block > 64 else 4, num_stages=1,
        )  # fmt: skip
    return out
