"""Norm and depth-wise 3x3 convolution of tokens ``[B, h w, C]``, padded with zeros.

    n = (x - mean) / std norm_weight + norm_bias
    u_t = sum_k weight_k n_{t + shift_k}        out = u or silu(u)

The norm's output is never in memory: a neighbour is normalised when it is read, by the two
statistics of its token. The gradient

    dn_t = sum_k weight_k du_{t - shift_k}      dweight_k = sum_t n_t du_{t - shift_k}

of both is taken in one pass over du and x, which goes on through the norm and adds the gradient
of the residual branch. With SiLU, du is made first, by the forward kernel.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import cdiv, device_of, power_of_2
from .rows import (
    ACC,
    SCRATCH,
    as_rows,
    into_norm,
    load_channels,
    load_rows,
    row_sizes,
    sigmoid,
    statistics,
    store_rows,
)

TAPS = tl.constexpr(9)
SUMS = tl.constexpr(11)  # gradients of the taps, of the norm's weight, of its bias
CHANNELS = 64
TILE = 2048
PER_THREAD = 8


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
        mean, inverse = statistics(xs, valid, cols < C, C, eps, CENTER)
        tl.store(stats + start + rows, mean, mask=valid)
        tl.store(stats + M + start + rows, inverse, mask=valid)


@triton.jit
def neighbour(t, row, col, M, height, width, down, right):
    """Tokens ``down`` rows below and ``right`` columns beside t, and which of them exist."""
    y = row + down
    x = col + right
    exists = (t < M) & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return t + down * width + right, exists


@triton.jit(do_not_specialize=["M", "height", "width"])
def conv_kernel(
    x,
    stats,
    norm_weight,
    norm_bias,
    weight,
    grad,
    out,
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
    """An instance owns R tokens and BC channels; ``GRAD``: du from ``grad`` of silu(u)."""
    blocks = tl.cdiv(C, BC)
    pid = tl.program_id(0).to(tl.int64)
    t = (pid // blocks) * R + tl.arange(0, R)
    cols = (pid % blocks) * BC + tl.arange(0, BC)
    inside = cols < C
    place = t % (height * width)
    row = place // width
    col = place % width
    w = load_channels(norm_weight, cols, C)
    if CENTER:
        b = load_channels(norm_bias, cols, C)
    u = tl.zeros([R, BC], ACC)
    for k in tl.static_range(TAPS):
        s, exists = neighbour(t, row, col, M, height, width, k // 3 - 1, k % 3 - 1)
        mask = exists[:, None] & inside[None, :]
        n = tl.load(x + s[:, None] * C + cols[None, :], mask=mask, other=0.0).to(ACC)
        inverse = tl.load(stats + M + s, mask=exists, other=0.0)[:, None]
        tap = tl.load(weight + cols * TAPS + k, mask=inside, other=0.0).to(ACC)[None, :]
        if CENTER:
            mean = tl.load(stats + s, mask=exists, other=0.0)[:, None]
            n = tl.where(exists[:, None], (n - mean) * inverse * w + b, 0.0)
        else:
            n = n * inverse * w
        u += n * tap
    mask = (t < M)[:, None] & inside[None, :]
    offset = t[:, None] * C + cols[None, :]
    if ACT:
        share = sigmoid(u)
        if GRAD:
            g = tl.load(grad + offset, mask=mask, other=0.0).to(ACC)
            u = g * share * (1.0 + u - u * share)
        else:
            u = u * share
    tl.store(out + offset, u.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["M", "height", "width"])
def conv_gradient_kernel(
    du,
    x,
    stats,
    norm_weight,
    norm_bias,
    weight,
    residual,
    dx,
    partial,
    M,
    height,
    width,
    C,
    CENTER: tl.constexpr,
    STEPS: tl.constexpr,
    R: tl.constexpr,
    CP: tl.constexpr,
):
    """An instance owns STEPS tiles of R tokens; ``partial [instances, SUMS, C]``."""
    rows = tl.arange(0, R)
    cols = tl.arange(0, CP)
    inside = cols < C
    kinds = tl.arange(0, 16)
    w = load_channels(norm_weight, cols, C)
    sums = tl.zeros([16, CP], ACC)
    for step in range(STEPS):
        start = (tl.program_id(0).to(tl.int64) * STEPS + step) * R
        t = start + rows
        valid = t < M
        place = t % (height * width)
        row = place // width
        col = place % width
        xs = load_rows(x, start, rows, cols, M, C)
        inverse = tl.load(stats + M + t, mask=valid, other=0.0)
        if CENTER:
            xs -= tl.load(stats + t, mask=valid, other=0.0)[:, None]
        normal = tl.where(inside[None, :], xs * inverse[:, None], 0.0)
        n = normal * w
        if CENTER:
            n += load_channels(norm_bias, cols, C)
        dn = tl.zeros([R, CP], ACC)
        for k in tl.static_range(TAPS):
            s, exists = neighbour(t, row, col, M, height, width, 1 - k // 3, 1 - k % 3)
            mask = exists[:, None] & inside[None, :]
            g = tl.load(du + s[:, None] * C + cols[None, :], mask=mask, other=0.0).to(ACC)
            tap = tl.load(weight + cols * TAPS + k, mask=inside, other=0.0).to(ACC)[None, :]
            dn += g * tap
            sums += tl.where((kinds == k)[:, None], tl.sum(g * n, axis=0)[None, :], 0.0)
        sums += tl.where((kinds == TAPS)[:, None], tl.sum(dn * normal, axis=0)[None, :], 0.0)
        if CENTER:
            sums += tl.where((kinds == TAPS + 1)[:, None], tl.sum(dn, axis=0)[None, :], 0.0)
        d = into_norm(dn * w, normal, inverse, C, CENTER)
        d += load_rows(residual, start, rows, cols, M, C)
        store_rows(dx, d, start, rows, cols, M, C)
    base = partial + tl.program_id(0).to(tl.int64) * SUMS * C
    mask = (kinds < SUMS)[:, None] & inside[None, :]
    tl.store(base + kinds[:, None] * C + cols[None, :], sums, mask=mask)


def norm_statistics(x: Tensor, center: bool, eps: float) -> Tensor:
    """``[2, M]`` of x ``[..., C]``, M tokens: mean (0 without ``center``), 1 / deviation."""
    rows = as_rows(x)
    stats = torch.empty(2, len(rows), dtype=SCRATCH, device=x.device)
    if len(rows):
        instances, sizes = row_sizes(*rows.shape)
        with device_of(x):
            statistics_kernel[(instances,)](rows, stats, *rows.shape, eps, CENTER=center, **sizes)
    return stats


def _conv(
    x: Tensor,
    stats: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    weight: Tensor,
    grad: Tensor | None,
    out: Tensor,
    hw: tuple[int, int],
    act: bool,
) -> None:
    rows, channels = x.shape[0] * x.shape[1], x.shape[2]
    block = min(power_of_2(channels), CHANNELS)
    tile_rows = TILE // block
    with device_of(x):
        conv_kernel[(cdiv(rows, tile_rows) * cdiv(channels, block),)](
            x, stats, norm_weight, norm_bias, weight, grad, out, rows, *hw, channels,
            CENTER=norm_bias is not None, ACT=act, GRAD=grad is not None, R=tile_rows, BC=block,
            num_warps=TILE // (32 * PER_THREAD), num_stages=1,
        )  # fmt: skip


def norm_conv_forward(
    x: Tensor,
    stats: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    weight: Tensor,
    hw: tuple[int, int],
    act: bool,
    dtype: torch.dtype,
) -> Tensor:
    """``[B, h*w, C]`` -> ``[B, h*w, C]`` in ``dtype``; ``stats`` of `norm_statistics`."""
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    if x.numel():
        args = (x.contiguous(), stats, norm_weight, norm_bias, weight.contiguous())
        _conv(*args, None, out, hw, act)
    return out


def norm_conv_backward(
    grad: Tensor,
    x: Tensor,
    stats: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    weight: Tensor,
    residual: Tensor,
    hw: tuple[int, int],
    act: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x (``residual`` added), the norm's weight and bias, and the weight."""
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not x.numel():
        zeros = torch.zeros_like(norm_weight)
        return dx, zeros, zeros.clone(), torch.zeros_like(weight)
    x, weight, grad = x.contiguous(), weight.contiguous(), grad.contiguous()
    if act:
        du = torch.empty_like(grad)
        _conv(x, stats, norm_weight, norm_bias, weight, grad, du, hw, act)
        grad = du
    rows, channels = x.shape[0] * x.shape[1], x.shape[2]
    instances, sizes = row_sizes(rows, channels)
    partial = torch.empty(instances, SUMS.value, channels, dtype=SCRATCH, device=x.device)
    with device_of(x):
        conv_gradient_kernel[(instances,)](
            grad, x, stats, norm_weight, norm_bias, weight, residual.contiguous(), dx, partial,
            rows, *hw, channels, CENTER=norm_bias is not None, **sizes,
        )  # fmt: skip
    sums = partial.sum(0)
    dweight = sums[: TAPS.value].mT.reshape(weight.shape).to(weight.dtype)
    dnorm = sums[TAPS.value :].to(norm_weight.dtype)
    return dx, dnorm[0].clone(), dnorm[1].clone(), dweight
