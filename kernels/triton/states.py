"""States at the chunk borders, of the forward pass and (`GRAD`) their gradients.

    S_f[m+1] = c_f[m] S_f[m] + sum_s (gates_f after s) k_s v_s^T           left to right
    S_b[m-1] = c_b[m] S_b[m] + sum_s (gates_b before s) k_s v_s^T          right to left
    D_f[m-1] = c_f[m] D_f[m] + sum_t (gates_f up to and with t) q_t do_t^T     right to left
    D_b[m+1] = c_b[m] D_b[m] + sum_t (gates_b from t on) q_t do_t^T            left to right

c[m] is the product of all gates of chunk m. S[m] is what enters chunk m, D[m] the gradient of what
leaves it. A long sequence is cut into segments that are summed up at the same time.
"""

import triton
import triton.language as tl

from .tile import ACC, dot, load_raw, log_gate


@triton.jit(do_not_specialize=["T", "M", "per_segment"])
def state_kernel(
    x,
    y,
    gate_f,
    gate_b,
    states,
    decays,
    ends,
    end_decays,
    T,
    H,
    K,
    V,
    M,
    per_segment,
    scale,
    x_b,
    x_t,
    x_h,
    x_d,
    y_b,
    y_t,
    y_h,
    y_d,
    gf_b,
    gf_t,
    gf_h,
    gf_d,
    gb_b,
    gb_t,
    gb_h,
    gb_d,
    GRAD: tl.constexpr,
    SEGMENTED: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
    KP: tl.constexpr,
    VP: tl.constexpr,
    DOT: tl.constexpr,
):
    """Grid (B H, 2 directions x segments, key blocks).

    An instance owns one segment of one head and direction and BK key channels. It reads x
    ``[C, BK]``, y ``[C, V]`` and its direction's gate of each chunk once, in scan order, and writes
    the state before each chunk and, if segmented, the log2 decay since the segment's begin
    and both at the segment's end.
    """
    bh = tl.program_id(0).to(tl.int64)
    segments = tl.num_programs(1) // 2
    direction = tl.program_id(1) // segments
    segment = tl.program_id(1) % segments
    key_block = tl.program_id(2)
    b, h = bh // H, bh % H
    if direction == 0:
        gate = gate_f + b * gf_b + h * gf_h
        gate_t = gf_t
        gate_d = gf_d
    else:
        gate = gate_b + b * gb_b + h * gb_h
        gate_t = gb_t
        gate_d = gb_d
    x += b * x_b + h * x_h
    y += b * y_b + h * y_h
    left_to_right = (direction == 1) == GRAD

    rows = tl.arange(0, C)
    cols_k = key_block * BK + tl.arange(0, BK)
    cols_v = tl.arange(0, VP)
    inside = cols_k[:, None] * VP + cols_v[None, :]
    row_of_heads = direction * tl.num_programs(0) + bh

    first = segment * per_segment
    count = tl.minimum(per_segment, M - first)
    state = tl.zeros((BK, VP), dtype=ACC)
    log_decay = tl.zeros((BK,), dtype=ACC)
    for i in range(0, count):
        m = first + (i if left_to_right else count - 1 - i)
        slot = row_of_heads * M + m
        tl.store(states + slot * KP * VP + inside, state)
        if SEGMENTED:
            tl.store(decays + slot * KP + cols_k, log_decay)
        start = m.to(tl.int64) * C
        left = T - m * C
        logit = load_raw(gate + start * gate_t, rows, cols_k, gate_t, gate_d, left, K)
        logs = log_gate(logit, rows, left)
        chunk_decay = tl.sum(logs, axis=0)
        if not GRAD:
            # A token's own gate acts before it is added: sum up its neighbours'. Subtracting the
            # own one from the sum would cost the digits of the others where it is large.
            neighbour = rows + (1 if left_to_right else -1)
            exists = (neighbour >= 0) & (neighbour < C)
            index = tl.broadcast_to(tl.where(exists, neighbour, rows)[:, None], logs.shape)
            logs = tl.where(exists[:, None], tl.gather(logs, index, 0), 0.0)
        if left_to_right:
            decay = tl.cumsum(logs, axis=0, reverse=True)
        else:
            decay = tl.cumsum(logs, axis=0)
        xs = load_raw(x + start * x_t, rows, cols_k, x_t, x_d, left, K)
        ys = load_raw(y + start * y_t, rows, cols_v, y_t, y_d, left, V)
        xs = (xs.to(ACC) * tl.exp2(decay)).to(DOT)
        if GRAD:
            ys = ys.to(ACC) * scale
        local = dot(tl.trans(xs), ys.to(DOT))
        state = state * tl.exp2(chunk_decay)[:, None] + local
        log_decay += chunk_decay
    if SEGMENTED:
        slot = row_of_heads * segments + segment
        tl.store(ends + slot * KP * VP + inside, state)
        tl.store(end_decays + slot * KP + cols_k, log_decay)


@triton.jit(do_not_specialize=["segments"])
def segment_kernel(
    ends,
    end_decays,
    segments,
    GRAD: tl.constexpr,
    BK: tl.constexpr,
    KP: tl.constexpr,
    VP: tl.constexpr,
):
    """Grid (B H, 2 directions, key blocks): turns the states at the segments' ends, in place,
    into the states that enter the segments. An instance owns BK channels of a head's states."""
    bh = tl.program_id(0).to(tl.int64)
    direction = tl.program_id(1)
    cols_k = tl.program_id(2) * BK + tl.arange(0, BK)
    inside = cols_k[:, None] * VP + tl.arange(0, VP)[None, :]
    left_to_right = (direction == 1) == GRAD
    first = (direction * tl.num_programs(0) + bh) * segments
    state = tl.zeros((BK, VP), dtype=ACC)
    # loads ahead: the slots differ, so what is stored is never what is loaded next
    for i in tl.range(0, segments, num_stages=4):
        slot = first + (i if left_to_right else segments - 1 - i)
        pointers = ends + slot * KP * VP + inside
        end = tl.load(pointers)
        tl.store(pointers, state)
        state = state * tl.exp2(tl.load(end_decays + slot * KP + cols_k))[:, None] + end
