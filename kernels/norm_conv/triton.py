"""Norm and depth-wise 3x3 convolution of tokens ``[B, h w, C]``, padded with zeros.

    n = (x - mean) / std norm_weight + norm_bias
    u_t = sum_k weight_k n_{t + shift_k}        out = u or silu(u)

The norm's output is never in memory: a neighbour is normalised when it is read, by the two
statistics of its token. The gradient

    dn_t = sum_k weight_k du_{t - shift_k}      dweight_k = sum_t n_t du_{t - shift_k}

of both is taken in one pass over du and x, which goes on through the norm and adds the gradient
of the residual branch. With SiLU, du is made first, by the forward kernel.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dispatch import operator
from ..triton_rows import (
    ACC,
    as_rows,
    gradient_sizes,
    into_norm,
    load_channels,
    load_rows,
    row_sizes,
    row_statistics,
    sigmoid,
)
from ..triton_utils import SCRATCH, cdiv, device_of, power_of_2

SUMS = 11  # gradients of nine taps, of the norm's weight, of its bias
CHANNELS = 32
TILE = 4096  # entries of the forward kernel's tile
PER_THREAD = 32
GRADIENT_PER_THREAD = 8  # with eleven sums for each entry


@triton.jit(do_not_specialize=["M"])
def statistics_kernel(
    x,
    stats,
    M,
    C,
    eps,
    CENTER: tl.constexpr,
    STEPS: tl.constexpr,
    R: tl.constexpr,
    CP: tl.constexpr,
):
    """``stats [2, M]``: mean and 1 / standard deviation of rows."""
    rows = tl.arange(0, R)
    cols = tl.arange(0, CP)
    for step in range(STEPS):
        start = (tl.program_id(0).to(tl.int64) * STEPS + step) * R
        xs = load_rows(x, start, rows, cols, M, C)
        valid = start + rows < M
        mean, inverse = row_statistics(xs, valid, cols < C, C, eps, CENTER)
        tl.store(stats + start + rows, mean, mask=valid)
        tl.store(stats + M + start + rows, inverse, mask=valid)


@triton.jit
def place_tile(tile, N, width, R: tl.constexpr):
    """First token of a tile of R tokens of one sample, and its tokens' rows and columns.

    Tokens from the sample's end on are in a row below the last one.
    """
    blocks = tl.cdiv(N, R)
    sample = tile // blocks
    n = (tile - sample * blocks).to(tl.int32) * R + tl.arange(0, R)
    row = n // width
    start = sample * N + (tile - sample * blocks) * R
    return start, n < N, row, n - row * width


@triton.jit
def neighbour(row, col, height, width, down, right):
    """Which tokens have a neighbour so far below and beside them."""
    y = row + down
    x = col + right
    return (row < height) & (y >= 0) & (y < height) & (x >= 0) & (x < width)


@triton.jit(do_not_specialize=["tiles", "M", "height", "width"])
def conv_kernel(
    x,
    stats,
    norm_weight,
    norm_bias,
    taps,
    grad,
    out,
    tiles,
    M,
    height,
    width,
    C,
    CENTER: tl.constexpr,
    ACT: tl.constexpr,
    GRAD: tl.constexpr,
    R: tl.constexpr,
    BC: tl.constexpr,
):
    """An instance owns R tokens and BC channels; ``taps [9, C]``.

    ``GRAD``: du from ``grad`` of silu(u).
    """
    blocks = tl.cdiv(C, BC)
    pid = tl.program_id(0).to(tl.int64)
    start, valid, row, col = place_tile(pid // blocks, height * width, width, R)
    channel = (pid % blocks).to(tl.int32) * BC
    cols = tl.arange(0, BC)
    inside = channel + cols < C
    offset = tl.arange(0, R)[:, None] * C + cols[None, :]
    origin = start * C + channel
    w = tl.load(norm_weight + channel + cols, mask=inside, other=0.0).to(ACC)
    if CENTER:
        b = tl.load(norm_bias + channel + cols, mask=inside, other=0.0).to(ACC)
    u = tl.zeros([R, BC], ACC)
    for k in range(9):  # unrolled, it would take all registers
        exists = neighbour(row, col, height, width, k // 3 - 1, k % 3 - 1)
        shift = (k // 3 - 1) * width + k % 3 - 1
        base = x + origin + shift.to(tl.int64) * C
        mask = exists[:, None] & inside[None, :]
        token = stats + start + shift + tl.arange(0, R)
        inverse = tl.load(token + M, mask=exists, other=0.0)
        tap = tl.load(taps + k * C + channel + cols, mask=inside, other=0.0).to(ACC)
        n = tl.load(base + offset, mask=mask, other=0.0).to(ACC) * inverse[:, None]
        if CENTER:
            n -= (tl.load(token, mask=exists, other=0.0) * inverse)[:, None]
            u += exists.to(ACC)[:, None] * (b * tap)[None, :]
        u += n * (w * tap)[None, :]
    mask = valid[:, None] & inside[None, :]
    if ACT:
        share = sigmoid(u)
        if GRAD:
            g = tl.load(grad + origin + offset, mask=mask, other=0.0).to(ACC)
            u = g * share * (1.0 + u - u * share)
        else:
            u = u * share
    tl.store(out + origin + offset, u.to(out.dtype.element_ty), mask=mask)


@triton.jit
def add_tap(k: tl.constexpr, dn, sums, n, base, taps, row, col, height, width, offset, cols, C):
    """dn and the tap's own sum with the part of tap k."""
    exists = neighbour(row, col, height, width, 1 - k // 3, 1 - k % 3)
    shift = (1 - k // 3) * width + 1 - k % 3
    mask = exists[:, None] & (cols < C)[None, :]
    g = tl.load(base + shift.to(tl.int64) * C + offset, mask=mask, other=0.0).to(ACC)
    tap = tl.load(taps + k * C + cols, mask=cols < C, other=0.0).to(ACC)
    return dn + g * tap[None, :], sums + g * n


@triton.jit(do_not_specialize=["tiles", "M", "height", "width"])
def conv_gradient_kernel(
    du,
    x,
    stats,
    norm_weight,
    norm_bias,
    taps,
    residual,
    dx,
    partial,
    tiles,
    M,
    height,
    width,
    C,
    CENTER: tl.constexpr,
    STEPS: tl.constexpr,
    R: tl.constexpr,
    CP: tl.constexpr,
):
    """An instance owns STEPS tiles of R tokens; ``taps [9, C]``, ``partial [instances, 11, C]``.

    What is summed over tokens is kept for each place in the tile, and added up once at the end.
    """
    cols = tl.arange(0, CP)
    inside = cols < C
    offset = tl.arange(0, R)[:, None] * C + cols[None, :]
    w = load_channels(norm_weight, cols, C)
    zeros = tl.zeros([R, CP], ACC)
    s0, s1, s2, s3, s4, s5, s6, s7, s8 = (
        zeros, zeros, zeros, zeros, zeros, zeros, zeros, zeros, zeros
    )  # fmt: skip
    dweight, dbias = zeros, zeros
    for step in range(STEPS):
        tile = tl.program_id(0).to(tl.int64) * STEPS + step
        start, valid, row, col = place_tile(tile, height * width, width, R)
        valid = tl.where(tile < tiles, valid, False)  # Triton 3.9's interpreter fails on `&`
        row = tl.where(valid, row, height)
        mask = valid[:, None] & inside[None, :]
        token = stats + start + tl.arange(0, R)
        inverse = tl.load(token + M, mask=valid, other=0.0)
        normal = tl.load(x + start * C + offset, mask=mask, other=0.0).to(ACC)
        if CENTER:
            normal -= tl.load(token, mask=valid, other=0.0)[:, None]
        normal = tl.where(inside[None, :], normal * inverse[:, None], 0.0)
        n = normal * w
        if CENTER:
            n += load_channels(norm_bias, cols, C)
        dn = zeros
        base = du + start * C
        dn, s0 = add_tap(0, dn, s0, n, base, taps, row, col, height, width, offset, cols, C)
        dn, s1 = add_tap(1, dn, s1, n, base, taps, row, col, height, width, offset, cols, C)
        dn, s2 = add_tap(2, dn, s2, n, base, taps, row, col, height, width, offset, cols, C)
        dn, s3 = add_tap(3, dn, s3, n, base, taps, row, col, height, width, offset, cols, C)
        dn, s4 = add_tap(4, dn, s4, n, base, taps, row, col, height, width, offset, cols, C)
        dn, s5 = add_tap(5, dn, s5, n, base, taps, row, col, height, width, offset, cols, C)
        dn, s6 = add_tap(6, dn, s6, n, base, taps, row, col, height, width, offset, cols, C)
        dn, s7 = add_tap(7, dn, s7, n, base, taps, row, col, height, width, offset, cols, C)
        dn, s8 = add_tap(8, dn, s8, n, base, taps, row, col, height, width, offset, cols, C)
        dweight += dn * normal
        if CENTER:
            dbias += dn
        d = into_norm(dn * w, normal, inverse, C, CENTER)
        d += tl.load(residual + start * C + offset, mask=mask, other=0.0).to(ACC)
        tl.store(dx + start * C + offset, d.to(dx.dtype.element_ty), mask=mask)
    place = partial + tl.program_id(0).to(tl.int64) * 11 * C + cols
    tl.store(place, tl.sum(s0, axis=0), mask=inside)
    tl.store(place + C, tl.sum(s1, axis=0), mask=inside)
    tl.store(place + 2 * C, tl.sum(s2, axis=0), mask=inside)
    tl.store(place + 3 * C, tl.sum(s3, axis=0), mask=inside)
    tl.store(place + 4 * C, tl.sum(s4, axis=0), mask=inside)
    tl.store(place + 5 * C, tl.sum(s5, axis=0), mask=inside)
    tl.store(place + 6 * C, tl.sum(s6, axis=0), mask=inside)
    tl.store(place + 7 * C, tl.sum(s7, axis=0), mask=inside)
    tl.store(place + 8 * C, tl.sum(s8, axis=0), mask=inside)
    tl.store(place + 9 * C, tl.sum(dweight, axis=0), mask=inside)
    tl.store(place + 10 * C, tl.sum(dbias, axis=0), mask=inside)


def _fake_statistics(x, center, eps):
    return x.new_empty(2, x.numel() // x.shape[-1], dtype=SCRATCH)


@operator("norm_statistics", _fake_statistics)
def statistics(x: Tensor, center: bool, eps: float) -> Tensor:
    """``[2, M]`` of x ``[..., C]``, M tokens: mean (0 without ``center``), 1 / deviation."""
    rows = as_rows(x)
    stats = torch.empty(2, rows.shape[0], dtype=SCRATCH, device=x.device)
    if rows.shape[0]:
        instances, sizes = row_sizes(*rows.shape)
        with device_of(x):
            statistics_kernel[(instances,)](rows, stats, *rows.shape, eps, CENTER=center, **sizes)
    return stats


def _taps(weight: Tensor) -> Tensor:
    """``[C, 1, 3, 3]`` -> ``[9, C]``: a tap of neighbouring channels is read at a time."""
    return weight.flatten(1).mT.contiguous()


def _conv(
    x: Tensor,
    stats: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    taps: Tensor,
    grad: Tensor | None,
    out: Tensor,
    hw: tuple[int, int],
    act: bool,
) -> None:
    batch, tokens, channels = x.shape
    block = min(power_of_2(channels), CHANNELS)
    tile_rows = min(TILE // block, power_of_2(tokens))
    tiles = batch * cdiv(tokens, tile_rows)
    with device_of(x):
        conv_kernel[(tiles * cdiv(channels, block),)](
            x, stats, norm_weight, norm_bias, taps, grad, out, tiles, batch * tokens, *hw,
            channels, CENTER=norm_bias is not None, ACT=act, GRAD=grad is not None, R=tile_rows,
            BC=block, num_warps=max(tile_rows * block // (32 * PER_THREAD), 1), num_stages=1,
        )  # fmt: skip


def _fake_conv(x, stats, norm_weight, norm_bias, weight, height, width, act, dtype):
    return x.new_empty(x.shape, dtype=dtype)


def _flops(x_shape, *_):
    return 2 * 9 * math.prod(x_shape)


@operator("norm_conv", _fake_conv, flops=_flops)
def conv(
    x: Tensor,
    stats: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    weight: Tensor,
    height: int,
    width: int,
    act: bool,
    dtype: torch.dtype,
) -> Tensor:
    """``[B, h*w, C]`` -> ``[B, h*w, C]`` in ``dtype``; ``stats`` of `statistics`."""
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    if x.numel():
        args = (x.contiguous(), stats, norm_weight, norm_bias, _taps(weight))
        _conv(*args, None, out, (height, width), act)
    return out


def _fake_conv_backward(
    grad, x, stats, norm_weight, norm_bias, weight, residual, height, width, act
):
    return x.new_empty(x.shape), weight.new_empty(SUMS, x.shape[-1], dtype=SCRATCH)


def _backward_flops(grad_shape, *_):
    return 2 * _flops(grad_shape)


@operator("norm_conv_backward", _fake_conv_backward, flops=_backward_flops)
def conv_backward(
    grad: Tensor,
    x: Tensor,
    stats: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    weight: Tensor,
    residual: Tensor,
    height: int,
    width: int,
    act: bool,
) -> tuple[Tensor, Tensor]:
    """Gradient of x (``residual`` added), and ``[SUMS, C]``: of the taps, the norm's weight and
    its bias."""
    hw = (height, width)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not x.numel():
        return dx, weight.new_zeros(SUMS, x.shape[-1], dtype=SCRATCH)
    x, taps, grad = x.contiguous(), _taps(weight), grad.contiguous()
    if act:
        du = torch.empty_like(grad)
        _conv(x, stats, norm_weight, norm_bias, taps, grad, du, hw, act)
        grad = du
    batch, tokens, channels = x.shape
    instances, tiles, sizes = gradient_sizes(batch, tokens, channels, GRADIENT_PER_THREAD)
    if sizes["CP"] >= 1024:  # a tile is one row: four warps would spill
        sizes["num_warps"] = 8
    partial = torch.empty(instances, SUMS, channels, dtype=SCRATCH, device=x.device)
    with device_of(x):
        conv_gradient_kernel[(instances,)](
            grad, x, stats, norm_weight, norm_bias, taps, residual.contiguous(), dx, partial,
            tiles, batch * tokens, *hw, channels, CENTER=norm_bias is not None, **sizes,
        )  # fmt: skip
    return dx, partial.sum(0)
