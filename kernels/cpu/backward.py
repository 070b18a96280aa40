"""Gradients of a segment's tokens: the states S again for dq, their gradients D for dk and dv.

With u = q dq - k dk, without a token's own term, which cancels, the gradient of log alpha is the
running sum of u from the end, started with what the states there carry on, sum_v S D. It starts
anew from the states every BORDER tokens: far from its start rounding alone would be left where
gates are closed.
"""

from .blocks import BLOCK, ROW, fill, load_block, move, rows_of, store_sum
from .gates import OPEN, gates
from .host import inner, kernel, place
from .recurrence import scan, scan_transposed
from .states import INPUTS, enter, operands, span, unpack_call, unpack_tensors
from .vectors import full, load, scalar, store, store_scalar, total

BORDER = 64


@inner
def transpose(target, source, rows, columns):
    for r in range(rows):
        for c in range(columns):
            store_scalar(target + 4 * (c * rows + r), scalar(source + 4 * (r * columns + c)))


@inner
def carried(target, s, d, decay, rows, row):
    """decay * the sum over rows of S D: one row, where a running sum starts."""
    for c in range(0, row, ROW):
        y = full(0.0)
        for at in range(c, c + rows * row, row):
            y = y + load(s + at) * load(d + at)
        store(target + c, y * load(decay + c))


@inner
def gate_gradient(target, running, q, dq, k, dk, slope, count, row):
    """running += q dq - k dk, target = running * slope, token by token; dq is in reverse order."""
    for c in range(0, row, ROW):
        y = load(running + c)
        for at in range(c, c + count * row, row):
            y = y + load(q + at) * load(dq + 2 * c - at) - load(k + at) * load(dk + at)
            store(target + at, y * load(slope + at))
        store(running + c, y)


@inner
def add_own(target, step, x, v, g, count, a_row, v_row):
    """target += 2 x (v . g): a token's own term, of both directions."""
    for t in range(count):
        dot = full(0.0)
        for at in range(t * v_row, (t + 1) * v_row, ROW):
            dot = dot + load(v + at) * load(g + at)
        twice = total(dot + dot)
        for c in range(0, a_row, ROW):
            at = target + t * step + c
            store(at, load(at) + load(x + t * a_row + c) * twice)


@kernel
def gradient_kernel(p):
    """A program is one segment of one head; y: gradients of q, k, v, gate_f, gate_b."""
    thread, threads = place(p)
    c, x, y = unpack_call(p), unpack_tensors(p, 0), unpack_tensors(p, INPUTS)
    a_row, v_row, size, room = 4 * c.K, 4 * c.V, 4 * c.K * c.V, c.segment + BLOCK
    # S transposed, D transposed and not
    s = c.scratch + thread * c.scratch_size
    d, d_rows = s + size, s + 2 * size
    running = s + 3 * size
    residue, zero, before = running + a_row, running + 2 * a_row, running + 3 * a_row
    alpha = before + a_row  # behind the gate of the token before
    keys, queries = alpha + BLOCK * a_row, alpha + 2 * BLOCK * a_row
    logits, slope = alpha + 3 * BLOCK * a_row, alpha + 4 * BLOCK * a_row
    dk_block = alpha + 5 * BLOCK * a_row
    values = alpha + 6 * BLOCK * a_row
    grads, dv_block = values + BLOCK * v_row, values + 2 * BLOCK * v_row
    # of a whole segment: dq of both directions, dk and dv of the first, S at its borders
    dq_f = values + 3 * BLOCK * v_row
    dq_b, dk_f, dv_f = dq_f + room * a_row, dq_f + 2 * room * a_row, dq_f + 3 * room * a_row
    borders = dv_f + room * v_row
    fill(zero, a_row, 0.0)
    for program in range(thread, c.heads * c.segments, threads):
        head, i = program % c.heads, program // c.heads
        first, length = span(c, i)
        for direction in range(2):
            dq = dq_b if direction else dq_f
            q, k, v, gate, grad = operands(c, x, head, first, length, direction, direction)
            enter(c, d_rows, head, direction, i, 0)
            transpose(s, d_rows, c.K, c.V)
            fill(residue, a_row, 0.0)
            # the first block is the short one, so that the others are those of the way back
            for end in range((length - 1) % BLOCK + 1, length + 1, BLOCK):
                t = max(end - BLOCK, 0)
                count = end - t
                if (length - t) % BORDER == 0:
                    move(borders + (length - t) // BORDER * size, s, size)
                load_block(logits, gate, t, count, 1.0, OPEN)
                gates(alpha, 0, logits, residue, a_row)
                load_block(keys, k, t, count, 1.0, 0.0)
                load_block(values, v, t, count, 1.0, 0.0)
                load_block(grads, grad, t, count, c.scale, 0.0)
                scan_transposed(s, alpha, keys, values, grads, dq + t * a_row, a_row, v_row, count)
            move(borders, s, size)

            q, k, v, gate, grad = operands(c, x, head, first, length, direction, 1 - direction)
            dgate = rows_of(y[3 + direction], c.H, head, first, length, 1 - direction)
            enter(c, d_rows, head, direction, i, 1)
            transpose(d, d_rows, c.K, c.V)
            fill(before, a_row, 1.0)
            fill(residue, a_row, 0.0)
            for t in range(0, length, BLOCK):
                count, last = min(BLOCK, length - t), length - 1 - t
                if t % BORDER == 0:
                    carried(running, borders + t // BORDER * size, d, before, c.V, a_row)
                load_block(logits, gate, t, count, 1.0, OPEN)
                gates(alpha, slope, logits, residue, a_row)
                load_block(keys, k, t, count, 1.0, 0.0)
                load_block(queries, q, t, count, 1.0, 0.0)
                load_block(values, v, t, count, 1.0, 0.0)
                load_block(grads, grad, t, count, c.scale, 0.0)
                dq_t = dq + last * a_row
                dk, dv = dk_block, dv_block
                if direction == 0:
                    dk, dv = dk_f + t * a_row, dv_f + t * v_row
                scan(d_rows, before, queries, keys, grads, dv, a_row, v_row, count)
                scan_transposed(d, before, queries, grads, values, dk, a_row, v_row, count)
                gate_gradient(logits, running, queries, dq_t, keys, dk, slope, count, a_row)
                store_sum(dgate, t, count, logits, a_row, zero, 0)
                if direction:
                    add_own(dk, a_row, queries, values, grads, count, a_row, v_row)
                    add_own(dq_t, -a_row, keys, values, grads, count, a_row, v_row)
                    out = rows_of(y.k, c.H, head, first, length, 0)
                    store_sum(out, t, count, dk, a_row, dk_f + last * a_row, -a_row)
                    out = rows_of(y.v, c.H, head, first, length, 0)
                    store_sum(out, t, count, dv, v_row, dv_f + last * v_row, -v_row)
                move(before, alpha + (count - 1) * a_row, a_row)
        out = rows_of(y.q, c.H, head, first, length, 0)
        store_sum(out, 0, length, dq_f, a_row, dq_b + (length - 1) * a_row, -a_row)
