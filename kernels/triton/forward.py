"""The output of one chunk, both directions at once.

    o_t = scale * [ sum_s A[t, s] v_s + (q_t gates_f up to t) S_f + (q_t gates_b from t on) S_b ]

with A of both directions in one matrix (see `tile`), so v is multiplied once.
"""

import triton
import triton.language as tl

from .tile import (
    ACC,
    dot,
    level,
    load_raw,
    load_state,
    load_tile,
    log_gate,
    own_factors,
    place,
    store_tile,
    widen,
)


@triton.jit(do_not_specialize=["T", "M", "per_segment", "segments"])
def output_kernel(
    q,
    k,
    v,
    gate_f,
    gate_b,
    out,
    states,
    decays,
    carries,
    T,
    H,
    K,
    V,
    M,
    per_segment,
    segments,
    scale,
    q_b,
    q_t,
    q_h,
    q_d,
    k_b,
    k_t,
    k_h,
    k_d,
    v_b,
    v_t,
    v_h,
    v_d,
    gf_b,
    gf_t,
    gf_h,
    gf_d,
    gb_b,
    gb_t,
    gb_h,
    gb_d,
    STATES: tl.constexpr,
    SEGMENTED: tl.constexpr,
    C: tl.constexpr,
    LEVELS: tl.constexpr,
    BK: tl.constexpr,
    KP: tl.constexpr,
    VP: tl.constexpr,
    DOT: tl.constexpr,
):
    """Grid (B M H), see `place`.

    An instance owns one chunk of one head. It reads that chunk's q, k, v and both gates once, in
    blocks of BK key channels, and (`STATES`) the two states that enter, and writes out.
    """
    b, m, h = place(M, H)
    bh = b * H + h
    heads = tl.num_programs(0) // M  # B H
    start = m * C
    left = T - start
    q += b * q_b + h * q_h + start * q_t
    k += b * k_b + h * k_h + start * k_t
    v += b * v_b + h * v_h + start * v_t
    gate_f += b * gf_b + h * gf_h + start * gf_t
    gate_b += b * gb_b + h * gb_h + start * gb_t
    out += ((b * T + start) * H + h) * V

    rows = tl.arange(0, C)
    cols_v = tl.arange(0, VP)
    a = tl.zeros((C, C), dtype=ACC)
    o = tl.zeros((C, VP), dtype=ACC)
    for key_block in range(0, KP // BK):
        cols_k = key_block * BK + tl.arange(0, BK)
        # all in flight before the first is used
        qs = load_raw(q, rows, cols_k, q_t, q_d, left, K)
        ks = load_raw(k, rows, cols_k, k_t, k_d, left, K)
        logit_f = load_raw(gate_f, rows, cols_k, gf_t, gf_d, left, K)
        logit_b = load_raw(gate_b, rows, cols_k, gb_t, gb_d, left, K)
        qs, ks = qs.to(ACC), ks.to(ACC)
        log_f = log_gate(logit_f, rows, left)
        log_b = log_gate(logit_b, rows, left)
        prefix_f, suffix_f, prefix_b, suffix_b = own_factors(log_f, log_b)
        pairs = tl.where(
            rows[:, None] == rows[None, :], (2.0 * tl.sum(qs * ks, axis=1))[:, None], 0.0
        )
        for i in range(0, LEVELS):
            _, upward, right = level(rows, i)
            ql = (qs * tl.where(right, prefix_f, suffix_b)).to(DOT)
            kl = (ks * tl.where(right, prefix_b, suffix_f)).to(DOT)
            pairs = tl.where(upward, dot(ql, tl.trans(kl)), pairs)
            prefix_f, suffix_f = widen(prefix_f, suffix_f, right, rows, i)
            prefix_b, suffix_b = widen(prefix_b, suffix_b, right, rows, i)
        a += pairs
        if STATES:
            segment = m // per_segment
            s_f = load_state(
                states, decays, carries, bh * M + m, bh * segments + segment,
                cols_k, cols_v, KP, VP, SEGMENTED,
            )  # fmt: skip
            s_b = load_state(
                states, decays, carries,
                (heads + bh) * M + m, (heads + bh) * segments + segment,
                cols_k, cols_v, KP, VP, SEGMENTED,
            )  # fmt: skip
            o = dot((qs * prefix_f).to(DOT), s_f.to(DOT), o)
            o = dot((qs * suffix_b).to(DOT), s_b.to(DOT), o)
    vs = load_tile(v, rows, cols_v, v_t, v_d, left, V)
    o = dot(a.to(DOT), vs.to(DOT), o)
    store_tile(out, o * scale, rows, cols_v, H * V, left, V)
