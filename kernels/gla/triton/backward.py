"""The gradients of one chunk, both directions at once.

With dA = do v^T once for both directions, and the rows of q and k at the anchor of each direction
(see `tile`),

    dq~ = (mask dA) k~ + do S^T       dk~ = (mask dA)^T q~ + v D^T       dv = A^T do + k~ D

for the states S that enter and the gradients D of the states that leave, both directions added.

The gradient of log alpha_f[j] is the sum over the pairs and states whose decay holds gate j. With
u = q dq - k dk of the forward direction it is a running sum from the right inside the chunk,

    sum_{t>=j} u_t + F,     F = sum_v S' D,

F being what flows out of the chunk (`scan_kernel`); the backward direction mirrors it. Never a sum
over the whole sequence: its rounding error would grow with T. Products are taken of the rounded
operands of the dots, so that what cancels in theory cancels in numbers.

A chunk whose gates leave the anchored range takes the recurrence instead: inside the one launch of
a short sequence, else in a launch of its own, as the registers of both would not fit.
"""

import triton
import triton.language as tl

from ...triton_utils import INTERPRETED, block_index, ex2, load, store
from .exact import exact_gradients
from .states import in_range, sums_matrix
from .tile import ACC, closing, dot, gate_bits, operand, running, weights


@triton.jit
def summed(matrix, u, DOT: tl.constexpr, INTERPRETED: tl.constexpr = INTERPRETED):
    """matrix ``[BT, BT]`` of 0 and 1 times u ``[BT, BK]`` to twice bfloat16's or tf32's digits."""
    if INTERPRETED:
        return tl.dot(matrix.to(ACC), u, input_precision="ieee", out_dtype=ACC)
    if DOT == tl.bfloat16:
        # cut off, as rounding one by one is slow
        high = (u.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)
        total = tl.dot(matrix, high.to(DOT))
        return tl.dot(matrix, (u - high).to(DOT), total)
    return tl.dot(matrix.to(ACC), u, input_precision="tf32x3")


