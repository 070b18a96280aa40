"""The locality gate: two RMSNorms, the blend of both by a sigmoid, and SiLU, in one pass.

    y = o / rms(o) w_g sigmoid(z) + l / rms(l) w_l sigmoid(-z),      out = y or silu(y)

Row by row (a token's head), bound by memory alone. The backward pass computes everything again
from the inputs. A weight's gradient is summed over the rows of an instance here and over the
instances by torch: the same in every run.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dispatch import operator
from ..triton_rows import ACC
from ..triton_utils import (
    SCRATCH,
    block_index,
    blocks,
    by_blocks,
    by_tokens,
    cdiv,
    device_of,
    ex2,
    load,
    power_of_2,
    reciprocal,
    store,
    strides,
)

TILE = 1024  # entries of an instance's tile: 32 a thread
GRADIENT_TILE = 512  # 16 a thread, as registers are scarce there
BLOCKS = 4  # tiles an instance walks through


@triton.jit
def load_weight(weight, cols, D: tl.constexpr, DP: tl.constexpr):
    if D == DP:
        return tl.load(weight + cols).to(ACC)[None, :]
    return tl.load(weight + cols, mask=cols < D, other=0.0).to(ACC)[None, :]


@triton.jit
def sigmoid(x, LOG2_E: tl.constexpr = 1.4426950408889634):
    return reciprocal(1.0 + ex2(x * -LOG2_E))


@triton.jit
def inverse_rms(x, valid, eps, D: tl.constexpr):
    """1 / rms(x) of each row; 0 for rows outside the tensor, also with eps = 0."""
    return tl.where(valid, tl.rsqrt(tl.sum(x * x, axis=1) * (1.0 / D) + eps), 0.0)[:, None]


@triton.jit
def blend(os, ls, zs, w_g, w_l, valid, eps, D: tl.constexpr, ACT: tl.constexpr):
    """Output of the gate for a head's rows of o, local and the logits."""
    x = os * inverse_rms(os, valid, eps, D) * w_g
    y = ls * inverse_rms(ls, valid, eps, D) * w_l
    y += sigmoid(zs) * (x - y)
    if ACT:
        y *= sigmoid(y)
    return y


@triton.jit
def dnormalize(grad, normal, inverse, D: tl.constexpr):
    """Gradient of x from that of x / rms(x)."""
    return inverse * (grad - normal * (tl.sum(grad * normal, axis=1) * (1.0 / D))[:, None])


