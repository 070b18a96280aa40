"""States at the chunk borders, of the forward pass and (`GRAD`) their gradients.

    S_f[m+1] = c_f[m] S_f[m] + L_f[m],    L_f = sum_s (gates_f after s) k_s v_s^T
    S_b[m-1] = c_b[m] S_b[m] + L_b[m],    L_b = sum_s (gates_b before s) k_s v_s^T
    D_f[m-1] = c_f[m] D_f[m] + sum_t (gates_f up to and with t) q_t do_t^T
    D_b[m+1] = c_b[m] D_b[m] + sum_t (gates_b from t on) q_t do_t^T

c[m] is the product of all gates of chunk m. S[m] is what enters chunk m, D[m] the gradient of what
leaves it. `local_kernel` makes every chunk's own part of both directions, all chunks at a time;
`scan_kernel` adds up along the sequence. A long sequence is cut into segments: `segment_kernel`
finds what each adds, `scan_kernel` adds that up, and then inside all segments at the same time.
No factor is above 1, so any gate is safe.

S and D are kept times the decay to the middle of the chunk they enter, where the products inside
the chunk have their anchor (see `tile`), but at most 2^-RANGE.
"""

import triton
import triton.language as tl

from ...triton_utils import block_index, ex2, larger, load, smaller
from .tile import ACC, dot, gate_bits, operand, running, weights

FACTORS = 3  # of a chunk's channel: whole, to the middle from the left, the right


@triton.jit
def factors_of(slot, KP: tl.constexpr, FACTORS: tl.constexpr = 3):
    """Where a chunk's factors ``[FACTORS, KP]`` begin."""
    return slot * FACTORS * KP


@triton.jit
def own_state(x, y, matrix, bits, logit, DOT: tl.constexpr):
    """``[BK, V]``: what a chunk adds to the state of one direction."""
    # x [BT, BK], y [BT, V]
    return dot(tl.trans(operand(x * ex2(running(matrix, bits, logit)), DOT)), y)


@triton.jit
def store_own(states, x, y, matrix, bits, logit, DOT: tl.constexpr):
    tl.store(states, own_state(x, y, matrix, bits, logit, DOT).to(states.dtype.element_ty))


