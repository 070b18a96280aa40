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

from .launch import SCRATCH, cdiv, device_of, power_of_2
from .tile import ACC, load_tile, place, sigmoids, store_tile

TILE = 2048  # entries of an instance's tile
PER_THREAD = 8  # entries: one load of 16 bytes in bf16


@triton.jit
def load_weight(weight, cols, D):
    return tl.load(weight + cols, mask=cols < D, other=0.0).to(ACC)[None, :]


@triton.jit
def normalize(x, valid, D, eps):
    """x / rms(x) and 1 / rms(x) of each row; 0 for rows outside the tensor, also with eps = 0."""
    inverse = tl.where(valid, tl.rsqrt(tl.sum(x * x, axis=1) / D + eps), 0.0)[:, None]
    return x * inverse, inverse


@triton.jit
def dnormalize(grad, normal, inverse, D):
    """Gradient of x from that of x / rms(x)."""
    return inverse * (grad - normal * (tl.sum(grad * normal, axis=1) / D)[:, None])


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
    D,
    eps,
    o_b,
    o_n,
    o_h,
    o_d,
    l_b,
    l_n,
    l_h,
    l_d,
    z_b,
    z_n,
    z_h,
    z_d,
    ACT: tl.constexpr,
    R: tl.constexpr,
    DP: tl.constexpr,
):
    """Grid (B blocks H); an instance owns R tokens of one head, all channels."""
    b, block, h = place(tl.cdiv(N, R), H)
    start = block * R
    left = N - start
    rows = tl.arange(0, R)
    cols = tl.arange(0, DP)
    valid = rows < left
    os = load_tile(o + b * o_b + h * o_h + start * o_n, rows, cols, o_n, o_d, left, D)
    ls = load_tile(local + b * l_b + h * l_h + start * l_n, rows, cols, l_n, l_d, left, D)
    zs = load_tile(gate + b * z_b + h * z_h + start * z_n, rows, cols, z_n, z_d, left, D)
    w_g = load_weight(g_weight, cols, D)
    w_l = load_weight(l_weight, cols, D)
    normal_o, _ = normalize(os, valid, D, eps)
    normal_l, _ = normalize(ls, valid, D, eps)
    share_o, share_l = sigmoids(zs)
    y = normal_o * w_g * share_o + normal_l * w_l * share_l
    if ACT:
        on, _ = sigmoids(y)
        y *= on
    store_tile(out + ((b * N + start) * H + h) * D, y, rows, cols, H * D, left, D)


@triton.jit(do_not_specialize=["N"])
def blend_gradient_kernel(
    grad,
    o,
    local,
    gate,
    g_weight,
    l_weight,
    do,
    dlocal,
    dgate,
    dweights,
    N,
    H,
    D,
    eps,
    g_b,
    g_n,
    g_h,
    g_d,
    o_b,
    o_n,
    o_h,
    o_d,
    l_b,
    l_n,
    l_h,
    l_d,
    z_b,
    z_n,
    z_h,
    z_d,
    ACT: tl.constexpr,
    R: tl.constexpr,
    DP: tl.constexpr,
):
    """Grid and tiles of `blend_kernel`; ``dweights [2, instances, D]`` takes partial sums."""
    b, block, h = place(tl.cdiv(N, R), H)
    start = block * R
    left = N - start
    rows = tl.arange(0, R)
    cols = tl.arange(0, DP)
    valid = rows < left
    dy = load_tile(grad + b * g_b + h * g_h + start * g_n, rows, cols, g_n, g_d, left, D)
    os = load_tile(o + b * o_b + h * o_h + start * o_n, rows, cols, o_n, o_d, left, D)
    ls = load_tile(local + b * l_b + h * l_h + start * l_n, rows, cols, l_n, l_d, left, D)
    zs = load_tile(gate + b * z_b + h * z_h + start * z_n, rows, cols, z_n, z_d, left, D)
    w_g = load_weight(g_weight, cols, D)
    w_l = load_weight(l_weight, cols, D)
    normal_o, inverse_o = normalize(os, valid, D, eps)
    normal_l, inverse_l = normalize(ls, valid, D, eps)
    share_o, share_l = sigmoids(zs)
    if ACT:
        y = normal_o * w_g * share_o + normal_l * w_l * share_l
        on, off = sigmoids(y)
        dy *= on * (1.0 + y * off)
    dz = dy * (normal_o * w_g - normal_l * w_l) * share_o * share_l
    dy_o = dy * share_o
    dy_l = dy * share_l
    dos = dnormalize(dy_o * w_g, normal_o, inverse_o, D)
    dls = dnormalize(dy_l * w_l, normal_l, inverse_l, D)
    offset = ((b * N + start) * H + h) * D
    store_tile(do + offset, dos, rows, cols, H * D, left, D)
    store_tile(dlocal + offset, dls, rows, cols, H * D, left, D)
    store_tile(dgate + offset, dz, rows, cols, H * D, left, D)
    partial = dweights + tl.program_id(0).to(tl.int64) * D + cols
    tl.store(partial, tl.sum(dy_o * normal_o, axis=0), mask=cols < D)
    partial += tl.num_programs(0).to(tl.int64) * D
    tl.store(partial, tl.sum(dy_l * normal_l, axis=0), mask=cols < D)


def _sizes(o: Tensor) -> tuple[tuple[int], dict]:
    """Grid and constants of both kernels."""
    batch, num_tokens, heads, width = o.shape
    padded = power_of_2(width)
    rows = min(TILE // padded, power_of_2(num_tokens))
    warps = max(rows * padded // (32 * PER_THREAD), 1)
    grid = (batch * cdiv(num_tokens, rows) * heads,)
    return grid, dict(R=rows, DP=padded, num_warps=warps, num_stages=1)


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
    grid, sizes = _sizes(o)
    with device_of(o):
        blend_kernel[grid](
            o, local, gate, g_weight.contiguous(), l_weight.contiguous(), out, *o.shape[1:], eps,
            *o.stride(), *local.stride(), *gate.stride(), ACT=act, **sizes,
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
    inputs = (o, local, gate)
    grads = tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in inputs)
    weights = (g_weight, l_weight)
    if o.shape[0] == 0:
        return (*grads, *(torch.zeros_like(w) for w in weights))
    grid, sizes = _sizes(o)
    partial = torch.empty(2, *grid, o.shape[-1], dtype=SCRATCH, device=o.device)
    with device_of(o):
        blend_gradient_kernel[grid](
            grad, *inputs, *(w.contiguous() for w in weights), *grads, partial, *o.shape[1:], eps,
            *grad.stride(), *(stride for x in inputs for stride in x.stride()), ACT=act, **sizes,
        )  # fmt: skip
    return (*grads, *(p.sum(dim=0).to(w.dtype) for p, w in zip(partial, weights, strict=True)))
