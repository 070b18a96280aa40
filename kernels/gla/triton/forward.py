"""The output of one chunk, both directions at once.

    o_t = scale * [ sum_s A[t, s] v_s + (q_t gates_f up to t) S_f + (q_t gates_b from t on) S_b ]

with A of both directions in one matrix (see `tile`), so v is multiplied once.
"""

import triton
import triton.language as tl

from ...triton_utils import block_index, ex2, load, store
from .exact import exact_output
from .states import in_range, sums_matrix
from .tile import ACC, dot, gate_bits, operand, running, weights


@triton.jit
def anchored_output(
    qs, ks, p, e, i, j, a, o, s_f, s_b, STATES: tl.constexpr, DOT: tl.constexpr
):  # fmt: skip
    """A ``[BT, BT]`` and o ``[BT, VP]`` plus what a block of key channels adds to them.

    qs, ks ``[BT, BK]``; p, e: running sums from the chunk's middle; s_f, s_b: what enters, decayed
    to the middle.
    """
    qf = operand(qs * ex2(p), DOT)
    kf = operand(ks * ex2(-p), DOT)
    qb = operand(qs * ex2(-e), DOT)
    kb = operand(ks * ex2(e), DOT)
    a += tl.where(j <= i, dot(qf, tl.trans(kf)), 0.0)
    a += tl.where(j >= i, dot(qb, tl.trans(kb)), 0.0)
    if STATES:
        o = dot(qf, s_f, o)
        o = dot(qb, s_b, o)
    return a, o


@triton.jit(do_not_specialize=["T", "NT"])
def output_kernel(
    q,
    k,
    v,
    gate_f,
    gate_b,
    out,
    states,
    factors,
    flags,
    T,
    H,
    NT,
    scale,
    strides,
    STATES: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BT: tl.constexpr,
    N: tl.constexpr,
    BK: tl.constexpr,
    KP: tl.constexpr,
    VP: tl.constexpr,
    DOT: tl.constexpr,
):
    """Grid (B H, NT / N).

    An instance owns N chunks of one head. It reads q, k, v and both gates of each once, in blocks
    of BK key channels, and (`STATES`) the two states that enter, and writes out. ``strides``: of
    tokens and of heads, for q, k, v and both gates.
    """
    q_t, q_h, k_t, k_h, v_t, v_h, gf_t, gf_h, gb_t, gb_h = strides
    bh = tl.program_id(0).to(tl.int64)
    heads = tl.num_programs(0)
    b, h = bh // H, bh % H
    rows = tl.arange(0, BT)
    cols_v = tl.arange(0, VP)
    i = rows[:, None]
    j = rows[None, :]
    anchored_f = weights(j <= i, j < BT // 2)
    anchored_b = weights(j < i, j < BT // 2)
    first = block_index() * N
    for m in range(first, tl.minimum(first + N, NT)):
        left = T - m * BT
        token = b * T + m * BT
        q_m = q + token * q_t + h * q_h
        k_m = k + token * k_t + h * k_h
        v_m = v + token * v_t + h * v_h
        gf_m = gate_f + token * gf_t + h * gf_h
        gb_m = gate_b + token * gb_t + h * gb_h
        slot = bh * NT + m
        vs = operand(load(v_m, rows, cols_v, v_t, left, V, VP, 0.0), DOT)
        a = tl.zeros((BT, BT), dtype=ACC)
        o = tl.zeros((BT, VP), dtype=ACC)
        for block in tl.static_range(KP // BK):
            cols_k = block * BK + tl.arange(0, BK)
            logit_f = load(gf_m, rows, cols_k, gf_t, left, K, KP, float("inf"))
            logit_b = load(gb_m, rows, cols_k, gb_t, left, K, KP, float("inf"))
            qs = load(q_m, rows, cols_k, q_t, left, K, KP, 0.0).to(ACC) * scale
            ks = load(k_m, rows, cols_k, k_t, left, K, KP, 0.0).to(ACC)
            bits_f = gate_bits(logit_f)
            bits_b = gate_bits(logit_b)
            inside = cols_k[:, None] * VP + cols_v[None, :]
            if STATES:
                fast = tl.load(flags + slot * (KP // BK) + block) != 0
            else:
                sums = sums_matrix(BT)
                fast = in_range(running(sums, bits_f, logit_f), running(sums, bits_b, logit_b))
            if fast:
                s_f = tl.zeros((BK, VP), dtype=DOT)
                s_b = tl.zeros((BK, VP), dtype=DOT)
                if STATES:
                    s_f = operand(tl.load(states + slot * KP * VP + inside), DOT)
                    slot_b = heads * NT + slot
                    s_b = operand(tl.load(states + slot_b * KP * VP + inside), DOT)
                p = running(anchored_f, bits_f, logit_f)
                e = running(anchored_b, bits_b, logit_b)
                a, o = anchored_output(qs, ks, p, e, i, j, a, o, s_f, s_b, STATES, DOT)
            else:
                o += exact_output(
                    q_m, k_m, v_m, gf_m, gb_m, q_t, k_t, v_t, gf_t, gb_t, rows, cols_k, cols_v,
                    left, states, factors, slot, heads * NT + slot, scale, STATES, K, V, KP,
                )  # fmt: skip
        o = dot(operand(a, DOT), vs, o)
        out_m = out + (token * H + h) * V
        store(out_m, o, rows, cols_v, H * V, left, V, VP)
