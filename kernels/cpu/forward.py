"""The result: each direction's recurrence over a segment, the second adding what the first left."""

from .blocks import BLOCK, fill, load_block, rows_of, store_sum
from .gates import OPEN, gates
from .host import inner, kernel, place
from .recurrence import scan
from .states import INPUTS, enter, operands, own_states, span, unpack_call, unpack_tensors

PART = 256  # tokens of one head before the next, whose rows lie beside


@inner
def scan_tokens(c, x, y, head, first, length, direction, last, state, partial, alpha):
    """Leaves its part in ``partial``, in its order, or (``last``) adds what is there already."""
    a_row, v_row = 4 * c.K, 4 * c.V
    queries, keys = alpha + BLOCK * a_row, alpha + 2 * BLOCK * a_row
    values = keys + BLOCK * a_row
    sums = values + BLOCK * v_row
    residue = sums + BLOCK * v_row
    q, k, v, gate, _ = operands(c, x, head, first, length, direction, direction)
    out = rows_of(y.q, c.H, head, first, length, direction)
    fill(residue, a_row, 0.0)
    for t in range(0, length, BLOCK):
        count = min(BLOCK, length - t)
        load_block(queries, gate, t, count, 1.0, OPEN)
        gates(alpha, 0, queries, residue, a_row)
        load_block(keys, k, t, count, 1.0, 0.0)
        load_block(queries, q, t, count, c.scale, 0.0)
        load_block(values, v, t, count, 1.0, 0.0)
        o = sums if last else partial + t * v_row
        scan(state, alpha, keys, queries, values, o, a_row, v_row, count)
        if last:
            other = partial + (length - 1 - t) * v_row
            store_sum(out, t, count, sums, v_row, other, -v_row)


@kernel
def output_kernel(p):
    """A program is one segment of one head, in both directions."""
    thread, threads = place(p)
    c, x, y = unpack_call(p), unpack_tensors(p, 0), unpack_tensors(p, INPUTS)
    state = c.scratch + thread * c.scratch_size
    partial = state + 4 * c.K * c.V
    alpha = partial + 4 * c.V * (c.segment + BLOCK)
    for program in range(thread, c.heads * c.segments, threads):
        head, i = program % c.heads, program // c.heads
        first, length = span(c, i)
        for last in range(2):
            enter(c, state, head, last, i, 0)
            scan_tokens(c, x, y, head, first, length, last, last, state, partial, alpha)


@kernel
def half_kernel(p):
    """A program is one direction of some heads: its first half or, in another launch, its last.

    There it finds what the other direction has left: two segments without a pass before.
    """
    thread, threads = place(p)
    c, x, y = unpack_call(p), unpack_tensors(p, 0), unpack_tensors(p, INPUTS)
    alpha = c.scratch + thread * c.scratch_size
    for program in range(thread, 2 * c.heads // c.group, threads):
        direction, group = program % 2, program // 2
        i = 1 - direction if c.last else direction
        start, tokens = span(c, i)
        for done in range(0, tokens, PART):
            length = min(PART, tokens - done)
            first = start + (tokens - done - length if direction else done)
            row = tokens - done - length if c.last else done
            for head in range(group * c.group, (group + 1) * c.group):
                state, _, _ = own_states(c, head, direction, 0)
                if done == 0 and not c.last:
                    fill(state, 4 * c.K * c.V, 0.0)
                partial = c.partial + 4 * c.V * ((2 * head + i) * (c.segment + BLOCK) + row)
                scan_tokens(c, x, y, head, first, length, direction, c.last, state, partial, alpha)
