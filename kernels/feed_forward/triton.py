"""The feed-forward half of a block in one pass: nothing inside it is kept, or read from memory.

    n = norm(x)    (a, u) = n w_in^T    y = silu(a) u    out = x + scale y w_out^T

A program owns R rows, all C channels of them, and walks through the hidden width in blocks of BI:
two products into the block, one out of it into the rows' sum. The backward pass computes a, u and
y of a block again and adds what leads back to n,

    dy = dout w_out    (da, du) = SwiGLU's gradients    dn += da w_a + du w_u,

then takes the norm's gradient. It writes what the gradients of both weights are products of.
For narrow C alone: rows and sums stay in registers.
"""

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
from ..triton_rows import ACC, as_rows, into_norm, load_channels, row_statistics
from ..triton_utils import SCRATCH, cdiv, device_of, dot_dtype, load, power_of_2, store
from .triton_norm import norm, norm_backward
from .triton_swiglu import swiglu, swiglu_backward, swiglu_gradients, swiglu_product

MAX_CHANNELS = 128
"""Widest C for which one pass is chosen: up to there the half is bound by memory, so that computing
w_in's output twice costs less than to write and to read it. The kernels hold whole rows up to
`HELD_CHANNELS`, but beyond 128 only 32 at a time, and by count take twice as long as four launches.
"""
HELD_CHANNELS = 256

# (rows, hidden entries of a block, channels of n held at a time, warps) such that nothing spills,
# for padded channels and bytes of an operand
FORWARD = {(128, 2): (64, 32, 128, 8), (256, 2): (32, 16, 32, 8),
           (128, 4): (64, 16, 64, 8), (256, 4): (32, 16, 32, 8)}  # fmt: skip
