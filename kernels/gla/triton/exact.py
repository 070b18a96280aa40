"""The recurrence over one chunk, token by token: for chunks whose gates leave the anchored range.

Slow, small, and right for any gate. Tokens are read again from memory, one by one. The functions
take a chunk's pointers q, k, ..., the token stride of each (q_t, ...) and how many tokens are left.
"""

import triton
import triton.language as tl

from ...triton_utils import ex2
from .states import factors_of
from .tile import ACC, gate_bits


@triton.jit
def load_row(base, t, cols, stride, WIDTH: tl.constexpr, other):
    return tl.load(base + t * stride + cols, mask=cols < WIDTH, other=other)


@triton.jit
def load_alpha(
    gate, t, cols, gate_t, K: tl.constexpr, NORMALIZER: tl.constexpr = 16.0
):  # fmt: skip
    logit = load_row(gate, t, cols, gate_t, K, float("inf"))
    return ex2(gate_bits(logit) * (-1.0 / NORMALIZER))


@triton.jit
def add_row(tile, rows, t, row):
    return tile + tl.where((rows == t)[:, None], row[None, :], 0.0)


@triton.jit
def at_border(
    states, factors, slot, half: tl.constexpr, cols_k, cols_v,
    STATES: tl.constexpr, KP: tl.constexpr,
):  # fmt: skip
    """``[BK, VP]``: a state, or the gradient of one, as it enters; not decayed to the middle."""
    VP: tl.constexpr = cols_v.shape[0]
    if STATES:
        inside = cols_k[:, None] * VP + cols_v[None, :]
        to_middle = tl.load(factors + factors_of(slot, KP) + half * KP + cols_k)
        return tl.load(states + slot * KP * VP + inside).to(ACC) / to_middle[:, None]
    return tl.zeros((cols_k.shape[0], VP), dtype=ACC)


@triton.jit
def scan_output(
    q, k, v, gate, q_t, k_t, v_t, gate_t, rows, cols_k, cols_v, count, state, o,
    REVERSE: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """o ``[BT, VP]`` plus one direction's output."""
    for i in range(0, count):
        t = count - 1 - i if REVERSE else i
        qs = load_row(q, t, cols_k, q_t, K, 0.0).to(ACC)
        ks = load_row(k, t, cols_k, k_t, K, 0.0).to(ACC)
        vs = load_row(v, t, cols_v, v_t, V, 0.0).to(ACC)
        alpha = load_alpha(gate, t, cols_k, gate_t, K)
        state = state * alpha[:, None] + ks[:, None] * vs[None, :]
        o = add_row(o, rows, t, tl.sum(qs[:, None] * state, axis=0))
    return o


@triton.jit
def exact_output(
    q, k, v, gate_f, gate_b, q_t, k_t, v_t, gf_t, gb_t, rows, cols_k, cols_v, left,
    states, factors, slot_f, slot_b, scale,
    STATES: tl.constexpr, K: tl.constexpr, V: tl.constexpr, KP: tl.constexpr,
):  # fmt: skip
    """``[BT, VP]``: what the key channels cols_k give to the output, both directions."""
    count = tl.minimum(left, rows.shape[0])
    state = at_border(states, factors, slot_f, 1, cols_k, cols_v, STATES, KP)
    o = tl.zeros((rows.shape[0], cols_v.shape[0]), dtype=ACC)
    o = scan_output(
        q, k, v, gate_f, q_t, k_t, v_t, gf_t, rows, cols_k, cols_v, count, state, o, False, K, V
    )
    state = at_border(states, factors, slot_b, 2, cols_k, cols_v, STATES, KP)
    o = scan_output(
        q, k, v, gate_b, q_t, k_t, v_t, gb_t, rows, cols_k, cols_v, count, state, o, True, K, V
    )
    return o * scale


@triton.jit
def scan_gradients(
    do, q, k, v, gate, do_t, q_t, k_t, v_t, gate_t, rows, cols_k, cols_v, count, scale, state, grad,
    dq, dk, dv, REVERSE: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """dq, dk ``[BT, BK]``, dv ``[BT, VP]`` plus one direction's, and its q dq - k dk.

    state, grad ``[BK, VP]``: the state that enters, the gradient of the one that leaves.
    """
    u = tl.zeros(dq.shape, dtype=ACC)
    for i in range(0, count):
        t = count - 1 - i if REVERSE else i
        ks = load_row(k, t, cols_k, k_t, K, 0.0).to(ACC)
        vs = load_row(v, t, cols_v, v_t, V, 0.0).to(ACC)
        alpha = load_alpha(gate, t, cols_k, gate_t, K)
        state = state * alpha[:, None] + ks[:, None] * vs[None, :]
        g = load_row(do, t, cols_v, do_t, V, 0.0).to(ACC) * scale
        row = tl.sum(state * g[None, :], axis=1)
        dq = add_row(dq, rows, t, row)
        u = add_row(u, rows, t, row * load_row(q, t, cols_k, q_t, K, 0.0).to(ACC))
    for i in range(0, count):
        t = i if REVERSE else count - 1 - i
        qs = load_row(q, t, cols_k, q_t, K, 0.0).to(ACC)
        g = load_row(do, t, cols_v, do_t, V, 0.0).to(ACC) * scale
        grad += qs[:, None] * g[None, :]
        ks = load_row(k, t, cols_k, k_t, K, 0.0).to(ACC)
        vs = load_row(v, t, cols_v, v_t, V, 0.0).to(ACC)
        row = tl.sum(grad * vs[None, :], axis=1)
        dk = add_row(dk, rows, t, row)
        u = add_row(u, rows, t, -row * ks)
        dv = add_row(dv, rows, t, tl.sum(grad * ks[:, None], axis=0))
        grad *= load_alpha(gate, t, cols_k, gate_t, K)[:, None]
    return dq, dk, dv, u


@triton.jit
def exact_gradients(
    do, q, k, v, gate_f, gate_b, do_t, q_t, k_t, v_t, gf_t, gb_t, rows, cols_k, cols_v, left,
    states, dstates, factors, slot_f, slot_b, scale, dv,
    STATES: tl.constexpr, K: tl.constexpr, V: tl.constexpr, KP: tl.constexpr,
):  # fmt: skip
    """dq and dk ``[BT, BK]``, dv with their part added, and q dq - k dk of each direction."""
    count = tl.minimum(left, rows.shape[0])
    dq = tl.zeros((rows.shape[0], cols_k.shape[0]), dtype=ACC)
    dk = tl.zeros((rows.shape[0], cols_k.shape[0]), dtype=ACC)
    state = at_border(states, factors, slot_f, 1, cols_k, cols_v, STATES, KP)
    grad = at_border(dstates, factors, slot_f, 2, cols_k, cols_v, STATES, KP)
    dq, dk, dv, u_f = scan_gradients(
        do, q, k, v, gate_f, do_t, q_t, k_t, v_t, gf_t, rows, cols_k, cols_v, count, scale,
        state, grad, dq, dk, dv, False, K, V,
    )  # fmt: skip
    state = at_border(states, factors, slot_b, 2, cols_k, cols_v, STATES, KP)
    grad = at_border(dstates, factors, slot_b, 1, cols_k, cols_v, STATES, KP)
    dq, dk, dv, u_b = scan_gradients(
        do, q, k, v, gate_b, do_t, q_t, k_t, v_t, gb_t, rows, cols_k, cols_v, count, scale,
        state, grad, dq, dk, dv, True, K, V,
    )  # fmt: skip
    return dq, dk, dv, u_f, u_b
