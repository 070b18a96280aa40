"""What instructions compute: functions of arrays that hold a value for each thread."""

import numpy as np

U1, U2, U4, U8, I4, I8, F4, F8 = map(np.dtype, ("u1", "u2", "u4", "u8", "i4", "i8", "f4", "f8"))
WIDTHS = {"8": 1, "16": 2, "32": 4, "64": 8}
DTYPES = {f"{k}{b}": np.dtype(f"{n}{WIDTHS[b]}") for k, n in ("uu", "bu", "si") for b in WIDTHS}
DTYPES |= {"f32": F4, "pred": np.dtype("?"), "f16": U2, "bf16": U2, "f16x2": U4, "bf16x2": U4}

TF32 = U4.type(0xFFFFE000)  # the bits that tensor cores see of a float32
_SMALLEST = F4.type(2.0**-126)
# largest errors in the PTX ISA's tables; that of lg2 is absolute where its result is within 1
_ERRORS = {"ex2": 2.0**-22, "lg2": 2.0**-22, "div": 2.0**-22, "tanh": 2.0**-11}
_ERRORS |= {"rcp": 2.0**-23, "rsqrt": 2.0**-22.9, "sqrt": 2.0**-23}


def ftz(x):
    """Subnormal numbers are 0, with their sign."""
    return x * (np.abs(x) >= _SMALLEST)


def fma(a, b, c):
    return (a.astype(F8) * b + c).astype(F4)


def approximate(op, x):
    """x with about as large an error as the instruction may have, the same for the same x."""
    u = (x.view(U4) * U4.type(2654435761) + U4.type(1)).view(I4) / 2.0**31
    found = x * (1 + u * _ERRORS[op])
    if op == "lg2":
        found = np.where(np.abs(x) <= 1, x + u * 2.0**-22.6, found)
    return found.astype(F4)


def to_bf16(x):
    u = x.view(U4)
    rounded = (u + (((u >> U4.type(16)) & U4.type(1)) + U4.type(0x7FFF))) >> U4.type(16)
    return np.where(np.isnan(x), U4.type(0x7FFF), rounded).astype(U2)


def from_bf16(h):
    return (h.astype(U4) << U4.type(16)).view(F4)


def to_f16(x):
    return np.where(np.isnan(x), U2.type(0x7FFF), x.astype(np.float16).view(U2))


def from_f16(h):
    return h.view(np.float16).astype(F4)


def to_tf32(x):
    """To the nearest, ties away from zero."""
    u = x.view(U4)
    return np.where(np.isfinite(x), (u + U4.type(0x1000)) & TF32, u)


def pack16(low, high):
    return low.astype(U4) | (high.astype(U4) << U4.type(16))


def shift(a, s, left):
    """By up to all bits; to the right a signed number fills with its sign."""
    bits = a.dtype.itemsize * 8
    amount = np.minimum(s, bits - 1).astype(a.dtype)
    moved = a << amount if left else a >> amount
    return moved if a.dtype.kind == "i" and not left else np.where(s < bits, moved, 0)


def divide(a, b):
    """Of integers of up to 32 bits, towards zero; all ones for division by zero, as GPUs give."""
    x, y = a.astype(I8), b.astype(I8)
    q = np.abs(x) // np.maximum(np.abs(y), 1) * np.sign(x) * np.sign(y)
    return np.where(y == 0, -1, q).astype(a.dtype)


def bfe(a, position, length):
    """``length`` bits from ``position`` on, with their sign if a is signed."""
    p, n = (x.astype(I8) & 255 for x in (position, length))
    wide = a.view(U4).astype(I8)
    x = (wide >> np.minimum(p, 63)) & ((np.int64(1) << np.minimum(n, 32)) - 1)
    if a.dtype.kind == "i":
        sign = (wide >> np.minimum(p + n - 1, 31)) & 1
        x = np.where((sign == 1) & (n > 0), x - (np.int64(1) << np.minimum(n, 40)), x)
    return x.astype(a.dtype)


def prmt(a, b, selector):
    """Four of the eight bytes of b and a; bit 3 of a selector's digit spreads the sign."""
    both = a.astype(U8) | (b.astype(U8) << U8.type(32))
    out = np.zeros(len(a), U4)
    for i in range(4):
        s = (selector >> U4.type(4 * i)) & U4.type(15)
        byte = (both >> ((s & U4.type(7)).astype(U8) * U8.type(8))) & U8.type(255)
        byte = np.where(s & U4.type(8), np.where(byte & U8.type(128), 255, 0), byte)
        out |= byte.astype(U4) << U4.type(8 * i)
    return out


def shuffle_source(mode, b, c):
    """The thread whose value each thread of a shuffle receives."""
    thread = np.arange(len(b))
    lane, b, c = thread % 32, b.astype(I8), int(c[0])
    segment, clamp = (c >> 8) & 31, c & 31
    last = (lane & segment) | (clamp & ~segment)
    source = {"bfly": lane ^ b, "idx": (lane & segment) | (b & ~segment)}[mode]
    return thread - lane + np.where(source <= last, source, lane)
