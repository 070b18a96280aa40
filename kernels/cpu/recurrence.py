"""The recurrence S = diag(a) S + k v^T over blocks of tokens, the state in the L1 cache.

GROUP tokens a pass over the state: their values and sums stay in registers, and a row of the state
costs each token one fused multiply-add beside one for its sum. A state is ``[K, V]``, vectors along
V, or transposed, ``[V, K]``, which gives the gradients of q and k without sums over lanes.
"""

from .blocks import ROW
from .host import inner, small
from .vectors import full, load, scalar, store

GROUP = 4


@small
def load_group(x, row):
    return load(x), load(x + row), load(x + 2 * row), load(x + 3 * row)


@inner
def store_group(x, row, x0, x1, x2, x3):
    store(x, x0)
    store(x + row, x1)
    store(x + 2 * row, x2)
    store(x + 3 * row, x3)


@small
def token(s, o, a, k, q, v):
    s = s * scalar(a) + v * scalar(k)
    return s, o + s * scalar(q)


@small
def token_transposed(s, o, a, k, v, g):
    s = s * a
    return s + k * scalar(v), o + s * scalar(g)


@inner
def scan(state, a, k, q, v, o, a_row, v_row, count):
    """S = diag(a) S + k v^T, o = S^T q; a, k, q ``[count, K]``, v, o ``[count, V]``."""
    for c in range(0, v_row, ROW):
        for i in range(0, count, GROUP):
            x, y, s_row = i * a_row, i * v_row + c, state + c
            v0, v1, v2, v3 = load_group(v + y, v_row)
            o0 = o1 = o2 = o3 = full(0.0)
            for at in range(x, x + a_row, 4):
                at1, at2, at3 = at + a_row, at + 2 * a_row, at + 3 * a_row
                s, o0 = token(load(s_row), o0, a + at, k + at, q + at, v0)
                s, o1 = token(s, o1, a + at1, k + at1, q + at1, v1)
                s, o2 = token(s, o2, a + at2, k + at2, q + at2, v2)
                s, o3 = token(s, o3, a + at3, k + at3, q + at3, v3)
                store(s_row, s)
                s_row += v_row
            store_group(o + y, v_row, o0, o1, o2, o3)


@inner
def scan_transposed(state, a, k, v, g, o, a_row, v_row, count):
    """o = diag(a) S g, then S = diag(a) S + k v^T: a token's own term is not in o."""
    for c in range(0, a_row, ROW):
        for i in range(0, count, GROUP):
            x, y, s_row = i * a_row + c, i * v_row, state + c
            a0, a1, a2, a3 = load_group(a + x, a_row)
            k0, k1, k2, k3 = load_group(k + x, a_row)
            o0 = o1 = o2 = o3 = full(0.0)
            for at in range(y, y + v_row, 4):
                at1, at2, at3 = at + v_row, at + 2 * v_row, at + 3 * v_row
                s, o0 = token_transposed(load(s_row), o0, a0, k0, v + at, g + at)
                s, o1 = token_transposed(s, o1, a1, k1, v + at1, g + at1)
                s, o2 = token_transposed(s, o2, a2, k2, v + at2, g + at2)
                s, o3 = token_transposed(s, o3, a3, k3, v + at3, g + at3)
                store(s_row, s)
                s_row += a_row
            store_group(o + x, a_row, o0, o1, o2, o3)
