"""The feed-forward half of a block in one pass: nothing inside it is kept, or read from memory.

    n = norm(x)    (a, u) = n w_in^T    y = silu(a) u    out = x + scale y w_out^T

A program owns R rows, all C channels of them, and walks through the hidden width in blocks of BI:
two products into the block, one out of it into the rows' sum. Each weight is loaded once for all
the rows. The backward pass computes a, u and y of a block again and adds what leads back to n,

    dy = dout w_out    (da, du) = SwiGLU's gradients    dn += da w_a + du w_u,

then takes the norm's gradient. It writes what the gradients of both weights are products of.
Channels are held in two parts, powers of 2 (192 as 128 + 64), such that few are padding. For narrow
C alone: rows and sums stay in shared memory and registers.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dispatch import operator
from ..torch_utils import (
    add_scaled,
    linear,
    linear_input_gradient,
    linear_weight_gradient,
)
from ..triton_rows import ACC, as_rows, load_channels
from ..triton_utils import INTERPRETED, SCRATCH, cdiv, device_of, dot_dtype, power_of_2
from .triton_norm import norm, norm_backward
from .triton_swiglu import swiglu, swiglu_backward, swiglu_gradients, swiglu_product

MAX_CHANNELS = {2: 256, 4: 192}
"""Widest C of the forward pass in one kernel, by bytes of an operand.