BACKWARD = {(128, 2): (64, 16, 64, 8), (256, 2): (32, 16, 256, 8),
            (128, 4): (32, 16, 64, 8), (256, 4): (32, 16, 16, 8)}  # fmt: skip


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
def load_factor(scale, rows, M, rows_a_sample):
    """``scale`` of each row's sample, ``[rows, 1]``, or 1."""
    factor = 1.0
    if scale is not None:
        factor = tl.load(scale + rows // rows_a_sample, mask=rows < M, other=0.0).to(ACC)[:, None]
    return factor


@triton.jit
def load_tile(base, rows, cols, left, C: tl.constexpr, CP: tl.constexpr):
    return load(base, rows, cols, C, left, C, CP, 0.0).to(ACC)


@triton.jit
def load_normal(x, mean, inverse, rows, cols, left, C: tl.constexpr, CP: tl.constexpr):
    """The rows before the norm's weights; zero outside."""
    xs = load_tile(x, rows, cols, left, C, CP)
    return tl.where((cols < C)[None, :], (xs - mean[:, None]) * inverse[:, None], 0.0)


@triton.jit
def load_normed(
    x, weight, bias, mean, inverse, rows, cols, left,
    C: tl.constexpr, CP: tl.constexpr, CENTER: tl.constexpr,
):  # fmt: skip
    y = load_normal(x, mean, inverse, rows, cols, left, C, CP) * load_channels(weight, cols, C)
    if CENTER:
        y += load_channels(bias, cols, C)
    return y


@triton.jit
def first_layer(
    x, norm_w, norm_b, mean, inverse, n, w_in, rows, block, left, width,
    C: tl.constexpr, CENTER: tl.constexpr, DOT: tl.constexpr, CP: tl.constexpr, KC: tl.constexpr,
):  # fmt: skip
    """A block of a and u; from n if that is all channels, else KC channels of n at a time."""
    if KC == CP:
        cols = tl.arange(0, CP)
        w_a = load_weight(w_in, block, cols, width, C).to(DOT)
        w_u = load_weight(w_in + width * C, block, cols, width, C).to(DOT)
        return product(n, tl.trans(w_a)), product(n, tl.trans(w_u))
    a = tl.zeros([rows.shape[0], block.shape[0]], tl.float32)
    u = tl.zeros([rows.shape[0], block.shape[0]], tl.float32)
    for k in range(0, CP, KC):
        cols = k + tl.arange(0, KC)
        part = load_normed(x, norm_w, norm_b, mean, inverse, rows, cols, left, C, CP, CENTER)
        part = part.to(DOT)
        w_a = load_weight(w_in, block, cols, width, C).to(DOT)
        w_u = load_weight(w_in + width * C, block, cols, width, C).to(DOT)
        a = product(part, tl.trans(w_a), a)
        u = product(part, tl.trans(w_u), u)
    return a, u


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
    CP: tl.constexpr,
    KC: tl.constexpr,
    BI: tl.constexpr,
):
    """An instance owns R rows of ``out [M, C]``; w_in ``[2 width, C]``, w_out ``[C, width]``."""
    rows = tl.arange(0, R)
    cols = tl.arange(0, CP)
    start = tl.program_id(0).to(tl.int64) * R
    left = tl.minimum(M - start, R).to(tl.int32)
    x += start * C
    xs = load_tile(x, rows, cols, left, C, CP)
    mean, inverse = row_statistics(xs, rows < left, cols < C, C, eps, CENTER)
    n = load_normed(x, norm_w, norm_b, mean, inverse, rows, cols, left, C, CP, CENTER).to(DOT)
    total = tl.zeros([R, CP], tl.float32)
    for first in range(0, width, BI):
        block = first + tl.arange(0, BI)
        a, u = first_layer(
            x, norm_w, norm_b, mean, inverse, n, w_in, rows, block, left, width,
            C, CENTER, DOT, CP, KC,
        )  # fmt: skip
        y = swiglu_product(a, u, CLAMP)
        w_y = load_weight(w_out, cols, block, C, width).to(DOT)
        total = product(y.to(DOT), tl.trans(w_y), total)
    total *= load_factor(scale, start + rows, M, rows_a_sample)
    # read again, as registers are scarce in the loop
    total += load_tile(x, rows, cols, left, C, CP)
    store(out + start * C, total, rows, cols, C, left, C, CP)


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
    CP: tl.constexpr,
    KC: tl.constexpr,
    BI: tl.constexpr,
):
    """Rows of `feed_forward_kernel`.

    ``dinside [M, 2 width]``: gradients of a and u; ``hidden [M, width]``: y, both times ``scale``;
    ``normed [M, C]``: n; ``partial [2, instances, C]``: gradients of the norm's weight and bias.
    """
    rows = tl.arange(0, R)
    cols = tl.arange(0, CP)
    start = tl.program_id(0).to(tl.int64) * R
    left = tl.minimum(M - start, R).to(tl.int32)
    x += start * C
    xs = load_tile(x, rows, cols, left, C, CP)
    mean, inverse = row_statistics(xs, rows < left, cols < C, C, eps, CENTER)
    n = load_normed(x, norm_w, norm_b, mean, inverse, rows, cols, left, C, CP, CENTER)
    store(normed + start * C, n, rows, cols, C, left, C, CP)
    n = n.to(DOT)
    grad += start * C
    g = load_tile(grad, rows, cols, left, C, CP).to(DOT)
    factor = load_factor(scale, start + rows, M, rows_a_sample)
    hidden += start * width
    dinside += start * (2 * width)
    dn = tl.zeros([R, CP], tl.float32)
    for first in range(0, width, BI):
        block = first + tl.arange(0, BI)
        a, u = first_layer(
            x, norm_w, norm_b, mean, inverse, n, w_in, rows, block, left, width,
            C, CENTER, DOT, CP, KC,
        )  # fmt: skip
        if KC == CP:
            dy = product(g, load_weight(w_out, cols, block, C, width).to(DOT))
        else:
            dy = tl.zeros([R, BI], tl.float32)
            for k in range(0, CP, KC):
                cols_k = k + tl.arange(0, KC)
                part = load_tile(grad, rows, cols_k, left, C, CP).to(DOT)
                dy = product(part, load_weight(w_out, cols_k, block, C, width).to(DOT), dy)
        da, du, y = swiglu_gradients(a, u, dy, factor, CLAMP)
        mask = (rows < left)[:, None] & (block < width)[None, :]
        narrow = rows[:, None] * width + block[None, :]
        wide = rows[:, None] * (2 * width) + block[None, :]
        tl.store(hidden + narrow, y.to(hidden.dtype.element_ty), mask=mask)
        tl.store(dinside + wide, da.to(dinside.dtype.element_ty), mask=mask)
        tl.store(dinside + width + wide, du.to(dinside.dtype.element_ty), mask=mask)
        dn = product(da.to(DOT), load_weight(w_in, block, cols, width, C).to(DOT), dn)
        w_u = load_weight(w_in + width * C, block, cols, width, C).to(DOT)
        dn = product(du.to(DOT), w_u, dn)
    # read again, as registers are scarce in the loop
    normal = load_normal(x, mean, inverse, rows, cols, left, C, CP)
    place = partial + tl.program_id(0).to(tl.int64) * C + cols
    tl.store(place, tl.sum(dn * normal, axis=0), mask=cols < C)
    if CENTER:
        tl.store(place + tl.num_programs(0).to(tl.int64) * C, tl.sum(dn, axis=0), mask=cols < C)
    d = into_norm(dn * load_channels(norm_w, cols, C), normal, inverse, C, CENTER)
    d += load_tile(grad, rows, cols, left, C, CP)
    store(dx + start * C, d, rows, cols, C, left, C, CP)


def _sizes(x: Tensor, w_in: Tensor, grad: bool) -> tuple[int, dict]:
    """Number of instances, and a kernel's constants."""
    padded = power_of_2(x.shape[1])
    table = BACKWARD if grad else FORWARD
    rows, block, chunk, warps = table[max(padded, 128), w_in.element_size()]
    constants = dict(
        C=x.shape[1],
        CLAMP=w_in.dtype == torch.float16,
        DOT=operand_dtype(w_in.dtype),
        R=rows,
        CP=padded,
        KC=min(chunk, padded),
        BI=block,
        num_warps=warps,
        num_stages=1,
    )
    return cdiv(x.shape[0], rows), constants


def operand_dtype(dtype: torch.dtype) -> tl.dtype:
    """Type of a product's operands: `dot_dtype`, but float16 stays, as in torch's own products."""
    half = dtype == torch.float16 and not triton.knobs.runtime.interpret
    return tl.float16 if half else dot_dtype(dtype)


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
    if x.shape[1] <= MAX_CHANNELS:
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


@operator("feed_forward", _fake)
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


@operator("feed_forward_backward", _fake_backward)
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
