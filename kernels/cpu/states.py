"""Sizes and operands of a call, and the states between segments of a head's tokens.

    S[i+1] = c[i] S[i] + sum_s (gates after s) k_s v_s^T
    D[i-1] = c[i] D[i] + sum_t (gates up to and with t) q_t g_t^T

in the order of each direction. S[i] is what enters segment i, D[i] the gradient of what leaves it,
c[i] the product of its gates, g the gradient of the result.
"""

from typing import NamedTuple

from .blocks import BLOCK, ROW, Tensor, fill, load_block, rows_of, unpack_tensor
from .gates import OPEN, gates
from .host import PLACE, inner, kernel, place, small
from .recurrence import scan
from .vectors import full, load, scalar, store, where

NOTHING = 2.0**-100  # next to 1; CPUs are slow with numbers below 2^-126


class Call(NamedTuple):
    N: int  # tokens
    H: int
    K: int
    V: int
    heads: int  # B H
    segment: int  # tokens
    segments: int
    scale: float
    gradient: int
    group: int  # heads of a program that scans halves
    last: int  # of the halves
    states: int  # addresses
    partial: int
    scratch: int
    scratch_size: int  # bytes a thread


class Inputs(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor
    gate_f: Tensor
    gate_b: Tensor
    grad: Tensor  # without meaning in the forward pass


@small
def unpack_call(p):
    """From numbers in memory, behind the thread's; all but the scale are whole."""
    return Call(
        int(p[2]), int(p[3]), int(p[4]), int(p[5]), int(p[6]), int(p[7]), int(p[8]), p[9],
        int(p[10]), int(p[11]), int(p[12]), int(p[13]), int(p[14]), int(p[15]), int(p[16]),
    )  # fmt: skip


@small
def unpack_tensors(p, i):
    """The inputs that are behind the call, or (i = 6) the results."""
    return Inputs(
        unpack_tensor(p, CALL, i), unpack_tensor(p, CALL, i + 1), unpack_tensor(p, CALL, i + 2),
        unpack_tensor(p, CALL, i + 3), unpack_tensor(p, CALL, i + 4), unpack_tensor(p, CALL, i + 5),
    )  # fmt: skip


CALL, INPUTS = PLACE + len(Call._fields), len(Inputs._fields)


@small
def span(c, i):
    """First token and number of tokens of a segment."""
    return i * c.segment, min(c.segment, c.N - i * c.segment)


@small
def operands(c, x, head, first, length, direction, order):
    """Rows of q, k, v, one direction's gate and g, in the order of a direction."""
    return (
        rows_of(x.q, c.H, head, first, length, order),
        rows_of(x.k, c.H, head, first, length, order),
        rows_of(x.v, c.H, head, first, length, order),
        rows_of(x[3 + direction], c.H, head, first, length, order),
        rows_of(x.grad, c.H, head, first, length, order),
    )


@small
def own_states(c, head, direction, i):
    """Addresses of what a segment adds to S and to D, and of the product of its gates."""
    size = 4 * c.K * c.V
    s = c.states + ((head * 2 + direction) * c.segments + i) * (2 * size + 4 * c.K)
    return s, s + size, s + 2 * size


@inner
def enter(c, state, head, direction, i, gradient):
    """S or, with ``gradient``, D of a segment, from what those before it add."""
    fill(state, 4 * c.K * c.V, 0.0)
    left = direction == gradient
    for n in range(i if left else c.segments - 1 - i):
        s, d, decay = own_states(c, head, direction, n if left else c.segments - 1 - n)
        own = d if gradient else s
        for row in range(c.K):
            for at in range(4 * row * c.V, 4 * (row + 1) * c.V, ROW):
                y = load(state + at) * scalar(decay + 4 * row) + load(own + at)
                store(state + at, y)


@kernel
def local_kernel(p):
    """What the tokens of every segment add to S and D."""
    (thread, threads), c, x = place(p), unpack_call(p), unpack_tensors(p, 0)
    a_row, v_row = 4 * c.K, 4 * c.V
    alpha = c.scratch + thread * c.scratch_size
    keys, ones = alpha + BLOCK * a_row, alpha + 2 * BLOCK * a_row
    values = ones + BLOCK * a_row
    unused = values + BLOCK * v_row
    residue = unused + BLOCK * v_row
    fill(ones, BLOCK * a_row, 1.0)
    for program in range(thread, 2 * c.heads * c.segments, threads):
        head, direction, i = program % c.heads, program // c.heads % 2, program // c.heads // 2
        first, length = span(c, i)
        q, k, v, gate, grad = operands(c, x, head, first, length, direction, direction)
        s, d, decay = own_states(c, head, direction, i)
        fill(s, 2 * a_row * c.V, 0.0)
        fill(decay, a_row, 1.0)
        fill(residue, a_row, 0.0)
        for t in range(0, length, BLOCK):
            count = min(BLOCK, length - t)
            load_block(keys, gate, t, count, 1.0, OPEN)
            gates(alpha, 0, keys, residue, a_row)
            load_block(keys, k, t, count, 1.0, 0.0)
            load_block(values, v, t, count, 1.0, 0.0)
            scan(s, alpha, keys, keys, values, unused, a_row, v_row, count)
            if c.gradient:
                load_block(keys, q, t, count, 1.0, 0.0)
                load_block(values, grad, t, count, c.scale, 0.0)
            # the block's own product first: near 1, each rounding counts
            for at in range(0, a_row, ROW):
                product, before = full(1.0), load(decay + at)
                for row in range(at, at + BLOCK * a_row, a_row):
                    product = product * load(alpha + row)
                    store(keys + row, load(keys + row) * product * before)
                product = product * before
                store(decay + at, where(product < NOTHING, 0.0, product))
            if c.gradient:
                scan(d, ones, keys, keys, values, unused, a_row, v_row, count)