@triton.jit
def sums_matrix(BT: tl.constexpr):
    """``[16, BT]``, by which `running` sums up: whole, left half, right half, in rows 0 to 2."""
    i = tl.arange(0, 16)[:, None]
    j = tl.arange(0, BT)[None, :]
    none = (i < 0) & (j < 0)
    return weights((i == 0) | ((i == 1) & (j < BT // 2)) | ((i == 2) & (j >= BT // 2)), none)


@triton.jit
def in_range(sums_f, sums_b, RANGE: tl.constexpr = 64.0):
    """Whether both halves of a chunk keep to the range of the anchored products, from its sums."""
    halves = (tl.arange(0, 16) > 0)[:, None]
    kept = (smaller(sums_f, sums_b) >= -RANGE) | (halves == 0)
    return tl.min(tl.min(kept.to(tl.int32), axis=1), axis=0) > 0


@triton.jit
def store_factors(
    factors, sums, cols, KP: tl.constexpr, RANGE: tl.constexpr = 64.0,
    FACTORS: tl.constexpr = 3,
):  # fmt: skip
    """Writes a chunk's decays of one direction, those of the halves at least 2^-RANGE."""
    i = tl.arange(0, 16)[:, None]
    kept = tl.where(i > 0, larger(sums, -RANGE), sums)
    tl.store(factors + i * KP + cols[None, :], ex2(kept), mask=i < FACTORS)


@triton.jit(do_not_specialize=["T", "NT"])
def local_kernel(
    k,
    v,
    gate_f,
    gate_b,
    q,
    do,
    states,
    dstates,
    factors,
    flags,
    T,
    H,
    NT,
    scale,
    strides,
    GRAD: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BT: tl.constexpr,
    N: tl.constexpr,
    BK: tl.constexpr,
    KP: tl.constexpr,
    VP: tl.constexpr,
    DOT: tl.constexpr,
):
    """Grid (B H times key blocks, NT / N).

    An instance owns BK key channels of N chunks of one head. It reads k ``[BT, BK]``, v ``[BT, V]``
    and both gates of each and writes what the chunk adds to the state of each direction, its
    decays, and whether the anchored products have the range for them; `GRAD`: also what q and do
    add to the gradients of the states.
    """
    k_t, k_h, v_t, v_h, gf_t, gf_h, gb_t, gb_h, q_t, q_h, do_t, do_h = strides
    key_blocks: tl.constexpr = KP // BK
    bh = (tl.program_id(0) // key_blocks).to(tl.int64)
    heads = tl.num_programs(0) // key_blocks
    b, h = bh // H, bh % H
    key_block = tl.program_id(0) % key_blocks
    rows = tl.arange(0, BT)
    cols_k = key_block * BK + tl.arange(0, BK)
    cols_v = tl.arange(0, VP)
    i = rows[:, None]
    j = rows[None, :]
    after = weights(j > i, j < 0)
    before = weights(j < i, j < 0)
    sums = sums_matrix(BT)
    if GRAD:
        up_to = weights(j <= i, j < 0)
        from_on = weights(j >= i, j < 0)
    inside = cols_k[:, None] * VP + cols_v[None, :]
    first = block_index() * N
    for m in range(first, tl.minimum(first + N, NT)):
        left = T - m * BT
        token = b * T + m * BT
        gf_m = gate_f + token * gf_t + h * gf_h
        gb_m = gate_b + token * gb_t + h * gb_h
        logit_f = load(gf_m, rows, cols_k, gf_t, left, K, KP, float("inf"))
        logit_b = load(gb_m, rows, cols_k, gb_t, left, K, KP, float("inf"))
        ks = load(k + token * k_t + h * k_h, rows, cols_k, k_t, left, K, KP, 0.0).to(ACC)
        vs = load(v + token * v_t + h * v_h, rows, cols_v, v_t, left, V, VP, 0.0)
        vs = operand(vs, DOT)
        bits_f = gate_bits(logit_f)
        bits_b = gate_bits(logit_b)
        slot = bh * NT + m
        slot_b = heads * NT + slot
        sums_f = running(sums, bits_f, logit_f)
        sums_b = running(sums, bits_b, logit_b)
        store_factors(factors + factors_of(slot, KP), sums_f, cols_k, KP)
        store_factors(factors + factors_of(slot_b, KP), sums_b, cols_k, KP)
        fast = in_range(sums_f, sums_b)
        tl.store(flags + slot * key_blocks + key_block, fast.to(tl.int32))
        at_f = slot * KP * VP + inside
        at_b = slot_b * KP * VP + inside
        store_own(states + at_f, ks, vs, after, bits_f, logit_f, DOT)
        store_own(states + at_b, ks, vs, before, bits_b, logit_b, DOT)
        if GRAD:
            qs = load(q + token * q_t + h * q_h, rows, cols_k, q_t, left, K, KP, 0.0)
            g = load(do + token * do_t + h * do_h, rows, cols_v, do_t, left, V, VP, 0.0)
            qs = qs.to(ACC) * scale
            g = operand(g, DOT)
            store_own(dstates + at_f, qs, g, up_to, bits_f, logit_f, DOT)
            store_own(dstates + at_b, qs, g, from_on, bits_b, logit_b, DOT)


@triton.jit(do_not_specialize=["NT", "per_segment"])
def segment_kernel(
    states,
    factors,
    ends,
    end_factors,
    NT,
    per_segment,
    GRAD: tl.constexpr,
    R: tl.constexpr,
    KP: tl.constexpr,
    VP: tl.constexpr,
    PREFETCH: tl.constexpr,
):
    """Grid (B H, 2 directions x segments, KP / R): what each segment adds to the state, and its
    decay; in the form of a chunk's. An instance owns R channels of one segment's states."""
    segments = tl.num_programs(1) // 2
    direction = tl.program_id(1) // segments
    segment = tl.program_id(1) % segments
    cols_k = tl.program_id(2) * R + tl.arange(0, R)
    inside = cols_k[:, None] * VP + tl.arange(0, VP)[None, :]
    row = direction * tl.num_programs(0) + tl.program_id(0).to(tl.int64)
    first = segment * per_segment
    count = tl.minimum(per_segment, NT - first)
    left_to_right = (direction == 1) == GRAD
    state = tl.zeros((R, VP), dtype=ACC)
    decay = tl.full((R,), 1.0, dtype=ACC)
    for i in tl.range(0, count, num_stages=PREFETCH):
        slot = row * NT + first + (i if left_to_right else count - 1 - i)
        own = tl.load(states + slot * KP * VP + inside).to(ACC)
        whole = tl.load(factors + factors_of(slot, KP) + cols_k)
        state = state * whole[:, None] + own
        decay *= whole
    slot = row * segments + segment
    tl.store(ends + slot * KP * VP + inside, state)
    end_factors += factors_of(slot, KP) + cols_k
    tl.store(end_factors, decay)
    # there is no chunk to whose middle these decay
    tl.store(end_factors + KP, tl.full((R,), 1.0, dtype=ACC))
    tl.store(end_factors + 2 * KP, tl.full((R,), 1.0, dtype=ACC))


@triton.jit(do_not_specialize=["NT", "per_segment"])
def scan_kernel(
    states,
    factors,
    carries,
    entering,
    flows,
    NT,
    per_segment,
    GRAD: tl.constexpr,
    FLOWS: tl.constexpr,
    SEGMENTED: tl.constexpr,
    R: tl.constexpr,
    KP: tl.constexpr,
    VP: tl.constexpr,
    PREFETCH: tl.constexpr,
):
    """Grid (B H, 2 directions x segments, KP / R): turns each chunk's own part, in place, into the
    state that enters it. An instance owns R channels of one segment's states.

    `SEGMENTED`: ``carries`` enter the segments. `FLOWS`, with `GRAD`: ``entering`` are the states
    of the forward pass. What leaves a chunk times its gradient, summed over V, goes to ``flows``:
    that part of the gradient of log(alpha) is the same for all tokens of a chunk.
    """
    segments = tl.num_programs(1) // 2
    direction = tl.program_id(1) // segments
    segment = tl.program_id(1) % segments
    cols_k = tl.program_id(2) * R + tl.arange(0, R)
    inside = cols_k[:, None] * VP + tl.arange(0, VP)[None, :]
    row = direction * tl.num_programs(0) + tl.program_id(0).to(tl.int64)
    first = segment * per_segment
    count = tl.minimum(per_segment, NT - first)
    left_to_right = (direction == 1) == GRAD
    if SEGMENTED:
        state = tl.load(carries + (row * segments + segment) * KP * VP + inside)
    else:
        state = tl.zeros((R, VP), dtype=ACC)
    half = 1 if left_to_right else 2  # the one between the entrance and the middle
    for i in tl.range(0, count, num_stages=PREFETCH):
        m = first + (i if left_to_right else count - 1 - i)
        slot = row * NT + m
        pointers = states + slot * KP * VP + inside
        own = tl.load(pointers).to(ACC)
        whole = tl.load(factors + factors_of(slot, KP) + cols_k)
        entry = tl.load(factors + factors_of(slot, KP) + half * KP + cols_k)
        if FLOWS:
            # what leaves chunk m enters the one that the gradient came from
            next_m = m - 1 if left_to_right else m + 1
            exists = (next_m >= 0) & (next_m < NT)
            next_slot = row * NT + tl.where(exists, next_m, m)
            left = tl.load(entering + next_slot * KP * VP + inside).to(ACC)
            to_middle = tl.load(factors + factors_of(next_slot, KP) + (3 - half) * KP + cols_k)
            flow = tl.sum(left * state, axis=1) / to_middle
            tl.store(flows + slot * KP + cols_k, tl.where(exists, flow, 0.0))
        tl.store(pointers, (state * entry[:, None]).to(states.dtype.element_ty))
        state = state * whole[:, None] + own
