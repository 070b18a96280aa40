"""The locality gate y = rms(o) * sigmoid(gate) + rms(local) * (1 - sigmoid(gate)), head by head."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .blocks import BLOCK, ROW, fill, load_block, rows_of, store_sum, unpack_tensor
from .gates import LOG2_E, exp2_negative
from .host import LANES, PLACE, inner, kernel, place, small
from .launch import address, fits, fitting, launch, scratch_memory
from .vectors import absolute, full, load, store, total, where

TOKENS = 64  # of a program


class Gate(NamedTuple):
    B: int
    N: int
    H: int
    D: int  # padded
    width: int
    eps: float
    act: int
    g_weight: int  # addresses
    l_weight: int
    scratch: int
    scratch_size: int


GATE = PLACE + len(Gate._fields)


@small
def sigmoid(z):
    e, _ = exp2_negative(absolute(z * LOG2_E), 0.0)
    return where(z < 0.0, e, 1.0) / (e + 1.0)


@small
def inverse_rms(x, row, width, eps):
    squares = full(0.0)
    for c in range(0, row, ROW):
        squares = squares + load(x + c) * load(x + c)
    return 1.0 / math.sqrt(total(squares) / width + eps)


@inner
def blend(o, local, gate, g_weight, l_weight, width, eps, act, count, row):
    """In place of o, for a block."""
    for at in range(0, count * row, row):
        g, s = inverse_rms(o + at, row, width, eps), inverse_rms(local + at, row, width, eps)
        for c in range(0, row, ROW):
            y = load(local + at + c) * s * load(l_weight + c)
            y = y + (load(o + at + c) * g * load(g_weight + c) - y) * sigmoid(load(gate + at + c))
            store(o + at + c, y * sigmoid(y) if act else y)


@kernel
def gate_kernel(p):
    """A program is some tokens, with all heads."""
    thread, threads = place(p)
    c = Gate(
        int(p[2]), int(p[3]), int(p[4]), int(p[5]), int(p[6]), p[7], int(p[8]), int(p[9]),
        int(p[10]), int(p[11]), int(p[12]),
    )  # fmt: skip
    x_o, x_local = unpack_tensor(p, GATE, 0), unpack_tensor(p, GATE, 1)
    x_gate, y = unpack_tensor(p, GATE, 2), unpack_tensor(p, GATE, 3)
    row = 4 * c.D
    o = c.scratch + thread * c.scratch_size
    local, gate, zero = o + BLOCK * row, o + 2 * BLOCK * row, o + 3 * BLOCK * row
    fill(zero, row, 0.0)
    parts = -(-c.N // TOKENS)
    for program in range(thread, c.B * parts, threads):
        start = program % parts * TOKENS
        for first in range(start, min(start + TOKENS, c.N), BLOCK):
            count = min(BLOCK, c.N - first)
            for head in range(program // parts * c.H, (program // parts + 1) * c.H):
                load_block(o, rows_of(x_o, c.H, head, first, count, 0), 0, count, 1.0, 0.0)
                load_block(local, rows_of(x_local, c.H, head, first, count, 0), 0, count, 1.0, 0.0)
                load_block(gate, rows_of(x_gate, c.H, head, first, count, 0), 0, count, 1.0, 0.0)
                blend(o, local, gate, c.g_weight, c.l_weight, c.width, c.eps, c.act, count, row)
                store_sum(rows_of(y, c.H, head, first, count, 0), 0, count, o, row, zero, 0)


def gate_forward(
    o: Tensor,
    local: Tensor,
    gate: Tensor,
    g_weight: Tensor,
    l_weight: Tensor,
    *,
    eps: float,
    act: bool,
) -> Tensor:
    """As `torch_locality_gate`, of ``[N, H, D]`` or ``[B, N, H, D]``."""
    if o.dim() == 3:
        o, local, gate = (x.unsqueeze(0) for x in (o, local, gate))
        return gate_forward(o, local, gate, g_weight, l_weight, eps=eps, act=act)[0]
    out = torch.empty(o.shape, dtype=o.dtype, device=o.device)
    if not out.numel():
        return out
    batch, tokens, heads, width = o.shape
    inputs = [fitting(x) for x in (o, local, gate)]
    weights = [F.pad(w.float(), (0, -width % LANES)).contiguous() for w in (g_weight, l_weight)]
    target = out if fits(out) else torch.empty_like(fitting(out))
    padded = target.shape[-1]
    threads = min(torch.get_num_threads(), out.numel() // 2**15 + 1)
    size = 4 * (3 * BLOCK + 1) * padded
    with scratch_memory(threads * size) as memory:
        c = Gate(
            batch, tokens, heads, padded, width, float(eps), int(act),
            *(w.data_ptr() for w in weights), memory.data_ptr(), size,
        )  # fmt: skip
        arguments = (c, *map(address, (*inputs, target)))
        launch(gate_kernel, arguments, threads, keep=(inputs, weights, target, memory))
    return out if target is out else target[..., :width].contiguous()