By count, on an H200 in bfloat16 at 25 088 x 192, it issues for 16 us (products: 25 at 60 % of the
peak), where what four launches write and read takes 58 us of DRAM; at 256 41 (46) against 79. The
bounds leave out that each instance reads all weights through the L2 cache. Operands of four bytes
spill beyond 192; up to there memory decides: in float32, time is about even or worse.
"""
MAX_GRADIENT_CHANNELS = 128
"""Widest C of the backward pass in one kernel. Beyond, dn and what leads to it do not fit into the
registers of 64 rows. The norm and w_in's product are then computed again, 21 us of DRAM at 192 and
28 at 256 in bfloat16, less than the forward pass saves, and nothing but x is kept.
"""

# (rows, hidden entries of a block, warps) such that nothing spills, for the widest C + padding
# and the bytes of an operand. Every weight is read once an instance: many rows spare the L2 cache
FORWARD = {(96, 2): (128, 32, 8), (192, 2): (128, 16, 8), (256, 2): (64, 32, 8),
           (128, 4): (16, 32, 4), (192, 4): (16, 32, 8)}  # fmt: skip
BACKWARD = {(96, 2): (64, 32, 4), (128, 2): (64, 16, 4),
            (96, 4): (16, 16, 4), (128, 4): (16, 16, 8)}  # fmt: skip


@triton.jit
def product(x, y, total=None):
    """x y or x y + total in float32; float32 operands keep their precision, by tf32 thrice."""
    return tl.dot(x, y, total, input_precision="tf32x3", out_dtype=tl.float32)


@triton.jit
def load_weight(base, rows, cols, height, width):
    """``[rows, cols]`` of a contiguous ``[height, width]``, zero outside of it."""
    mask = (rows < height)[:, None] & (cols < width)[None, :]
    return tl.load(base + rows[:, None] * width + cols[None, :], mask=mask, other=0.0)


@triton.jit
def again(rows, INTERPRETED: tl.constexpr = INTERPRETED):
    """The same, but the compiler does not know: it would keep what it computed from ``rows``."""
    if INTERPRETED:
        return rows
    return tl.inline_asm_elementwise(
        "mov.b32 $0, $1;", "=r,r", [rows], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def load_factor(scale, rows, M, rows_a_sample):
    """``scale`` of each row's sample, ``[rows, 1]``, or 1."""
    factor = 1.0
    if scale is not None:
        factor = tl.load(scale + rows // rows_a_sample, mask=rows < M, other=0.0).to(ACC)[:, None]
    return factor


@triton.jit
def load_tile(base, rows, cols, left, C: tl.constexpr):
    mask = (rows < left)[:, None] & (cols < C)[None, :]
    return tl.load(base + rows[:, None] * C + cols[None, :], mask=mask, other=0.0).to(ACC)


@triton.jit
def store_tile(base, x, rows, cols, left, C: tl.constexpr):
    mask = (rows < left)[:, None] & (cols < C)[None, :]
    tl.store(base + rows[:, None] * C + cols[None, :], x.to(base.dtype.element_ty), mask=mask)


@triton.jit
def load_normal(x, mean, inverse, rows, cols, left, C: tl.constexpr):
    """The rows before the norm's weights; zero outside."""
    xs = load_tile(x, rows, cols, left, C)
    return tl.where((cols < C)[None, :], (xs - mean[:, None]) * inverse[:, None], 0.0)


@triton.jit
def load_normed(
    x, weight, bias, mean, inverse, rows, cols, left, C: tl.constexpr, CENTER: tl.constexpr
):  # fmt: skip
    y = load_normal(x, mean, inverse, rows, cols, left, C) * load_channels(weight, cols, C)
    if CENTER:
        y += load_channels(bias, cols, C)
    return y


@triton.jit
def part_statistics(
    x, rows, cols, left, count, C: tl.constexpr, CENTER: tl.constexpr
):  # fmt: skip
    """Mean (0 for RMSNorm) of ``count`` channels of each row, and squares around it added up."""
    xs = load_tile(x, rows, cols, left, C)
    mean = tl.zeros([rows.shape[0]], ACC)
    if CENTER:
        mean = tl.sum(xs, axis=1) / count
        xs = tl.where((cols < C)[None, :], xs - mean[:, None], 0.0)
    return mean, tl.sum(xs * xs, axis=1)


@triton.jit
def statistics(
    x, rows, left, eps, C: tl.constexpr, CENTER: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr
):  # fmt: skip
    """Mean and 1 / standard deviation of each row, from those of its parts; 0 for rows outside."""
    LOWER: tl.constexpr = LOW if HIGH else C
    mean, squares = part_statistics(x, rows, tl.arange(0, LOW), left, LOWER, C, CENTER)
    if HIGH:
        high = LOW + tl.arange(0, HIGH)
        other, more = part_statistics(x, again(rows), high, left, C - LOW, C, CENTER)
        squares += more
        if CENTER:
            apart = other - mean
            squares += apart * apart * (LOW * (C - LOW) / C)
            mean += apart * ((C - LOW) / C)
    return mean, tl.where(rows < left, tl.rsqrt(squares / C + eps), 0.0)


@triton.jit
def norm_sums(
    dn, x, norm_w, mean, inverse, rows, cols, left, partial, C: tl.constexpr, CENTER: tl.constexpr
):  # fmt: skip
    """Of a part of the channels: dn times the norm's weight, and what `into_norm` averages."""
    normal = load_normal(x, mean, inverse, rows, cols, left, C)
    tl.store(partial + cols, tl.sum(dn * normal, axis=0), mask=cols < C)
    if CENTER:
        other = partial + tl.num_programs(0).to(tl.int64) * C
        tl.store(other + cols, tl.sum(dn, axis=0), mask=cols < C)
    dn *= load_channels(norm_w, cols, C)
    return dn, tl.sum(dn * normal, axis=1), tl.sum(dn, axis=1)


@triton.jit
def store_input_gradient(
    dx, dn, along, level, x, grad, mean, inverse, rows, cols, left,
    C: tl.constexpr, CENTER: tl.constexpr,
):  # fmt: skip
    d = dn - load_normal(x, mean, inverse, rows, cols, left, C) * (along / C)[:, None]
    if CENTER:
        d -= (level / C)[:, None]
    d = d * inverse[:, None] + load_tile(grad, rows, cols, left, C)
    store_tile(dx, d, rows, cols, left, C)


@triton.jit(do_not_specialize=["M", "rows_a_sample"])
def feed_forward_kernel(
    x,
    norm_w,
    norm_b,
    w_in,
    w_out,
    scale,
    out,
    M,
    width,
    rows_a_sample,
    eps,
    C: tl.constexpr,
    CENTER: tl.constexpr,
    CLAMP: tl.constexpr,
    DOT: tl.constexpr,
    R: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    BI: tl.constexpr,
):
    """An instance owns R rows of ``out [M, C]``; w_in ``[2 width, C]``, w_out ``[C, width]``."""
    rows = tl.arange(0, R)
    low = tl.arange(0, LOW)
    start = tl.program_id(0).to(tl.int64) * R
    left = tl.minimum(M - start, R).to(tl.int32)
    x += start * C
    mean, inverse = statistics(x, rows, left, eps, C, CENTER, LOW, HIGH)
    again_rows = again(rows)
    n_low = load_normed(x, norm_w, norm_b, mean, inverse, again_rows, low, left, C, CENTER).to(DOT)
    total_low = tl.zeros([R, LOW], tl.float32)
    if HIGH:
        high = LOW + tl.arange(0, HIGH)
        again_rows = again(rows)
        n_high = load_normed(x, norm_w, norm_b, mean, inverse, again_rows, high, left, C, CENTER)
        n_high = n_high.to(DOT)
        total_high = tl.zeros([R, HIGH], tl.float32)
    for first in range(0, width, BI):
        block = first + tl.arange(0, BI)
        w_a = load_weight(w_in, block, low, width, C).to(DOT)
        w_u = load_weight(w_in + width * C, block, low, width, C).to(DOT)
        a = product(n_low, tl.trans(w_a))
        u = product(n_low, tl.trans(w_u))
        if HIGH:
            w_a = load_weight(w_in, block, high, width, C).to(DOT)
            w_u = load_weight(w_in + width * C, block, high, width, C).to(DOT)
            a = product(n_high, tl.trans(w_a), a)
            u = product(n_high, tl.trans(w_u), u)
        y = swiglu_product(a, u, CLAMP).to(DOT)
        w_y = load_weight(w_out, low, block, C, width).to(DOT)
        total_low = product(y, tl.trans(w_y), total_low)
        if HIGH:
            w_y = load_weight(w_out, high, block, C, width).to(DOT)
            total_high = product(y, tl.trans(w_y), total_high)
    rows = again(rows)
    factor = load_factor(scale, start + rows, M, rows_a_sample)
    out += start * C
    # read again, as registers are scarce in the loop
    total_low = total_low * factor + load_tile(x, rows, low, left, C)
    store_tile(out, total_low, rows, low, left, C)
    if HIGH:
        rows = again(rows)
        total_high = total_high * factor + load_tile(x, rows, high, left, C)
        store_tile(out, total_high, rows, high, left, C)


@triton.jit(do_not_specialize=["M", "rows_a_sample"])
def feed_forward_gradient_kernel(
    grad,
    x,
    norm_w,
    norm_b,
    w_in,
    w_out,
    scale,
    dx,
    dinside,
    hidden,
    normed,
    partial,
    M,
    width,
    rows_a_sample,
    eps,
    C: tl.constexpr,
    CENTER: tl.constexpr,
    CLAMP: tl.constexpr,
    DOT: tl.constexpr,
    R: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    BI: tl.constexpr,
):
    """Rows of `feed_forward_kernel`.

    ``dinside [M, 2 width]``: gradients of a and u; ``hidden [M, width]``: y, both times ``scale``;
    ``normed [M, C]``: n; ``partial [2, instances, C]``: gradients of the norm's weight and bias.
    """
    rows = tl.arange(0, R)
    low = tl.arange(0, LOW)
    start = tl.program_id(0).to(tl.int64) * R
    left = tl.minimum(M - start, R).to(tl.int32)
    x += start * C
    grad += start * C
    normed += start * C
    mean, inverse = statistics(x, rows, left, eps, C, CENTER, LOW, HIGH)
    again_rows = again(rows)
    n_low = load_normed(x, norm_w, norm_b, mean, inverse, again_rows, low, left, C, CENTER)
    store_tile(normed, n_low, again_rows, low, left, C)
    n_low = n_low.to(DOT)
    g_low = load_tile(grad, again(rows), low, left, C).to(DOT)
    dn_low = tl.zeros([R, LOW], tl.float32)
    if HIGH:
        high = LOW + tl.arange(0, HIGH)
        again_rows = again(rows)
        n_high = load_normed(x, norm_w, norm_b, mean, inverse, again_rows, high, left, C, CENTER)
        store_tile(normed, n_high, again_rows, high, left, C)
        n_high = n_high.to(DOT)
        g_high = load_tile(grad, again(rows), high, left, C).to(DOT)
        dn_high = tl.zeros([R, HIGH], tl.float32)
    factor = load_factor(scale, start + rows, M, rows_a_sample)
    hidden += start * width
    dinside += start * (2 * width)
    for first in range(0, width, BI):
        block = first + tl.arange(0, BI)
        w_a = load_weight(w_in, block, low, width, C).to(DOT)
        w_u = load_weight(w_in + width * C, block, low, width, C).to(DOT)
        a = product(n_low, tl.trans(w_a))
        u = product(n_low, tl.trans(w_u))
        dy = product(g_low, load_weight(w_out, low, block, C, width).to(DOT))
        if HIGH:
            w_a_high = load_weight(w_in, block, high, width, C).to(DOT)
            w_u_high = load_weight(w_in + width * C, block, high, width, C).to(DOT)
            a = product(n_high, tl.trans(w_a_high), a)
            u = product(n_high, tl.trans(w_u_high), u)
            dy = product(g_high, load_weight(w_out, high, block, C, width).to(DOT), dy)
        da, du, y = swiglu_gradients(a, u, dy, factor, CLAMP)
        mask = (rows < left)[:, None] & (block < width)[None, :]
        narrow = rows[:, None] * width + block[None, :]
        wide = rows[:, None] * (2 * width) + block[None, :]
        tl.store(hidden + narrow, y.to(hidden.dtype.element_ty), mask=mask)
        da, du = da.to(DOT), du.to(DOT)
        tl.store(dinside + wide, da.to(dinside.dtype.element_ty), mask=mask)
        tl.store(dinside + width + wide, du.to(dinside.dtype.element_ty), mask=mask)
        dn_low = product(da, w_a, dn_low)
        dn_low = product(du, w_u, dn_low)
        if HIGH:
            dn_high = product(da, w_a_high, dn_high)
            dn_high = product(du, w_u_high, dn_high)
    # all is read again, as registers are scarce in the loop
    partial += tl.program_id(0).to(tl.int64) * C
    dx += start * C
    dn_low, along, level = norm_sums(
        dn_low, x, norm_w, mean, inverse, again(rows), low, left, partial, C, CENTER
    )
    if HIGH:
        dn_high, more, higher = norm_sums(
            dn_high, x, norm_w, mean, inverse, again(rows), high, left, partial, C, CENTER
        )
        along += more
        level += higher
        store_input_gradient(
            dx, dn_high, along, level, x, grad, mean, inverse, again(rows), high, left, C, CENTER
        )
    store_input_gradient(
        dx, dn_low, along, level, x, grad, mean, inverse, again(rows), low, left, C, CENTER
    )


def _sizes(x: Tensor, w_in: Tensor, grad: bool) -> tuple[int, dict]:
    """Number of instances, and a kernel's constants."""
    low, high = _split(x.shape[1])
    table = BACKWARD if grad else FORWARD
    size = w_in.element_size()
    rows, block, warps = next(v for (n, s), v in table.items() if s == size and low + high <= n)
    constants = dict(
        C=x.shape[1],
        CLAMP=w_in.dtype == torch.float16,
        DOT=operand_dtype(w_in.dtype),
        R=rows,
        LOW=low,
        HIGH=high,
        BI=block,
        num_warps=warps,
        num_stages=1,
    )
    return cdiv(x.shape[0], rows), constants


def _split(channels: int) -> tuple[int, int]:
    """Widths of two parts, powers of 2, that hold all channels with little beside; or of one."""
    low = max(16, power_of_2(channels) // 2)
    rest = channels - low
    return low, power_of_2(rest) if rest > 0 else 0


def operand_dtype(dtype: torch.dtype) -> tl.dtype:
    """Type of a product's operands: `dot_dtype`, but float16 stays, as in torch's own products."""
    return tl.float16 if dtype == torch.float16 and not INTERPRETED else dot_dtype(dtype)


def triton_feed_forward(
    x: Tensor,
    norm_w: Tensor,
    norm_b: Tensor | None,
    w_in: Tensor,
    w_out: Tensor,
    scale: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor | None]:
    """See `feed_forward`, of rows ``x [M, C]``; and w_in's output ``[M, 2I]`` if it was made."""
    if x.shape[1] <= MAX_CHANNELS.get(w_in.element_size(), 0):
        return fused(x, norm_w, norm_b, w_in, w_out, scale, eps), None
    inside = linear(norm(x, norm_w, norm_b, eps, w_in.dtype), w_in)
    out = torch.empty_like(x)
    samples = (1 if scale is None else scale.shape[0], -1, x.shape[1])
    y = linear(swiglu(inside), w_out)
    factor = None if scale is None else scale[:, None, None]
    add_scaled(x.view(samples), y.view(samples), factor, out.view(samples))
    return out, inside


def triton_feed_forward_backward(
    grad: Tensor,
    x: Tensor,
    norm_w: Tensor,
    norm_b: Tensor | None,
    w_in: Tensor,
    w_out: Tensor,
    scale: Tensor | None,
    inside: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of ``x [M, C]``, of the norm's weight and bias (or no matter), of w_in and w_out.

    The kernels give what both layers' gradients need beside the gradients that they compute.
    """
    dy = grad.to(w_in.dtype)
    if inside is None and x.shape[1] > MAX_GRADIENT_CHANNELS:
        inside = linear(norm(x, norm_w, norm_b, eps, w_in.dtype), w_in)
    if inside is None:
        dx, dinside, hidden, normed, dnorm = fused_backward(
            grad, x, norm_w, norm_b, w_in, w_out, scale, eps
        )
        dw_out = linear_weight_gradient(dy, hidden, w_out)
    else:
        dinside, hidden = swiglu_backward(linear_input_gradient(dy, w_out), inside, scale)
        dw_out = linear_weight_gradient(dy, hidden, w_out)
        del hidden
        dx, normed, dnorm = norm_backward(
            linear_input_gradient(dinside, w_in), x, norm_w, norm_b, grad, eps
        )
    return dx, dnorm[0], dnorm[-1], linear_weight_gradient(dinside, normed, w_in), dw_out


def _fake(x, norm_w, norm_b, w_in, w_out, scale, eps):
    return x.new_empty(x.shape)


def _flops(x_shape, norm_w, norm_b, w_in_shape, w_out_shape, *_):
    return 2 * x_shape[0] * (math.prod(w_in_shape) + math.prod(w_out_shape))


@operator("feed_forward", _fake, flops=_flops)
def fused(
    x: Tensor,
    norm_w: Tensor,
    norm_b: Tensor | None,
    w_in: Tensor,
    w_out: Tensor,
    scale: Tensor | None,
    eps: float,
) -> Tensor:
    """``[M, C]`` -> ``[M, C]``; products in the dtype of w_in ``[2I, C]`` and w_out ``[C, I]``."""
    x = as_rows(x)
    out = torch.empty_like(x)
    instances, sizes = _sizes(x, w_in, False)
    samples = 1 if scale is None else scale.shape[0]
    with device_of(x):
        feed_forward_kernel[(instances,)](
            x, norm_w, norm_b, w_in.contiguous(), w_out.contiguous(), scale, out, x.shape[0],
            w_out.shape[1], x.shape[0] // samples, eps, CENTER=norm_b is not None,
            **sizes,
        )  # fmt: skip
    return out


def _fake_backward(grad, x, norm_w, norm_b, w_in, w_out, scale, eps):
    channels, width = w_out.shape
    between = (w_in.new_empty(x.shape[0], n) for n in (2 * width, width, channels))
    sums = norm_w.new_empty(1 if norm_b is None else 2, channels, dtype=SCRATCH)
    return x.new_empty(x.shape), *between, sums


def _backward_flops(grad_shape, *shapes):
    # the first layer once more, and the gradients of both layers' inputs
    return _flops(*shapes) + 2 * grad_shape[0] * math.prod(shapes[3])


@operator("feed_forward_backward", _fake_backward, flops=_backward_flops)
def fused_backward(
    grad: Tensor,
    x: Tensor,
    norm_w: Tensor,
    norm_b: Tensor | None,
    w_in: Tensor,
    w_out: Tensor,
    scale: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x and of what w_in gives, SwiGLU's and the norm's outputs.

    And ``[1 or 2, C]``, gradients of the norm's weight and, if there is one, its bias. What w_in
    gives, its gradient and SwiGLU's output are times ``scale [B]``.
    """
    x, (channels, width) = as_rows(x), w_out.shape
    dx = torch.empty_like(x)
    dinside, hidden, normed = (
        torch.empty(x.shape[0], n, dtype=w_in.dtype, device=x.device)
        for n in (2 * width, width, channels)
    )
    instances, sizes = _sizes(x, w_in, True)
    samples = 1 if scale is None else scale.shape[0]
    sums = 1 if norm_b is None else 2
    partial = torch.empty(sums, instances, channels, dtype=SCRATCH, device=x.device)
    with device_of(x):
        feed_forward_gradient_kernel[(instances,)](
            as_rows(grad), x, norm_w, norm_b, w_in.contiguous(), w_out.contiguous(), scale, dx,
            dinside, hidden, normed, partial, x.shape[0], width, x.shape[0] // samples, eps,
            CENTER=norm_b is not None, **sizes,
        )  # fmt: skip
    return dx, dinside, hidden, normed, partial.sum(1)