@triton.jit
def direction_gradients(
    qs, ks, vs, g, da, da_t, pairs, pairs_t, q_factor, k_factor, a_t, dvs, states, dstates,
    at, STATES: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """One direction: the transposed A and dv with its part added, its dq, dk and q dq - k dk.

    pairs ``[BT, BT]``: which tokens t (rows) read from which s, pairs_t the transposed.
    """
    ql = operand(qs * q_factor, DOT)
    kl = operand(ks * k_factor, DOT)
    a_t += tl.where(pairs_t, dot(kl, tl.trans(ql)), 0.0)
    zero = tl.zeros(da.shape, dtype=DOT)
    dql = dot(tl.where(pairs, da, zero), kl)
    dkl = dot(tl.where(pairs_t, da_t, zero), ql)
    if STATES:
        d = operand(tl.load(dstates + at), DOT)
        dkl = dot(vs, tl.trans(d), dkl)
        dvs = dot(kl, d, dvs)
        dql = dot(g, tl.trans(operand(tl.load(states + at), DOT)), dql)
    u = ql.to(ACC) * dql - kl.to(ACC) * dkl
    return a_t, dql * q_factor, dkl * k_factor, dvs, u


@triton.jit
def anchored_gradients(
    qs, ks, vs, g, da, da_t, p, e, a_t, dvs, states, dstates, at_f, at_b, i, j,
    STATES: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """`direction_gradients` of both; p, e ``[BT, BK]``: running sums from the chunk's middle."""
    a_t, dqs, dks, dvs, u_f = direction_gradients(
        qs, ks, vs, g, da, da_t, j <= i, j >= i, ex2(p), ex2(-p), a_t, dvs,
        states, dstates, at_f, STATES, DOT,
    )  # fmt: skip
    a_t, dq_b, dk_b, dvs, u_b = direction_gradients(
        qs, ks, vs, g, da, da_t, j >= i, j <= i, ex2(-e), ex2(e), a_t, dvs,
        states, dstates, at_b, STATES, DOT,
    )  # fmt: skip
    return a_t, dqs + dq_b, dks + dk_b, dvs, u_f, u_b


@triton.jit
def store_key_gradients(
    dq, dk, dgate_f, dgate_b, dqs, dks, u_f, u_b, logit_f, logit_b, flows, slot, slot_b,
    upward, downward, rows, cols_k, left, dqk_t, dgate_t,
    STATES: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Writes dq, dk and, from u = q dq - k dk of each direction, the gates' gradients."""
    sum_f = summed(upward, u_f, DOT)
    sum_b = summed(downward, u_b, DOT)
    if STATES:
        sum_f += tl.load(flows + slot * KP + cols_k)[None, :]
        sum_b += tl.load(flows + slot_b * KP + cols_k)[None, :]
    store(dq, dqs, rows, cols_k, dqk_t, left, K, KP)
    store(dk, dks, rows, cols_k, dqk_t, left, K, KP)
    store(dgate_f, sum_f * closing(logit_f), rows, cols_k, dgate_t, left, K, KP)
    store(dgate_b, sum_b * closing(logit_b), rows, cols_k, dgate_t, left, K, KP)


@triton.jit(do_not_specialize=["T", "NT"])
def gradient_kernel(
    do,
    q,
    k,
    v,
    gate_f,
    gate_b,
    grads,
    scratch,
    T,
    H,
    NT,
    scale,
    strides,
    STATES: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
    KP: tl.constexpr,
    VP: tl.constexpr,
    DOT: tl.constexpr,
):
    """Grid (B H, NT).

    An instance owns one chunk of one head and writes its five gradients, the key channels in
    blocks of BK, to rows dqk_t, dv_t and dgate_t apart, where heads are neighbours. It reads the
    chunk of do, q, k, v, both gates once, and (`STATES`) the two states that enter it, the
    gradients of the two that leave it, and what flows out of it. With `STATES` it leaves chunks
    beyond the anchored range to `exact_gradient_kernel` and writes nonsense there.
    """
    do_t, do_h, q_t, q_h, k_t, k_h, v_t, v_h, gf_t, gf_h, gb_t, gb_h, dqk_t, dv_t, dgate_t = strides
    dq, dk, dv, dgate_f, dgate_b = grads
    states, dstates, flows = scratch
    bh = tl.program_id(0).to(tl.int64)
    b, h = bh // H, bh % H
    m = block_index()
    if m >= NT:
        return
    rows = tl.arange(0, BT)
    cols_v = tl.arange(0, VP)
    i = rows[:, None]
    j = rows[None, :]
    anchored_f = weights(j <= i, j < BT // 2)
    anchored_b = weights(j < i, j < BT // 2)
    upward = (j >= i).to(tl.float32).to(DOT)
    downward = (j <= i).to(tl.float32).to(DOT)
    left = T - m * BT
    token = b * T + m * BT
    do += token * do_t + h * do_h
    q += token * q_t + h * q_h
    k += token * k_t + h * k_h
    v += token * v_t + h * v_h
    gate_f += token * gf_t + h * gf_h
    gate_b += token * gb_t + h * gb_h
    slot = bh * NT + m
    slot_b = (tl.num_programs(0) + bh) * NT + m
    to_k = token * dqk_t + h * K
    to_gate = token * dgate_t + h * K
    g = operand(load(do, rows, cols_v, do_t, left, V, VP, 0.0).to(ACC) * scale, DOT)
    vs = operand(load(v, rows, cols_v, v_t, left, V, VP, 0.0), DOT)
    # Both computed, not one transposed: tl.trans of a wgmma result is miscompiled (Triton 3.7)
    da = operand(dot(g, tl.trans(vs)), DOT)
    da_t = operand(dot(vs, tl.trans(g)), DOT)
    a_t = tl.zeros((BT, BT), dtype=ACC)
    dvs = tl.zeros((BT, VP), dtype=ACC)
    for block in tl.static_range(KP // BK):
        cols_k = block * BK + tl.arange(0, BK)
        logit_f = load(gate_f, rows, cols_k, gf_t, left, K, KP, float("inf"))
        logit_b = load(gate_b, rows, cols_k, gb_t, left, K, KP, float("inf"))
        qs = load(q, rows, cols_k, q_t, left, K, KP, 0.0).to(ACC)
        ks = load(k, rows, cols_k, k_t, left, K, KP, 0.0).to(ACC)
        bits_f = gate_bits(logit_f)
        bits_b = gate_bits(logit_b)
        inside = cols_k[:, None] * VP + cols_v[None, :]
        at_f = slot * KP * VP + inside
        at_b = slot_b * KP * VP + inside
        p = running(anchored_f, bits_f, logit_f)
        e = running(anchored_b, bits_b, logit_b)
        if STATES:
            a_t, dqs, dks, dvs, u_f, u_b = anchored_gradients(
                qs, ks, vs, g, da, da_t, p, e, a_t, dvs, states, dstates, at_f, at_b, i, j,
                STATES, DOT,
            )  # fmt: skip
        else:
            sums = sums_matrix(BT)
            if in_range(running(sums, bits_f, logit_f), running(sums, bits_b, logit_b)):
                a_t, dqs, dks, dvs, u_f, u_b = anchored_gradients(
                    qs, ks, vs, g, da, da_t, p, e, a_t, dvs, None, None, at_f, at_b, i, j,
                    STATES, DOT,
                )  # fmt: skip
            else:
                dqs, dks, dvs, u_f, u_b = exact_gradients(
                    do, q, k, v, gate_f, gate_b, do_t, q_t, k_t, v_t, gf_t, gb_t, rows, cols_k,
                    cols_v, left, None, None, None, slot, slot_b, scale, dvs, STATES, K, V, KP,
                )  # fmt: skip
        store_key_gradients(
            dq + to_k, dk + to_k, dgate_f + to_gate, dgate_b + to_gate, dqs, dks, u_f, u_b,
            logit_f, logit_b, flows, slot, slot_b, upward, downward, rows, cols_k, left,
            dqk_t, dgate_t, STATES, K, KP, DOT,
        )  # fmt: skip
    dvs = dot(operand(a_t, DOT), g, dvs)
    store(dv + token * dv_t + h * V, dvs, rows, cols_v, dv_t, left, V, VP)


@triton.jit(do_not_specialize=["T", "NT"])
def exact_gradient_kernel(
    do,
    q,
    k,
    v,
    gate_f,
    gate_b,
    grads,
    scratch,
    T,
    H,
    NT,
    scale,
    strides,
    K: tl.constexpr,
    V: tl.constexpr,
    BT: tl.constexpr,
    N: tl.constexpr,
    BK: tl.constexpr,
    KP: tl.constexpr,
    VP: tl.constexpr,
    DOT: tl.constexpr,
):
    """Grid (B H, NT / N): `gradient_kernel` by the recurrence, for the flagged ones of N chunks."""
    do_t, do_h, q_t, q_h, k_t, k_h, v_t, v_h, gf_t, gf_h, gb_t, gb_h, dqk_t, dv_t, dgate_t = strides
    dq, dk, dv, dgate_f, dgate_b = grads
    states, dstates, flows, factors, flags = scratch
    bh = tl.program_id(0).to(tl.int64)
    b, h = bh // H, bh % H
    rows = tl.arange(0, BT)
    cols_v = tl.arange(0, VP)
    blocks = tl.arange(0, KP // BK)
    first = block_index() * N
    for m in range(first, tl.minimum(first + N, NT)):
        slot = bh * NT + m
        slot_b = (tl.num_programs(0) + bh) * NT + m
        fast = tl.min(tl.load(flags + slot * (KP // BK) + blocks), axis=0)
        if fast == 0:
            upward = (rows[None, :] >= rows[:, None]).to(tl.float32).to(DOT)
            downward = (rows[None, :] <= rows[:, None]).to(tl.float32).to(DOT)
            left = T - m * BT
            token = b * T + m * BT
            to_k = token * dqk_t + h * K
            to_gate = token * dgate_t + h * K
            gf_m = gate_f + token * gf_t + h * gf_h
            gb_m = gate_b + token * gb_t + h * gb_h
            dvs = tl.zeros((BT, VP), dtype=ACC)
            for block in range(KP // BK):
                cols_k = block * BK + tl.arange(0, BK)
                dqs, dks, dvs, u_f, u_b = exact_gradients(
                    do + token * do_t + h * do_h, q + token * q_t + h * q_h,
                    k + token * k_t + h * k_h, v + token * v_t + h * v_h, gf_m, gb_m,
                    do_t, q_t, k_t, v_t, gf_t, gb_t, rows, cols_k, cols_v, left,
                    states, dstates, factors, slot, slot_b, scale, dvs, True, K, V, KP,
                )  # fmt: skip
                logit_f = load(gf_m, rows, cols_k, gf_t, left, K, KP, float("inf"))
                logit_b = load(gb_m, rows, cols_k, gb_t, left, K, KP, float("inf"))
                store_key_gradients(
                    dq + to_k, dk + to_k, dgate_f + to_gate, dgate_b + to_gate, dqs, dks, u_f,
                    u_b, logit_f, logit_b, flows, slot, slot_b, upward, downward, rows, cols_k,
                    left, dqk_t, dgate_t, True, K, KP, DOT,
                )  # fmt: skip
            store(dv + token * dv_t + h * V, dvs, rows, cols_v, dv_t, left, V, VP)