@triton.jit(do_not_specialize=["N"])
def blend_kernel(
    o,
    local,
    gate,
    g_weight,
    l_weight,
    out,
    N,
    H,
    eps,
    strides,
    D: tl.constexpr,
    ACT: tl.constexpr,
    R: tl.constexpr,
    DP: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Grid (B H, N / (R BLOCKS)); an instance owns BLOCKS times R tokens of one head, all channels.

    With its neighbours' tokens in one tensor, a batch entry's token n is row b N + n of all.
    ``strides``: of tokens and of heads, for o, local and gate.
    """
    o_n, o_h, l_n, l_h, z_n, z_h = strides
    bh = tl.program_id(0).to(tl.int64)
    b, h = bh // H, bh % H
    rows = tl.arange(0, R)
    cols = tl.arange(0, DP)
    w_g = load_weight(g_weight, cols, D, DP)
    w_l = load_weight(l_weight, cols, D, DP)
    first = block_index() * BLOCKS
    for block in range(first, tl.minimum(first + BLOCKS, tl.cdiv(N, R))):
        left = N - block * R
        valid = rows < left
        token = b * N + block * R
        os = load(o + token * o_n + h * o_h, rows, cols, o_n, left, D, DP, 0.0).to(ACC)
        ls = load(local + token * l_n + h * l_h, rows, cols, l_n, left, D, DP, 0.0).to(ACC)
        zs = load(gate + token * z_n + h * z_h, rows, cols, z_n, left, D, DP, 0.0).to(ACC)
        y = blend(os, ls, zs, w_g, w_l, valid, eps, D, ACT)
        store(out + (token * H + h) * D, y, rows, cols, H * D, left, D, DP)


@triton.jit(do_not_specialize=["N"])
def blend_gradient_kernel(
    grad,
    o,
    local,
    gate,
    g_weight,
    l_weight,
    scale,
    do,
    dlocal,
    dgate,
    out,
    dweights,
    N,
    H,
    eps,
    strides,
    D: tl.constexpr,
    ACT: tl.constexpr,
    MIX: tl.constexpr,
    SCALE: tl.constexpr,
    R: tl.constexpr,
    DP: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Grid and tiles of `blend_kernel`; ``dweights [3, instances, D]`` takes partial sums.

    `MIX`: ``out``, the output again, is written as well, and the third of these sums is dgate's.
    `SCALE`: the gradient and ``out`` are multiplied by ``scale`` of the batch entry. ``strides``:
    of tokens and of heads, for grad, o, local, gate and dgate.
    """
    g_n, g_h, o_n, o_h, l_n, l_h, z_n, z_h, dz_n, dz_h = strides
    bh = tl.program_id(0).to(tl.int64)
    b, h = bh // H, bh % H
    rows = tl.arange(0, R)
    cols = tl.arange(0, DP)
    w_g = load_weight(g_weight, cols, D, DP)
    w_l = load_weight(l_weight, cols, D, DP)
    dw_g = tl.zeros((R, DP), dtype=ACC)
    dw_l = tl.zeros((R, DP), dtype=ACC)
    dbias = tl.zeros((DP,), dtype=ACC)
    factor = 1.0
    if SCALE:
        factor = tl.load(scale + b).to(ACC)
    first = block_index() * BLOCKS
    for block in range(first, tl.minimum(first + BLOCKS, tl.cdiv(N, R))):
        left = N - block * R
        valid = rows < left
        token = b * N + block * R
        dy = load(grad + token * g_n + h * g_h, rows, cols, g_n, left, D, DP, 0.0).to(ACC)
        os = load(o + token * o_n + h * o_h, rows, cols, o_n, left, D, DP, 0.0).to(ACC)
        ls = load(local + token * l_n + h * l_h, rows, cols, l_n, left, D, DP, 0.0).to(ACC)
        zs = load(gate + token * z_n + h * z_h, rows, cols, z_n, left, D, DP, 0.0).to(ACC)
        inverse_o = inverse_rms(os, valid, eps, D)
        inverse_l = inverse_rms(ls, valid, eps, D)
        normal_o = os * inverse_o
        normal_l = ls * inverse_l
        difference = normal_o * w_g - normal_l * w_l
        share = sigmoid(zs)
        to = (token * H + h) * D
        if SCALE:
            dy *= factor
        if ACT or MIX:
            y = normal_l * w_l + share * difference
            if ACT:
                on = sigmoid(y)
                dy *= on + on * y * (1.0 - on)
                y *= on
            if MIX:
                store(out + to, y * factor, rows, cols, H * D, left, D, DP)
        dy_o = dy * share
        dy_l = dy - dy_o
        dw_g += dy_o * normal_o
        dw_l += dy_l * normal_l
        dzs = dy_o * (difference - share * difference)
        store(dgate + token * dz_n + h * dz_h, dzs, rows, cols, dz_n, left, D, DP)
        if MIX:
            dbias += tl.sum(dzs, axis=0)
        dos = dnormalize(dy_o * w_g, normal_o, inverse_o, D)
        store(do + to, dos, rows, cols, H * D, left, D, DP)
        dls = dnormalize(dy_l * w_l, normal_l, inverse_l, D)
        store(dlocal + to, dls, rows, cols, H * D, left, D, DP)
    instances = tl.num_programs(0) * blocks()
    partial = dweights + (bh * blocks() + block_index()) * D + cols
    tl.store(partial, tl.sum(dw_g, axis=0), mask=cols < D)
    partial += instances.to(tl.int64) * D
    tl.store(partial, tl.sum(dw_l, axis=0), mask=cols < D)
    if MIX:
        tl.store(partial + instances.to(tl.int64) * D, dbias, mask=cols < D)


def _sizes(o: Tensor, tile: int) -> tuple[tuple[int, int, int], dict]:
    """Grid and constants of a kernel."""
    batch, num_tokens, heads, width = o.shape
    padded = power_of_2(width)
    rows = min(tile // padded, power_of_2(num_tokens))
    grid = by_blocks(batch * heads, cdiv(num_tokens, rows * BLOCKS))
    return grid, dict(D=width, R=rows, DP=padded, BLOCKS=BLOCKS, num_warps=1, num_stages=1)


def gate_forward(
    o: Tensor,
    local: Tensor,
    gate: Tensor,
    g_weight: Tensor,
    l_weight: Tensor,
    eps: float,
    act: bool,
) -> Tensor:
    """``[B, N, H, D]``, contiguous, in the dtype of o; the inputs are read by their strides."""
    out = torch.empty(o.shape, dtype=o.dtype, device=o.device)
    if o.shape[0] == 0:
        return out
    grid, sizes = _sizes(o, TILE)
    inputs = tuple(map(by_tokens, (o, local, gate)))
    with device_of(o):
        blend_kernel[grid](
            *inputs, g_weight.contiguous(), l_weight.contiguous(), out, *o.shape[1:3], eps,
            strides(*inputs), ACT=act, **sizes,
        )  # fmt: skip
    return out


def gate_backward(
    grad: Tensor,
    o: Tensor,
    local: Tensor,
    gate: Tensor,
    g_weight: Tensor,
    l_weight: Tensor,
    eps: float,
    act: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the five inputs from the output's, each like its input, contiguous."""
    dgate = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    tensors = (grad, o, local, gate, g_weight, l_weight)
    do, dlocal, partial = _gradients(tensors, None, dgate, None, eps, act)
    weights = (p.sum((0, 1, 2)).to(w.dtype) for p, w in zip(partial, tensors[4:], strict=True))
    return do, dlocal, dgate, *weights


def _fake_backward_into(grad, o, local, gate, g_weight, l_weight, scale, dgate, eps, act):
    out = o.new_empty(o.shape, dtype=dgate.dtype)
    sums = o.new_empty(3, *o.shape[2:], dtype=SCRATCH)
    return out, o.new_empty(o.shape), local.new_empty(local.shape), sums


@operator("locality_gate_backward_into", _fake_backward_into, mutates=["dgate"])
def gate_backward_into(
    grad: Tensor,
    o: Tensor,
    local: Tensor,
    gate: Tensor,
    g_weight: Tensor,
    l_weight: Tensor,
    scale: Tensor | None,
    dgate: Tensor,
    eps: float,
    act: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output in dgate's dtype; gradients of o and local; and ``[3, H, D]``: of both weights, by
    heads, and of the gate's bias.

    That of the gate is written to ``dgate``, by its strides. All are times ``scale [B]``.
    """
    if dgate.shape[0] and by_tokens(dgate) is not dgate:
        raise ValueError(f"dgate has strides that the kernel cannot write to: {dgate.stride()}")
    out = torch.empty(o.shape, dtype=dgate.dtype, device=o.device)
    tensors = (grad, o, local, gate, g_weight, l_weight)
    do, dlocal, partial = _gradients(tensors, scale, dgate, out, eps, act)
    return out, do, dlocal, partial.sum((1, 3))


def _gradients(
    tensors: tuple[Tensor, ...],
    scale: Tensor | None,
    dgate: Tensor,
    out: Tensor | None,
    eps: float,
    act: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of o and local, and ``[2 or 3, B, H, instances, D]``: the kernel's partial sums."""
    *inputs, g_weight, l_weight = tensors
    o, local = inputs[1:3]
    do, dlocal = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (o, local))
    batch, num_tokens, heads, width = o.shape
    grid, sizes = _sizes(o, GRADIENT_TILE)
    sums = 2 if out is None else 3
    partial = torch.empty(
        sums, batch, heads, grid[1] * grid[2], width, dtype=SCRATCH, device=o.device
    )
    if batch == 0:
        return do, dlocal, partial
    inputs = [by_tokens(x) for x in inputs]
    with device_of(o):
        blend_gradient_kernel[grid](
            *inputs, g_weight.contiguous(), l_weight.contiguous(), scale, do, dlocal, dgate, out,
            partial, num_tokens, heads, eps, strides(*inputs, dgate), ACT=act,
            MIX=out is not None, SCALE=scale is not None, **sizes,
        )  # fmt: skip
    return do, dlocal, partial
