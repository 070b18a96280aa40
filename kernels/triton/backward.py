"""The gradients of one chunk, both directions at once.

With dA = do v^T once for both directions, level by level as in `tile`,

    dq~ = (mask dA) k~        dk~ = (mask dA)^T q~        dv = A^T do + ...

and with the states S that enter and the gradients D of the states that leave,

    dq_t += (gates_f up to t) S_f do_t + (gates_b from t on) S_b do_t
    dk_s += (gates_f after s) D_f v_s + (gates_b before s) D_b v_s,     dv_s the same with k_s.

The gradient of log alpha_f[j] is a sum over the pairs and states whose decay holds gate j. With
u = q dq - k dk of the forward direction it is a running sum from the right inside the chunk,

    sum_{t>=j} u_t + B,     B = c sum_v S_f D_f + sum_s k_s (gates_f after s) D_f v_s,

B being what the leaving state passes on; the backward direction mirrors it. Never a sum over the
whole sequence: its rounding error would grow with T. Products are taken of the rounded operands of
the dots, so that what cancels in theory cancels in numbers.
"""

import triton
import triton.language as tl

from .tile import (
    ACC,
    dlogit,
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


@triton.jit
def through_states(
    states,
    decays,
    carries,
    dstates,
    ddecays,
    dcarries,
    slot,
    carry_slot,
    cols_k,
    cols_v,
    qs,
    ks,
    vs,
    g,
    dvs,
    q_factor,
    k_factor,
    decay,
    KP: tl.constexpr,
    VP: tl.constexpr,
    SEGMENTED: tl.constexpr,
    DOT: tl.constexpr,
):
    """What one direction's states add: to dq, dk, (all of) dv and u, and B of its gate.

    q_factor, k_factor: the gates between the token and the state that enters or leaves; decay: of
    the whole chunk.
    """
    s = load_state(states, decays, carries, slot, carry_slot, cols_k, cols_v, KP, VP, SEGMENTED)
    d = load_state(dstates, ddecays, dcarries, slot, carry_slot, cols_k, cols_v, KP, VP, SEGMENTED)
    dq = dot(g, tl.trans(s.to(DOT))) * q_factor
    dk = dot(vs, tl.trans(d.to(DOT))) * k_factor
    dvs = dot((ks * k_factor).to(DOT), d.to(DOT), dvs)
    kdk = ks * dk
    return dq, dk, dvs, qs * dq - kdk, decay * tl.sum(s * d, axis=1) + tl.sum(kdk, axis=0)


@triton.jit(do_not_specialize=["T", "M", "per_segment", "segments"])
def gradient_kernel(
    do,
    q,
    k,
    v,
    gate_f,
    gate_b,
    dq,
    dk,
    dv,
    dgate_f,
    dgate_b,
    states,
    decays,
    carries,
    dstates,
    ddecays,
    dcarries,
    T,
    H,
    K,
    V,
    M,
    per_segment,
    segments,
    scale,
    do_b,
    do_t,
    do_h,
    do_d,
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

    An instance owns one chunk of one head and writes that chunk's five gradients, the key channels
    in blocks of BK. It reads the chunk of do, q, k, v, both gates once, and (`STATES`) the two
    states that enter it and the gradients of the two that leave it.
    """
    b, m, h = place(M, H)
    bh = b * H + h
    heads = tl.num_programs(0) // M  # B H
    start = m * C
    left = T - start
    do += b * do_b + h * do_h + start * do_t
    q += b * q_b + h * q_h + start * q_t
    k += b * k_b + h * k_h + start * k_t
    v += b * v_b + h * v_h + start * v_t
    gate_f += b * gf_b + h * gf_h + start * gf_t
    gate_b += b * gb_b + h * gb_h + start * gb_t
    token = (b * T + start) * H + h
    dq += token * K
    dk += token * K
    dgate_f += token * K
    dgate_b += token * K
    dv += token * V

    rows = tl.arange(0, C)
    cols_v = tl.arange(0, VP)
    g = load_tile(do, rows, cols_v, do_t, do_d, left, V) * scale
    vs = load_tile(v, rows, cols_v, v_t, v_d, left, V)
    da_diagonal = (2.0 * tl.sum(g * vs, axis=1))[:, None]
    g, vs = g.to(DOT), vs.to(DOT)
    # Both computed, not one transposed: tl.trans of a wgmma result is miscompiled (Triton <= 3.7)
    da = dot(g, tl.trans(vs)).to(DOT)
    da_t = dot(vs, tl.trans(g)).to(DOT)
    a_t = tl.zeros((C, C), dtype=ACC)
    dvs = tl.zeros((C, VP), dtype=ACC)
    for key_block in range(0, KP // BK):
        cols_k = key_block * BK + tl.arange(0, BK)
        # all in flight before the first is used; the gates are read again at the end instead of
        # being kept in registers
        qs = load_raw(q, rows, cols_k, q_t, q_d, left, K)
        ks = load_raw(k, rows, cols_k, k_t, k_d, left, K)
        logit_f = load_raw(gate_f, rows, cols_k, gf_t, gf_d, left, K, AGAIN=True)
        logit_b = load_raw(gate_b, rows, cols_k, gb_t, gb_d, left, K, AGAIN=True)
        qs, ks = qs.to(ACC), ks.to(ACC)
        log_f = log_gate(logit_f, rows, left)
        log_b = log_gate(logit_b, rows, left)
        decay_f = tl.exp2(tl.sum(log_f, axis=0))
        decay_b = tl.exp2(tl.sum(log_b, axis=0))
        prefix_f, suffix_f, prefix_b, suffix_b = own_factors(log_f, log_b)
        pairs = tl.where(
            rows[:, None] == rows[None, :], (2.0 * tl.sum(qs * ks, axis=1))[:, None], 0.0
        )
        dqs, dks = da_diagonal * ks, da_diagonal * qs
        u_f = tl.zeros((C, BK), dtype=ACC)
        u_b = tl.zeros((C, BK), dtype=ACC)
        for i in range(0, LEVELS):
            own, upward, right = level(rows, i)
            q_factor = tl.where(right, prefix_f, suffix_b)
            k_factor = tl.where(right, prefix_b, suffix_f)
            ql, kl = (qs * q_factor).to(DOT), (ks * k_factor).to(DOT)
            pairs = tl.where(upward, dot(kl, tl.trans(ql)), pairs)
            zero = tl.zeros((C, C), dtype=DOT)
            dql = dot(tl.where(own, da, zero), kl)
            dkl = dot(tl.where(own, da_t, zero), ql)
            dqs += dql * q_factor
            dks += dkl * k_factor
            uq, uk = ql.to(ACC) * dql, -kl.to(ACC) * dkl
            u_f += tl.where(right, uq, uk)
            u_b += tl.where(right, uk, uq)
            prefix_f, suffix_f = widen(prefix_f, suffix_f, right, rows, i)
            prefix_b, suffix_b = widen(prefix_b, suffix_b, right, rows, i)
        a_t += pairs
        passed_f = tl.zeros((BK,), dtype=ACC)
        passed_b = tl.zeros((BK,), dtype=ACC)
        if STATES:
            segment = m // per_segment
            dq_s, dk_s, dvs, u, passed_f = through_states(
                states, decays, carries, dstates, ddecays, dcarries,
                bh * M + m, bh * segments + segment, cols_k, cols_v,
                qs, ks, vs, g, dvs, prefix_f, suffix_f, decay_f, KP, VP, SEGMENTED, DOT,
            )  # fmt: skip
            dqs += dq_s
            dks += dk_s
            u_f += u
            dq_s, dk_s, dvs, u, passed_b = through_states(
                states, decays, carries, dstates, ddecays, dcarries,
                (heads + bh) * M + m, (heads + bh) * segments + segment, cols_k, cols_v,
                qs, ks, vs, g, dvs, suffix_b, prefix_b, decay_b, KP, VP, SEGMENTED, DOT,
            )  # fmt: skip
            dqs += dq_s
            dks += dk_s
            u_b += u
        sum_f = tl.cumsum(u_f, axis=0, reverse=True) + passed_f[None, :]
        # gate_b[j] acts between j and j + 1: on what t <= j reads from s > j
        sum_b = tl.cumsum(u_b, axis=0) + passed_b[None, :]
        store_tile(dq, dqs, rows, cols_k, H * K, left, K)
        store_tile(dk, dks, rows, cols_k, H * K, left, K)
        logit_f = load_tile(gate_f, rows, cols_k, gf_t, gf_d, left, K)
        logit_b = load_tile(gate_b, rows, cols_k, gb_t, gb_d, left, K)
        store_tile(dgate_f, dlogit(sum_f, logit_f), rows, cols_k, H * K, left, K)
        store_tile(dgate_b, dlogit(sum_b, logit_b), rows, cols_k, H * K, left, K)
    dvs = dot(a_t.to(DOT), g, dvs)
    store_tile(dv, dvs, rows, cols_v, H * V, left, V)
