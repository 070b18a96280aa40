"""Products of matrices: which thread holds what, and where operands lie in shared memory."""

import numpy as np

from .arithmetic import F4, TF32, U2, from_bf16, from_f16

# Fragments of mma.sync (PTX ISA, "Matrix Fragments for mma.m16n8k16 / m16n8k8"): for each element
# of a matrix its place among a warp's registers [lane, register, half of it]; D8: the other way
_r, _c, _k = np.arange(16)[:, None], np.arange(16)[None, :], np.arange(16)[:, None]
_n, _lane, _g = np.arange(8)[None, :], np.arange(32)[None, :], np.arange(4)[:, None]
_A16 = (_r % 8 * 4 + _c % 8 // 2) * 8 + ((_r >= 8) + 2 * (_c >= 8)) * 2 + _c % 2
_B16 = (_n * 4 + _k % 8 // 2) * 4 + (_k >= 8) * 2 + _k % 2
_A8 = (_r % 8 * 4 + _n % 4) * 4 + (_r >= 8) + 2 * (_n >= 4)
_B8 = (_n * 4 + _k[:8] % 4) * 2 + (_k[:8] >= 4)
_C8 = (_r % 8 * 4 + _n // 2) * 4 + (_r >= 8) * 2 + _n % 2
_D8 = (_lane // 4 + 8 * (_g >= 2)) * 8 + _lane % 4 * 2 + _g % 2


def as_float(kind, x):
    """Bits of an operand in float32; tf32 ignores the last 13 of them."""
    return {"bf16": from_bf16, "f16": from_f16, "tf32": lambda x: (x & TF32).view(F4)}[kind](x)


def fragment(kind, is_a, *registers):
    """``[warps, 16, k]`` of A or ``[warps, k, 8]`` of B in float32."""
    x = np.stack(registers, 1)
    if kind != "tf32":
        x = x.view(U2)
    place = (_A8 if is_a else _B8) if kind == "tf32" else (_A16 if is_a else _B16)
    return as_float(kind, x).reshape(-1, x.shape[1] * 32)[:, place]


def mma(a, b, *c):
    """Registers of D = A B + C for one product of each warp."""
    d = np.matmul(a, b) + np.stack(c, 1).reshape(-1, 128)[:, _C8]
    return d.reshape(-1, 128)[:, _D8].transpose(1, 0, 2).reshape(4, -1)


def wgmma(a, b, c):
    """``[width / 2, threads]`` of A B + c for a product of each warpgroup; c may be None."""
    d = np.matmul(a, b)
    width = d.shape[2]
    # [warps, 16 rows, width] to registers: two rows, two columns for each 8 of the width
    d = d.reshape(-1, 2, 8, width // 8, 4, 2).transpose(3, 1, 5, 0, 2, 4).reshape(width // 2, -1)
    return d if c is None else d + c


def matrix_addresses(descriptor, rows, trans, item):
    """Addresses ``[rows, 32 / item]`` of a matrix [rows, k] that a descriptor of wgmma describes.

    ``trans``: rows are contiguous (MN-major), else k is. Layouts as in the PTX ISA, "Asynchronous
    Warpgroup Level Matrix Shared Memory Layout".
    """
    start, leading, stride = ((descriptor >> s & 0x3FFF) << 4 for s in (0, 16, 32))
    swizzle = {0: 16, 1: 128, 2: 64, 3: 32}[descriptor >> 62 & 3]
    assert descriptor >> 49 & 7 == 0, "a matrix that does not start at a multiple of its pattern"
    r, k = np.arange(rows)[:, None], np.arange(32 // item)[None, :]
    if not trans:
        a = r % 8 * swizzle + r // 8 * stride
        a = a + (k * item if swizzle > 16 else k * item % 16 + k * item // 16 * leading)
    elif swizzle > 16:
        wide = swizzle // 2
        a = r % wide * 2 + r // wide * leading + k % 8 * swizzle + k // 8 * stride
    else:
        a = r % 8 * 2 + r // 8 * stride + k % 8 * 16 + k // 8 * leading
    a = a + start
    return a ^ ((a >> 7 & swizzle // 16 - 1) << 4)
