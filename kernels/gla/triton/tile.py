"""Device functions shared by the kernels: gates, sums along a chunk, loads and stores.

The decay between two tokens s < t of a chunk of the forward scan is 2^(P_t - P_s), with P the
running sum of log2(alpha); of the backward scan, 2^(E_s - E_t) for s > t, with E the running sum
that leaves the token's own gate out. One anchor a chunk, the sum at its middle, makes products of
rows out of both:

    forward, s <= t:    q_t 2^(P_t - P_mid)    times    k_s 2^(P_mid - P_s)
    backward, s >= t:   q_t 2^(E_mid - E_t)    times    k_s 2^(E_s - E_mid)

Running sums are products with a constant matrix, [j <= t] - [j < mid] for P, so the anchor is
subtracted before anything is rounded. In a chunk whose halves decay by more than 2^RANGE the
factors would leave the range of float32: such a chunk takes the recurrence (see `exact`).
"""

import triton
import triton.language as tl

from ...triton_utils import INTERPRETED, ex2, larger, lg2, reciprocal, smaller

ACC = tl.float32  # type of sums and states; a test makes it float64
# Constants, see `triton_utils`. NORMALIZER: GATE_LOGIT_NORMALIZER of the reference. RANGE: log2 of
# the largest factor of the anchored products.


@triton.jit
def gate_bits(
    logit, LOG2_E: tl.constexpr = 1.4426950408889634, SHUT: tl.constexpr = 16384.0,
    TERMS: tl.constexpr = 5, BELOW: tl.constexpr = 1 / 16,
):  # fmt: skip
    """-16 log2(alpha) = -log2(sigmoid(logit)), at most `SHUT`; NaN stays NaN.

    `SHUT` is 0, 2^-1024, and float16 holds it. `TERMS`: of the series of log(1 + x), to float32's
    precision where x is below `BELOW`.
    Half-precision logits have too few digits to tell a gate within 6e-8 of 1 from an open one; for
    float32 the digits of log(1 + x) that 1 + x loses come from its series.
    """
    if logit.dtype == tl.float32 or logit.dtype == tl.float64:
        z = logit.to(ACC)
        small = tl.exp2(-tl.abs(z) * LOG2_E)
        series = 1.0 / TERMS
        for i in tl.static_range(TERMS - 1, 0, -1):
            series = 1.0 / i - small * series
        log1p = tl.where(small < BELOW, small * series * LOG2_E, tl.log2(1.0 + small))
        bits = larger(-z, 0.0) * LOG2_E + log1p
    else:
        y = logit.to(ACC) * -LOG2_E
        # log2(1 + 2^y), which is y where 2^y overflows
        bits = smaller(lg2(1.0 + ex2(y)), larger(y, 120.0))
    return smaller(bits, SHUT)


@triton.jit
def closing(logit, NORMALIZER: tl.constexpr = 16.0, LOG2_E: tl.constexpr = 1.4426950408889634):
    """sigmoid(-logit) / 16: what turns the gradient of log(alpha) into that of the logit."""
    return reciprocal(NORMALIZER + NORMALIZER * ex2(logit.to(ACC) * LOG2_E))


@triton.jit
def weights(
    positive, negative, NORMALIZER: tl.constexpr = 16.0,
    INTERPRETED: tl.constexpr = INTERPRETED,
):  # fmt: skip
    """[positive] - [negative] over -16, the matrix of a running sum of log2(alpha) from bits."""
    w = (negative.to(tl.float32) - positive.to(tl.float32)) * (1.0 / NORMALIZER)
    return w.to(ACC if INTERPRETED else tl.float16)


@triton.jit
def running(matrix, bits, logit, INTERPRETED: tl.constexpr = INTERPRETED):
    """matrix ``[BT, BT]`` times bits ``[BT, BK]``, in float16: once for logits in bfloat16, which
    have fewer digits, and once more for what that rounds away of others."""
    if INTERPRETED:
        return tl.dot(matrix, bits, input_precision="ieee", out_dtype=ACC)
    high = bits.to(tl.float16)
    total = tl.dot(matrix, high)
    if logit.dtype != tl.bfloat16:
        total = tl.dot(matrix, (bits - high.to(tl.float32)).to(tl.float16), total)
    return total


@triton.jit
def operand(x, DOT: tl.constexpr, INTERPRETED: tl.constexpr = INTERPRETED):
    """x as an operand of `dot`. A product in tf32 cuts off what its operands have too many digits
    of: float32 is rounded first. What comes in half precision has no more than tf32."""
    rounded: tl.constexpr = DOT == tl.float32 and x.dtype == tl.float32 and not INTERPRETED
    if rounded:
        return tl.inline_asm_elementwise(
            "cvt.rna.tf32.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return x.to(DOT)


@triton.jit
def dot(x, y, total=None):
    """x y or x y + total for `operand`s; of float32 in tf32."""
    return tl.dot(x, y, total, input_precision="tf32", out_dtype=ACC)
