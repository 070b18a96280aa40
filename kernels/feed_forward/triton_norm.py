"""LayerNorm and RMSNorm of rows, and their gradients with the residual's added.

    n = (x - mean) / std weight + bias,     RMSNorm: mean = 0, no bias
    dx = (g - average(g) - normal average(g normal)) / std + residual,     g = grad weight

The backward pass computes the statistics again, as a tile holds whole rows, and gives n again:
the next layer needs it for the gradient of its weight.
"""

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
    store_rows,
)
from ..triton_utils import SCRATCH, device_of

GRADIENT_PER_THREAD = 16  # entries of a tile


@triton.jit(do_not_specialize=["M"])
def norm_kernel(
    x,
    weight,
    bias,
    out,
    M,
    C,
    eps,
    CENTER: tl.constexpr,
    STEPS: tl.constexpr,
    R: tl.constexpr,
    CP: tl.constexpr,
):
    """An instance owns STEPS tiles of R rows."""
    rows = tl.arange(0, R)
    cols = tl.arange(0, CP)
    w = load_channels(weight, cols, C)
    for step in range(STEPS):
        start = (tl.program_id(0).to(tl.int64) * STEPS + step) * R
        xs = load_rows(x, start, rows, cols, M, C)
        mean, inverse = row_statistics(xs, start + rows < M, cols < C, C, eps, CENTER)
        y = (xs - mean[:, None]) * inverse[:, None] * w
        if CENTER:
            y += load_channels(bias, cols, C)
        store_rows(out, y, start, rows, cols, M, C)


@triton.jit(do_not_specialize=["M"])
def norm_gradient_kernel(
    grad,
    x,
    weight,
    bias,
    residual,
    dx,
    out,
    partial,
    M,
    C,
    eps,
    CENTER: tl.constexpr,
    RESIDUAL: tl.constexpr,
    STEPS: tl.constexpr,
    R: tl.constexpr,
    CP: tl.constexpr,
):
    """An instance owns STEPS tiles of R rows.

    ``partial [1 or 2, instances, C]``: gradients of weight and bias.
    """
    rows = tl.arange(0, R)
    cols = tl.arange(0, CP)
    w = load_channels(weight, cols, C)
    dweight = tl.zeros([CP], ACC)
    dbias = tl.zeros([CP], ACC)
    for step in range(STEPS):
        start = (tl.program_id(0).to(tl.int64) * STEPS + step) * R
        xs = load_rows(x, start, rows, cols, M, C)
        g = load_rows(grad, start, rows, cols, M, C)
        mean, inverse = row_statistics(xs, start + rows < M, cols < C, C, eps, CENTER)
        normal = tl.where((cols < C)[None, :], (xs - mean[:, None]) * inverse[:, None], 0.0)
        dweight += tl.sum(g * normal, axis=0)
        d = into_norm(g * w, normal, inverse, C, CENTER)
        if RESIDUAL:
            d += load_rows(residual, start, rows, cols, M, C)
        store_rows(dx, d, start, rows, cols, M, C)
        y = normal * w
        if CENTER:
            dbias += tl.sum(g, axis=0)
            y += load_channels(bias, cols, C)
        store_rows(out, y, start, rows, cols, M, C)
    place = partial + tl.program_id(0).to(tl.int64) * C + cols
    tl.store(place, dweight, mask=cols < C)
    if CENTER:
        tl.store(place + tl.num_programs(0).to(tl.int64) * C, dbias, mask=cols < C)


def _fake_norm(x, weight, bias, eps, dtype):
    return x.new_empty(x.shape, dtype=dtype)


@operator("norm", _fake_norm)
def norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, dtype: torch.dtype) -> Tensor:
    """``[..., C]`` -> ``[..., C]`` in ``dtype``."""
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    if x.numel():
        rows = as_rows(x)
        instances, sizes = row_sizes(*rows.shape)
        with device_of(x):
            norm_kernel[(instances,)](
                rows, weight, bias, out, *rows.shape, eps, CENTER=bias is not None, **sizes
            )
    return out


def _fake_norm_backward(grad, x, weight, bias, residual, eps):
    out = x.new_empty(x.shape, dtype=grad.dtype)
    sums = weight.new_empty(1 if bias is None else 2, weight.shape[0], dtype=SCRATCH)
    return x.new_empty(x.shape), out, sums


@operator("norm_backward", _fake_norm_backward)
def norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of x plus residual, the output in grad's dtype, and ``[1 or 2, C]``: gradients of
    the weight and, if there is one, the bias."""
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    out = torch.empty(x.shape, dtype=grad.dtype, device=x.device)
    sums = 1 if bias is None else 2
    if not x.numel():
        return dx, out, weight.new_zeros(sums, weight.shape[0], dtype=SCRATCH)
    rows = as_rows(x)
    instances, _, sizes = gradient_sizes(1, *rows.shape, GRADIENT_PER_THREAD)
    partial = torch.empty(sums, instances, rows.shape[1], dtype=SCRATCH, device=x.device)
    with device_of(x):
        norm_gradient_kernel[(instances,)](
            as_rows(grad), rows, weight, bias, None if residual is None else as_rows(residual),
            dx, out, partial, *rows.shape, eps,
            CENTER=bias is not None, RESIDUAL=residual is not None, **sizes,
        )  # fmt: skip
    return dx, out, partial.sum(1)
