"""A rival of the operator's benchmark: the recurrence itself in one Triton kernel, forward only.

What the public ViG code does at inference: one program per head (and 32 value channels) holds both
states and walks the sequence from both ends at once, token by token.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

VALUE_BLOCK = 32


@triton.jit
def _token(q, k, v, gate, t, q_t, k_t, v_t, gate_t, cols_k, cols_v, in_k, in_v, state):
    """The state ``[KP, BV]`` after token t, and that token's unscaled output ``[BV]``."""
    qs = tl.load(q + t * q_t + cols_k, mask=in_k, other=0.0).to(tl.float32)
    ks = tl.load(k + t * k_t + cols_k, mask=in_k, other=0.0).to(tl.float32)
    vs = tl.load(v + t * v_t + cols_v, mask=in_v, other=0.0).to(tl.float32)
    logit = tl.load(gate + t * gate_t + cols_k, mask=in_k, other=0.0).to(tl.float32)
    log_sigmoid = tl.minimum(logit, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(logit)))
    state = state * tl.exp(log_sigmoid * 0.0625)[:, None] + ks[:, None] * vs[None, :]
    return state, tl.sum(qs[:, None] * state, axis=0)


@triton.jit
def _pair(
    q, k, v, gate_f, gate_b, i, j, q_t, k_t, v_t, f_t, b_t, cols_k, cols_v, in_k, in_v, left, right
):
    """Token i of the scan from the left and token j of the one from the right."""
    left, o_i = _token(q, k, v, gate_f, i, q_t, k_t, v_t, f_t, cols_k, cols_v, in_k, in_v, left)
    right, o_j = _token(q, k, v, gate_b, j, q_t, k_t, v_t, b_t, cols_k, cols_v, in_k, in_v, right)
    return left, right, o_i, o_j


@triton.jit
def _store(out, x, mask):
    tl.store(out, x.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["T"])
def _recurrent_kernel(
    q,
    k,
    v,
    gate_f,
    gate_b,
    out,
    T,
    H,
    K,
    V,
    scale,
    q_b,
    q_t,
    q_h,
    k_b,
    k_t,
    k_h,
    v_b,
    v_t,
    v_h,
    f_b,
    f_t,
    f_h,
    b_b,
    b_t,
    b_h,
    KP: tl.constexpr,
    BV: tl.constexpr,
):
    """Grid (B H, value blocks). Reads every input twice, once a direction, and writes out twice."""
    bh = tl.program_id(0).to(tl.int64)
    b, h = bh // H, bh % H
    q += b * q_b + h * q_h
    k += b * k_b + h * k_h
    v += b * v_b + h * v_h
    gate_f += b * f_b + h * f_h
    gate_b += b * b_b + h * b_h
    row = H * V
    cols_k = tl.arange(0, KP)
    cols_v = tl.program_id(1) * BV + tl.arange(0, BV)
    out += (b * T * H + h) * V + cols_v
    in_k, in_v = cols_k < K, cols_v < V
    left = tl.zeros((KP, BV), dtype=tl.float32)  # state of the scan from the left
    right = tl.zeros((KP, BV), dtype=tl.float32)
    # Up to the middle each token is met for the first time: its output so far is stored.
    for i in range(0, T // 2):
        j = T - 1 - i
        left, right, o_i, o_j = _pair(
            q, k, v, gate_f, gate_b, i, j, q_t, k_t, v_t, f_t, b_t,
            cols_k, cols_v, in_k, in_v, left, right,
        )  # fmt: skip
        _store(out + i * row, o_i * scale, in_v)
        _store(out + j * row, o_j * scale, in_v)
    if T % 2 == 1:
        i = T // 2
        left, right, o_i, o_j = _pair(
            q, k, v, gate_f, gate_b, i, i, q_t, k_t, v_t, f_t, b_t,
            cols_k, cols_v, in_k, in_v, left, right,
        )  # fmt: skip
        _store(out + i * row, (o_i + o_j) * scale, in_v)
    tl.debug_barrier()  # what other threads stored is read from here on
    for i in range(T - T // 2, T):
        j = T - 1 - i
        left, right, o_i, o_j = _pair(
            q, k, v, gate_f, gate_b, i, j, q_t, k_t, v_t, f_t, b_t,
            cols_k, cols_v, in_k, in_v, left, right,
        )  # fmt: skip
        half_i = tl.load(out + i * row, mask=in_v, other=0.0).to(tl.float32)
        half_j = tl.load(out + j * row, mask=in_v, other=0.0).to(tl.float32)
        _store(out + i * row, half_i + o_i * scale, in_v)
        _store(out + j * row, half_j + o_j * scale, in_v)


def recurrent_gla(q: Tensor, k: Tensor, v: Tensor, gate_f: Tensor, gate_b: Tensor) -> Tensor:
    """Both directions. q, k, gate logits ``[B, N, H, K]``, v ``[B, N, H, V]`` (channels adjacent
    in memory) -> ``[B, N, H, V]``; states are float32, a half sum is rounded to v's dtype once."""
    batch, num_tokens, heads, width = q.shape
    inputs = (q, k, v, gate_f, gate_b)
    out = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    block = min(VALUE_BLOCK, triton.next_power_of_2(v.shape[-1]))
    _recurrent_kernel[(batch * heads, triton.cdiv(v.shape[-1], block))](
        *inputs, out, num_tokens, heads, width, v.shape[-1], 0.5 / math.sqrt(width),
        *(stride for x in inputs for stride in x.stride()[:3]),
        KP=triton.next_power_of_2(width), BV=block, num_warps=1,
    )  # fmt: skip
    return out
