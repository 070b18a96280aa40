"""Device functions shared by the kernels: gates, and the tree of pairs inside a chunk.

The decay between two tokens s < t of a chunk is a product of the gates in between. Anchoring it at
one point of the chunk, exp(P_t - P_mid) exp(P_mid - P_s), overflows for strong gates. Here every
pair has an anchor of its own between its tokens: with w = 2^i the highest bit in which t and s
differ, both lie in the same block of 2w tokens, on different sides of its middle. So

    decay(s -> t) = (gates from s to the middle) * (gates from the middle to t)

where no factor is above 1: nothing overflows for any gate, nothing is floored, and what underflows
is zero in truth. The two directions need different factors of different rows,

    t right of the middle: q_t takes the forward gates, k_t the backward gates, from the middle,
    t left of the middle:  q_t takes the backward gates, k_t the forward gates, to the middle,

hence *one* product of q and k per level holds both directions, and the mask of a level,
((t xor s) >> i) == 1, is symmetric. The levels i = 0 ... log2(C) - 1 cover each pair once; the
diagonal needs no gate and counts for both directions. The factors of the next level follow by
multiplying with the sibling block's product (a butterfly), so there is one exponential per gate.
After the last level they are the factors for the states that enter and leave the chunk.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
NORMALIZER = tl.constexpr(16.0)  # GATE_LOGIT_NORMALIZER of the reference
ACC = tl.constexpr(tl.float32)  # type of sums and states; a test makes it float64
SERIES_TERMS = tl.constexpr(5)  # of log(1 + x), to float32's precision where x is below ...
SERIES_BELOW = tl.constexpr(1 / 16)


@triton.jit
def log2_alpha(logit):
    """log2(alpha) = log2(sigmoid(logit)) / 16 in float32, also where alpha is nearly 1."""
    small = tl.exp2(-tl.abs(logit) * LOG2_E)
    # log(1 + x), where 1 + x would lose the digits of x by its series; no division, which is slow
    series = 1.0 / SERIES_TERMS
    for i in tl.static_range(SERIES_TERMS - 1, 0, -1):
        series = 1.0 / i - small * series
    log1p = tl.where(small < SERIES_BELOW, small * series * LOG2_E, tl.log2(1.0 + small))
    return (tl.minimum(logit, 0.0) * LOG2_E - log1p) * (1.0 / NORMALIZER)


@triton.jit
def sigmoids(x):
    """sigmoid(x) and sigmoid(-x), each to full precision."""
    small = tl.exp2(-tl.abs(x) * LOG2_E)
    whole = 1.0 / (1.0 + small)
    return tl.where(x > 0, 1.0, small) * whole, tl.where(x > 0, small, 1.0) * whole


@triton.jit
def dlogit(grad, logit):
    """Gradient of the logit from that of log(alpha): times sigmoid(-logit) / 16."""
    _, closing = sigmoids(logit)
    return grad * closing / NORMALIZER


@triton.jit
def place(blocks, H):
    """Batch entry, block and head of an instance in a grid (B blocks H).

    Heads are innermost, as they are neighbours in memory.
    """
    pid = tl.program_id(0).to(tl.int64)
    return pid // (H * blocks), (pid // H) % blocks, pid % H


@triton.jit
def load_raw(
    base, rows, cols, stride_row, stride_col, valid_rows, valid_cols, AGAIN: tl.constexpr = False
):
    """``[rows, cols]`` as stored, zero outside the tensor. ``AGAIN``: read again later."""
    mask = (rows < valid_rows)[:, None] & (cols < valid_cols)[None, :]
    pointers = base + rows[:, None] * stride_row + cols[None, :] * stride_col
    if AGAIN:
        return tl.load(pointers, mask=mask, other=0.0, eviction_policy="evict_last")
    else:
        return tl.load(pointers, mask=mask, other=0.0)


@triton.jit
def load_tile(base, rows, cols, stride_row, stride_col, valid_rows, valid_cols):
    """``[rows, cols]`` in float32, zero outside the tensor."""
    return load_raw(base, rows, cols, stride_row, stride_col, valid_rows, valid_cols).to(ACC)


@triton.jit
def log_gate(logit, rows, valid_rows):
    """log2(alpha) of a tile of gate logits; 0, no decay, in the rows outside the tensor."""
    return tl.where((rows < valid_rows)[:, None], log2_alpha(logit.to(ACC)), 0.0)


@triton.jit
def store_tile(base, x, rows, cols, stride_row, valid_rows, valid_cols):
    mask = (rows < valid_rows)[:, None] & (cols < valid_cols)[None, :]
    pointers = base + rows[:, None] * stride_row + cols[None, :]
    tl.store(pointers, x.to(base.dtype.element_ty), mask=mask)


@triton.jit
def dot(x, y, total=None):
    """x y or x y + total; of float32 operands in tf32."""
    return tl.dot(x, y, total, input_precision="tf32", out_dtype=ACC)


@triton.jit
def level(rows, i):
    """Masks of the pairs of level i, and of level i and above; which rows lie right of the middle.

    Levels in turn may overwrite each other with the second mask: each pair's own one is the last.
    """
    shifted = rows >> i
    own = (shifted[:, None] ^ shifted[None, :]) == 1
    upward = shifted[:, None] != shifted[None, :]
    right = ((shifted & 1) == 1)[:, None]
    return own, upward, right


@triton.jit
def own_factors(log_f, log_b):
    """prefix_f, suffix_f, prefix_b, suffix_b of blocks of one token, see `widen`.

    The token's own gate is in the prefix of the forward and in the suffix of the backward scan.
    """
    ones = tl.full(log_f.shape, 1.0, ACC)
    return tl.exp2(log_f), ones, ones, tl.exp2(log_b)


@triton.jit
def widen(prefix, suffix, right, rows, i):
    """The factors of level i + 1 from those of level i, as blocks double.

    prefix: product of the gates from the left end of the row's block, suffix: to its right end;
    the row's own gate is in one of them, so prefix * suffix is the product over the block.
    """
    index = tl.broadcast_to((rows ^ (1 << i))[:, None], prefix.shape)
    sibling = tl.gather(prefix * suffix, index, 0)  # over the block's other half
    return tl.where(right, prefix * sibling, prefix), tl.where(right, suffix, suffix * sibling)


@triton.jit
def load_state(states, decays, carries, slot, carry_slot, cols_k, cols_v, KP, VP, SEGMENTED):
    """A state ``[BK, VP]``: in-segment part plus the decayed state that entered the segment."""
    inside = cols_k[:, None] * VP + cols_v[None, :]
    state = tl.load(states + slot * KP * VP + inside)
    if SEGMENTED:
        decay = tl.exp2(tl.load(decays + slot * KP + cols_k))
        state += decay[:, None] * tl.load(carries + carry_slot * KP * VP + inside)
    return state
