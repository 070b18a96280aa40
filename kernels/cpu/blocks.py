"""Blocks of tokens: rows of tensors of any dtype to float32 in buffers, and back."""

from typing import NamedTuple

from .host import LANES, inner, small
from .vectors import (
    full,
    load,
    load_bfloat16,
    load_float16,
    prefetch,
    store,
    store_bfloat16,
    store_float16,
)

BLOCK = 16  # tokens converted at a time: their operands stay in the L1 cache
AHEAD = 16  # tokens that are fetched ahead
ROW = 4 * LANES  # bytes of a vector
FLOAT32, BFLOAT16, FLOAT16 = 0, 1, 2


class Tensor(NamedTuple):
    """``[B, N, H, width]``, or ``[N, width]`` of one head; width is a multiple of LANES."""

    data: int  # address
    batch: int  # strides in bytes
    token: int
    head: int
    dtype: int
    width: int


@small
def unpack_tensor(p, start, i):
    """The i-th of those whose numbers are in memory from ``start`` on."""
    at = start + 6 * i
    return Tensor(
        int(p[at]), int(p[at + 1]), int(p[at + 2]), int(p[at + 3]), int(p[at + 4]), int(p[at + 5])
    )


@small
def rows_of(x, heads, index, first, length, direction):
    """Tokens ``first`` to ``first + length`` of one of the B H heads, in a direction's order."""
    data = x.data + index // heads * x.batch + index % heads * x.head
    data += (first + direction * (length - 1)) * x.token
    return Tensor(data, 0, (1 - 2 * direction) * x.token, 0, x.dtype, x.width)


@inner
def fill(target, size, value):
    for at in range(target, target + size, ROW):
        store(at, full(value))


@inner
def move(target, source, size):
    for at in range(0, size, ROW):
        store(target + at, load(source + at))


@inner
def load_block(target, x, t, count, factor, padding):
    """Rows of x from t on, times a factor, then padding."""
    size, row = 4 if x.dtype == FLOAT32 else 2, 4 * x.width
    for c in range(0, x.width, LANES):
        at, to = x.data + t * x.token + size * c, target + 4 * c
        for _ in range(count):
            prefetch(at + AHEAD * x.token)
            if x.dtype == FLOAT32:
                store(to, load(at) * factor)
            elif x.dtype == BFLOAT16:
                store(to, load_bfloat16(at) * factor)
            else:
                store(to, load_float16(at) * factor)
            at, to = at + x.token, to + row
    fill(target + count * row, (BLOCK - count) * row, padding)


@inner
def store_sum(x, t, count, one, one_step, other, other_step):
    """Rows of x from t on: sums of two buffers' rows, each with its step in bytes."""
    size = 4 if x.dtype == FLOAT32 else 2
    for c in range(0, x.width, LANES):
        to, y, z = x.data + t * x.token + size * c, one + 4 * c, other + 4 * c
        for _ in range(count):
            prefetch(to + AHEAD * x.token)
            if x.dtype == FLOAT32:
                store(to, load(y) + load(z))
            elif x.dtype == BFLOAT16:
                store_bfloat16(to, load(y) + load(z))
            else:
                store_float16(to, load(y) + load(z))
            to, y, z = to + x.token, y + one_step, z + other_step
