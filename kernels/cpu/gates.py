"""Decay gates alpha = sigmoid(z)^(1/16) of blocks of logits, in polynomials.

Relative errors: of alpha 1e-7 (1 + |log alpha|), of its slope 4e-7 + 1e-7 |z| more, the rounding of
their exponents (test_cpu.py).
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.polynomial import Chebyshev, Polynomial

from .blocks import BLOCK, ROW
from .host import inner, small
from .vectors import absolute, load, power, store, where

LOG2_E, LOG_2 = math.log2(math.e), math.log(2)
ROUNDING = 1.5 * 2.0**23  # adding it rounds to an integer, left in the lowest bits
SMALLEST = 126.0  # -log2 of the smallest alpha
SHARE = 1 / 16  # GATE_LOGIT_NORMALIZER of the definition
OPEN = 300.0  # logit of a token that decays nothing


def _fit(function: Callable, degree: int, low: float, high: float) -> tuple[float, ...]:
    fit = Chebyshev.interpolate(function, degree, (low, high))
    return tuple(fit.convert(kind=Polynomial, domain=(-1, 1), window=(-1, 1)).coef.tolist())


def _divided(x: np.ndarray) -> np.ndarray:
    """(2^x - 1) / x"""
    return np.where(x == 0, LOG_2, np.expm1(x * LOG_2) / np.where(x == 0, 1, x))


A0, A1, A2, A3, A4, A5 = _fit(_divided, 5, -0.5, 0.5)
B1, B2, B3, B4, B5, B6, B7 = _fit(lambda x: np.log1p(x) / x * LOG2_E, 6, 0, 1)


@small
def exp2_negative(x, residue):
    """2^-x + residue, x >= 0, and what rounding took from it, where x is near 0."""
    x = where(x > SMALLEST, SMALLEST, x)  # NaN stays
    rounded = x + ROUNDING
    r = (rounded - ROUNDING) - x
    r2 = r * r
    less = ((r * A1 + A0) + r2 * ((r * A3 + A2) + r2 * (r * A5 + A4))) * r + residue
    one = less + 1.0
    return one * power(rounded), less - (one - 1.0)


@small
def log2_1p(x):
    """log2(1 + x), 0 <= x <= 1"""
    x2 = x * x
    return ((x * B2 + B1) + x2 * ((x * B4 + B3) + x2 * ((x * B6 + B5) + x2 * B7))) * x


@inner
def gates(alpha, slope, logits, residue, row):
    """Of a block and, unless ``slope`` is 0, d log(alpha) / dz = sigmoid(-z) / 16.

    A gate near 1 has but a few of float32's digits for what it lacks to 1; the same error at every
    token would add up to 1e-3 over 65536. So what rounding took from the last token's gate is given
    to the next one's, in ``residue``, a row that is carried from block to block.
    """
    for c in range(0, row, ROW):
        rest = load(residue + c)
        for at in range(c, BLOCK * row, row):
            y = load(logits + at) * -LOG2_E
            e, _ = exp2_negative(absolute(y), 0.0)
            z = where(y < 0.0, 0.0, y) + log2_1p(e)
            x, rest = exp2_negative(z * SHARE, rest)
            rest = where(rest != rest, 0.0, rest)
            store(alpha + at, x)
            if slope:
                store(slope + at, where(y < 0.0, e, 1.0) * SHARE / (e + 1.0))
        store(residue + c, rest)
