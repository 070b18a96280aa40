"""SwiGLU: out = gate sigmoid(gate) up, entry by entry, bound by memory alone.

    d up = dout silu(gate)        d gate = dout up s (1 + gate (1 - s)),   s = sigmoid(gate)

The backward pass gives the output again beside the gradients: the next layer needs it for the
gradient of its weight.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dispatch import operator
from ..triton_rows import ACC, as_rows, sigmoid
from ..triton_utils import cdiv, device_of, larger, power_of_2, smaller

COLUMNS = 256
TILE = 2048
PER_THREAD = 8


@triton.jit
def place_tile(M, width, R: tl.constexpr, CI: tl.constexpr):
    """Rows, columns and mask of an instance in a grid (row blocks, column blocks)."""
    blocks = tl.cdiv(width, CI)
    pid = tl.program_id(0).to(tl.int64)
    rows = (pid // blocks) * R + tl.arange(0, R)
    cols = (pid % blocks) * CI + tl.arange(0, CI)
    return rows, cols, (rows < M)[:, None] & (cols < width)[None, :]


@triton.jit
def swiglu_product(gate, up, CLAMP: tl.constexpr, FLOAT16_MAX: tl.constexpr = 65504.0):
    y = gate * sigmoid(gate) * up
    if CLAMP:
        y = smaller(larger(y, -FLOAT16_MAX), FLOAT16_MAX)
    return y


@triton.jit
def swiglu_gradients(
    gate, up, dy, factor, CLAMP: tl.constexpr, FLOAT16_MAX: tl.constexpr = 65504.0
):
    """Gradients of gate and up from that of the output, and the output; all times ``factor``."""
    share = sigmoid(gate)
    silu = gate * share
    y = silu * up
    if CLAMP:
        dy = tl.where(tl.abs(y) > FLOAT16_MAX, 0.0, dy)
        y = smaller(larger(y, -FLOAT16_MAX), FLOAT16_MAX)
    dy *= factor
    return dy * up * share * (1.0 + gate - silu), dy * silu, y * factor


@triton.jit(do_not_specialize=["M"])
def swiglu_kernel(x, out, M, width, R: tl.constexpr, CI: tl.constexpr, CLAMP: tl.constexpr):
    """An instance owns R rows and CI columns of ``out [M, width]``."""
    rows, cols, mask = place_tile(M, width, R, CI)
    source = x + rows[:, None] * (2 * width) + cols[None, :]
    gate = tl.load(source, mask=mask, other=0.0).to(ACC)
    up = tl.load(source + width, mask=mask, other=0.0).to(ACC)
    y = swiglu_product(gate, up, CLAMP)
    tl.store(out + rows[:, None] * width + cols[None, :], y.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["M", "rows_a_sample"])
def swiglu_gradient_kernel(
    grad,
    x,
    scale,
    dx,
    out,
    M,
    width,
    rows_a_sample,
    SCALE: tl.constexpr,
    R: tl.constexpr,
    CI: tl.constexpr,
    CLAMP: tl.constexpr,
):
    """Tiles of `swiglu_kernel`; ``SCALE``: both results times ``scale`` of the row's sample."""
    rows, cols, mask = place_tile(M, width, R, CI)
    wide = rows[:, None] * (2 * width) + cols[None, :]
    narrow = rows[:, None] * width + cols[None, :]
    gate = tl.load(x + wide, mask=mask, other=0.0).to(ACC)
    up = tl.load(x + wide + width, mask=mask, other=0.0).to(ACC)
    dy = tl.load(grad + narrow, mask=mask, other=0.0).to(ACC)
    factor = 1.0
    if SCALE:
        factor = tl.load(scale + rows // rows_a_sample, mask=rows < M, other=0.0).to(ACC)[:, None]
    dgate, dup, y = swiglu_gradients(gate, up, dy, factor, CLAMP)
    tl.store(dx + wide, dgate.to(dx.dtype.element_ty), mask=mask)
    tl.store(dx + wide + width, dup.to(dx.dtype.element_ty), mask=mask)
    tl.store(out + narrow, y.to(out.dtype.element_ty), mask=mask)


def _sizes(rows: int, width: int, dtype: torch.dtype) -> tuple[tuple[int], dict]:
    columns = min(power_of_2(width), COLUMNS)
    tile_rows = min(TILE // columns, power_of_2(rows))
    grid = (cdiv(rows, tile_rows) * cdiv(width, columns),)
    warps = max(tile_rows * columns // (32 * PER_THREAD), 1)
    constants = dict(R=tile_rows, CI=columns, CLAMP=dtype == torch.float16)
    return grid, dict(**constants, num_warps=warps, num_stages=1)


def _fake_swiglu(x):
    return x.new_empty(*x.shape[:-1], x.shape[-1] // 2)


@operator("swiglu", _fake_swiglu)
def swiglu(x: Tensor) -> Tensor:
    """``[..., 2I]`` -> ``[..., I]``."""
    width = x.shape[-1] // 2
    out = torch.empty(*x.shape[:-1], width, dtype=x.dtype, device=x.device)
    if out.numel():
        x = as_rows(x)
        grid, sizes = _sizes(x.shape[0], width, x.dtype)
        with device_of(x):
            swiglu_kernel[grid](x, out, x.shape[0], width, **sizes)
    return out


def _fake_swiglu_backward(grad, x, scale):
    return x.new_empty(x.shape), x.new_empty(grad.shape)


@operator("swiglu_backward", _fake_swiglu_backward)
def swiglu_backward(grad: Tensor, x: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """Gradient of x, and the output again; both times the ``scale [B]`` of their sample."""
    width = x.shape[-1] // 2
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    out = torch.empty(*x.shape[:-1], width, dtype=x.dtype, device=x.device)
    if out.numel():
        rows = as_rows(x)
        grid, sizes = _sizes(rows.shape[0], width, x.dtype)
        with device_of(x):
            swiglu_gradient_kernel[grid](
                as_rows(grad), rows, scale, dx, out, rows.shape[0], width,
                rows.shape[0] if scale is None else rows.shape[0] // scale.shape[0],
                SCALE=scale is not None, **sizes,
            )  # fmt: skip
    return dx, out
