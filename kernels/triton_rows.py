"""What the kernels on rows ``[M, C]`` share: statistics of a norm, its gradient, sizes of a launch.

A tile holds whole rows, all C channels, padded to a power of 2. Sums over rows, which the
gradients of weights need, are kept by an instance for all its tiles, written once an instance and
added up by torch: the same in every run.
"""

import triton
import triton.language as tl
from torch import Tensor

from .triton_utils import cdiv, power_of_2

ACC = tl.float32  # a test makes it float64
TILE = 4096  # entries
PER_THREAD = 16
INSTANCES = 528  # four for each multiprocessor of an H100 or H200: more tiles an instance beyond
MAX_STEPS = 8
COLUMNS = 8  # of a row to a thread: 16 bytes in half precision
GRADIENT_WARPS = 1584  # of all instances, twelve for each of those multiprocessors
GRADIENT_STEPS = 32


@triton.jit
def sigmoid(x, LOG2_E: tl.constexpr = 1.4426950408889634):
    return 1.0 / (1.0 + tl.exp2(-x * LOG2_E))


@triton.jit
def load_rows(base, start, rows, cols, M, C):
    """``[rows, cols]`` of a contiguous ``[M, C]`` from row ``start``, zero outside of it."""
    mask = (start + rows < M)[:, None] & (cols < C)[None, :]
    return tl.load(base + (start + rows)[:, None] * C + cols[None, :], mask=mask, other=0.0).to(ACC)


@triton.jit
def store_rows(base, x, start, rows, cols, M, C):
    mask = (start + rows < M)[:, None] & (cols < C)[None, :]
    pointers = base + (start + rows)[:, None] * C + cols[None, :]
    tl.store(pointers, x.to(base.dtype.element_ty), mask=mask)


@triton.jit
def load_channels(base, cols, C):
    return tl.load(base + cols, mask=cols < C, other=0.0).to(ACC)[None, :]


@triton.jit
def row_statistics(x, valid, inside, C, eps, CENTER: tl.constexpr):
    """Mean (0 for RMSNorm) and 1 / standard deviation of each row; 0 for rows outside."""
    mean = tl.zeros([x.shape[0]], ACC)
    if CENTER:
        mean = tl.sum(x, axis=1) / C
        x = tl.where(inside[None, :], x - mean[:, None], 0.0)
    inverse = tl.where(valid, tl.rsqrt(tl.sum(x * x, axis=1) / C + eps), 0.0)
    return mean, inverse


@triton.jit
def into_norm(grad, normal, inverse, C, CENTER: tl.constexpr):
    """Gradient of x from that of (x - mean) * inverse; columns outside must be 0 in both."""
    grad_mean = tl.sum(grad * normal, axis=1) / C
    dx = grad - normal * grad_mean[:, None]
    if CENTER:
        dx -= (tl.sum(grad, axis=1) / C)[:, None]
    return dx * inverse[:, None]


def row_sizes(rows: int, width: int) -> tuple[int, dict]:
    """Number of instances, and constants of a kernel that owns whole rows."""
    padded = power_of_2(width)
    tile_rows = max(min(TILE // padded, power_of_2(rows)), 1)
    tiles = cdiv(rows, tile_rows)
    steps = 1
    while steps < MAX_STEPS and tiles > 2 * steps * INSTANCES:
        steps *= 2
    warps = min(max(tile_rows * padded // (32 * PER_THREAD), 1), 8)
    constants = dict(STEPS=steps, R=tile_rows, CP=padded, num_warps=warps, num_stages=1)
    return cdiv(tiles, steps), constants


def gradient_sizes(samples: int, tokens: int, width: int, per_thread: int) -> tuple[int, int, dict]:
    """Instances, tiles and constants of a kernel that also sums over rows.

    Its warps lie side by side on the channels, `COLUMNS` to a thread, and none below another:
    a sum over the rows of several warps goes through shared memory with 32 bank conflicts. As few
    warps own few rows, an instance walks through many tiles, so that there are few sums.
    """
    padded = power_of_2(width)
    warps = min(max(padded // (32 * COLUMNS), 1), 8)
    tile_rows = max(min(32 * warps * per_thread // padded, power_of_2(tokens)), 1)
    tiles = samples * cdiv(tokens, tile_rows)
    instances = max(GRADIENT_WARPS // warps, INSTANCES)
    steps = 1
    while steps < GRADIENT_STEPS and tiles > 2 * steps * instances:
        steps *= 2
    constants = dict(STEPS=steps, R=tile_rows, CP=padded, num_warps=warps, num_stages=1)
    return cdiv(tiles, steps), tiles, constants


def as_rows(x: Tensor) -> Tensor:
    """``[..., C]`` -> contiguous ``[M, C]``."""
    return x.reshape(-1, x.shape[-1]).contiguous()
