"""The recurrence S = diag(a) S + k v^T over blocks of tokens, the state in the L1 cache.

GROUP tokens a pass over the state: their values and sums stay in registers, and a row of the state
costs each token one fused multiply-add beside one for its sum. A state is ``[K, V]``, vectors along
V, or transposed, ``[V, K]``, which gives the gradients of q and k without sums over lanes. Two
vectors at a time share what is spread to all lanes, where the registers suffice.
"""

from .blocks import ROW
from .host import LANES, inner, small
from .vectors import full, load, scalar, store

GROUP = 4
STRIP = ROW if LANES == 8 else 2 * ROW  # AVX2 has 16 registers, AVX-512 and NEON 32


@small
def load_group(x, row):
    return load(x), load(x + row), load(x + 2 * row), load(x + 3 * row)


@small
def zeros():
    return full(0.0), full(0.0), full(0.0), full(0.0)


@inner
def store_group(x, row, group):
    store(x, group[0])
    store(x + row, group[1])
    store(x + 2 * row, group[2])
    store(x + 3 * row, group[3])


@small
def token(s, o, a, k, q, v):
    s = s * scalar(a) + v * scalar(k)
    return s, o + s * scalar(q)


@small
def tokens(s, o, a, k, q, row, v):
    s, o0 = token(s, o[0], a, k, q, v[0])
    s, o1 = token(s, o[1], a + row, k + row, q + row, v[1])
    s, o2 = token(s, o[2], a + 2 * row, k + 2 * row, q + 2 * row, v[2])
    s, o3 = token(s, o[3], a + 3 * row, k + 3 * row, q + 3 * row, v[3])
    return s, (o0, o1, o2, o3)


@small
def token_transposed(s, o, a, k, v, g):
    s = s * a
    return s + k * scalar(v), o + s * scalar(g)


@small
def tokens_transposed(s, o, a, k, v, g, row):
    s, o0 = token_transposed(s, o[0], a[0], k[0], v, g)
    s, o1 = token_transposed(s, o[1], a[1], k[1], v + row, g + row)
    s, o2 = token_transposed(s, o[2], a[2], k[2], v + 2 * row, g + 2 * row)
    s, o3 = token_transposed(s, o[3], a[3], k[3], v + 3 * row, g + 3 * row)
    return s, (o0, o1, o2, o3)


@inner
def scan(state, a, k, q, v, o, a_row, v_row, count):
    """S = diag(a) S + k v^T, o = S^T q; a, k, q ``[count, K]``, v, o ``[count, V]``."""
    for c in range(0, v_row, STRIP):
        for i in range(0, count, GROUP):
            x, y, s = i * a_row, i * v_row + c, state + c
            v_0, o_0 = load_group(v + y, v_row), zeros()
            if STRIP > ROW and c + ROW < v_row:
                v_1, o_1 = load_group(v + y + ROW, v_row), zeros()
                for at in range(x, x + a_row, 4):
                    s_0, o_0 = tokens(load(s), o_0, a + at, k + at, q + at, a_row, v_0)
                    s_1, o_1 = tokens(load(s + ROW), o_1, a + at, k + at, q + at, a_row, v_1)
                    store(s, s_0)
                    store(s + ROW, s_1)
                    s += v_row
                store_group(o + y + ROW, v_row, o_1)
            else:
                for at in range(x, x + a_row, 4):
                    s_0, o_0 = tokens(load(s), o_0, a + at, k + at, q + at, a_row, v_0)
                    store(s, s_0)
                    s += v_row
            store_group(o + y, v_row, o_0)


@inner
def scan_transposed(state, a, k, v, g, o, a_row, v_row, count):
    """o = diag(a) S g, then S = diag(a) S + k v^T: a token's own term is not in o."""
    for c in range(0, a_row, STRIP):
        for i in range(0, count, GROUP):
            x, y, s = i * a_row + c, i * v_row, state + c
            a_0, k_0, o_0 = load_group(a + x, a_row), load_group(k + x, a_row), zeros()
            if STRIP > ROW and c + ROW < a_row:
                a_1, k_1 = load_group(a + x + ROW, a_row), load_group(k + x + ROW, a_row)
                o_1 = zeros()
                for at in range(y, y + v_row, 4):
                    s_0, o_0 = tokens_transposed(load(s), o_0, a_0, k_0, v + at, g + at, v_row)
                    s_1, o_1 = tokens_transposed(
                        load(s + ROW), o_1, a_1, k_1, v + at, g + at, v_row
                    )
                    store(s, s_0)
                    store(s + ROW, s_1)
                    s += a_row
                store_group(o + x + ROW, a_row, o_1)
            else:
                for at in range(y, y + v_row, 4):
                    s_0, o_0 = tokens_transposed(load(s), o_0, a_0, k_0, v + at, g + at, v_row)
                    store(s, s_0)
                    s += a_row
            store_group(o + x, a_row, o_0)
