"""States and output in one launch, for many heads: each walks its sequence to the left and back.

Right to left for the backward states, which go to memory, then left to right for the output, with
the forward state in registers. What is read twice comes from the L2 cache the second time. One
program a head is slow unless there are thousands of heads.
"""

import triton
import triton.language as tl

from .exact import scan_output
from .forward import anchored_output
from .states import in_range, own_state, sums_matrix
from .tile import ACC, RANGE, dot, ex2, gate_bits, larger, load, operand, running, store, weights


@triton.jit
def factor(sums, row: tl.constexpr):
    """``[BK, 1]``: the decay in a row of a chunk's sums; that of a half is at least 2^-RANGE."""
    chosen = tl.sum(tl.where((tl.arange(0, 16) == row)[:, None], sums, 0.0), axis=0)
    if row > 0:
        chosen = larger(chosen, -RANGE)
    return ex2(chosen)[:, None]


@triton.jit(do_not_specialize=["T", "M"])
def sweep_kernel(
    q,
    k,
    v,
    gate_f,
    gate_b,
    out,
    states,
    T,
    H,
    M,
    scale,
    q_t,
    q_h,
    k_t,
    k_h,
    v_t,
    v_h,
    gf_t,
    gf_h,
    gb_t,
    gb_h,
    K: tl.constexpr,
    V: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
    KP: tl.constexpr,
    VP: tl.constexpr,
    DOT: tl.constexpr,
):
    """Grid (B H): an instance owns a head. BK = KP; ``states [B H, M, KP, VP]`` is scratch."""
    bh = tl.program_id(0).to(tl.int64)
    b, h = bh // H, bh % H
    rows = tl.arange(0, C)
    cols_k = tl.arange(0, BK)
    cols_v = tl.arange(0, VP)
    i = rows[:, None]
    j = rows[None, :]
    sums = sums_matrix(C)
    before = weights(j < i, j < 0)
    inside = cols_k[:, None] * VP + cols_v[None, :]
    state = tl.zeros((BK, VP), dtype=ACC)
    for n in range(0, M):
        m = M - 1 - n
        left = T - m * C
        token = b * T + m * C
        logit = load(
            gate_b + token * gb_t + h * gb_h, rows, cols_k, gb_t, left, K, KP, float("inf")
        )
        ks = load(k + token * k_t + h * k_h, rows, cols_k, k_t, left, K, KP, 0.0).to(ACC)
        vs = load(v + token * v_t + h * v_h, rows, cols_v, v_t, left, V, VP, 0.0)
        vs = operand(vs, DOT)
        bits = gate_bits(logit)
        decays = running(sums, bits, logit)
        entering = (state * factor(decays, 2)).to(states.dtype.element_ty)
        tl.store(states + (bh * M + m) * KP * VP + inside, entering)
        state = state * factor(decays, 0) + own_state(ks, vs, before, bits, logit, DOT)

    # what this program has written, other threads of it read
    tl.debug_barrier()
    after = weights(j > i, j < 0)
    anchored_f = weights(j <= i, j < C // 2)
    anchored_b = weights(j < i, j < C // 2)
    state = tl.zeros((BK, VP), dtype=ACC)
    for m in range(0, M):
        left = T - m * C
        token = b * T + m * C
        q_m = q + token * q_t + h * q_h
        k_m = k + token * k_t + h * k_h
        v_m = v + token * v_t + h * v_h
        gf_m = gate_f + token * gf_t + h * gf_h
        gb_m = gate_b + token * gb_t + h * gb_h
        logit_f = load(gf_m, rows, cols_k, gf_t, left, K, KP, float("inf"))
        logit_b = load(gb_m, rows, cols_k, gb_t, left, K, KP, float("inf"))
        qs = load(q_m, rows, cols_k, q_t, left, K, KP, 0.0).to(ACC) * scale
        ks = load(k_m, rows, cols_k, k_t, left, K, KP, 0.0).to(ACC)
        vs = operand(load(v_m, rows, cols_v, v_t, left, V, VP, 0.0), DOT)
        bits_f = gate_bits(logit_f)
        bits_b = gate_bits(logit_b)
        decays_f = running(sums, bits_f, logit_f)
        decays_b = running(sums, bits_b, logit_b)
        state_b = tl.load(states + (bh * M + m) * KP * VP + inside)
        o = tl.zeros((C, VP), dtype=ACC)
        if in_range(decays_f, decays_b):
            a = tl.zeros((C, C), dtype=ACC)
            p = running(anchored_f, bits_f, logit_f)
            e = running(anchored_b, bits_b, logit_b)
            s_f = operand(state * factor(decays_f, 1), DOT)
            s_b = operand(state_b, DOT)
            a, o = anchored_output(qs, ks, p, e, i, j, a, o, s_f, s_b, True, DOT)
            o = dot(operand(a, DOT), vs, o)
        else:
            count = tl.minimum(left, C)
            o = scan_output(
                q_m, k_m, v_m, gf_m, q_t, k_t, v_t, gf_t, rows, cols_k, cols_v, count, state, o,
                False, K, V,
            )  # fmt: skip
            at_border = state_b.to(ACC) / factor(decays_b, 2)
            o = scan_output(
                q_m, k_m, v_m, gb_m, q_t, k_t, v_t, gb_t, rows, cols_k, cols_v, count, at_border, o,
                True, K, V,
            )  # fmt: skip
            o *= scale
        store(out + (token * H + h) * V, o, rows, cols_v, H * V, left, V, VP)
        state = state * factor(decays_f, 0) + own_state(ks, vs, after, bits_f, logit_f, DOT)
