"""Bidirectional gated linear attention chunk by chunk, in plain PyTorch.

Notation, per chunk of C tokens and per key channel, with a = log alpha:

    P_t = a_f[0] + ... + a_f[t]        running sum of the forward gate, inclusive
    E_t = a_b[0] + ... + a_b[t-1]      running sum of the backward gate, exclusive

Inside a chunk both directions are one matrix,

    A[t, s] = (q_t * exp(P_t - P_mid)) . (k_s * exp(P_mid - P_s))      s <= t
    A[t, s] = (q_t * exp(E_mid - E_t)) . (k_s * exp(E_s - E_mid))      s >= t   (diagonal: both)

and one product A v. The split at the middle token ("anchor") keeps both factors in range as long
as the gates of one chunk do not close too far; if they do, shorter chunks are used. What enters
from other chunks is carried by one state per direction and chunk, seen from the chunk's anchor:

    T_f[m+1] = c_f[m] (T_f[m] + U_f[m])        T_b[m] = c_b[m] (T_b[m+1] + U_b[m+1])

with U[m] = sum_s k_s exp(..) v_s^T and c[m] the decay between the anchors of chunks m and m+1. The
gradients of T obey the same recurrence with the direction reversed, so one scan serves all four.

Only the inputs are saved for the backward pass; everything else is computed again.
"""

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference import GATE_LOGIT_NORMALIZER

CHUNK = 64
MIN_CHUNK = 4
LOG2_E = math.log2(math.e)
ATTENTION_BLOCK = 2**18  # entries of A made at a time: 1 MiB in float32 stays in cache
OPEN_GATE_LOGIT = 200.0  # logsigmoid of it is 0 in float32: a padded token decays nothing


class _Chunks(NamedTuple):
    """Operands of one call in chunk layout; G = B * M * H batched matrices."""

    size: int  # C, tokens a chunk
    q: Tensor  # [G, C, 2K]: q exp(P_t - P_mid) | q exp(E_mid - E_t)
    k: Tensor  # [G, C, 2K]: k exp(P_mid - P_s) | k exp(E_s - E_mid)
    v: Tensor  # [G, C, V]
    exp_f: Tensor  # [B, M, H, C, K] view: exp(P_t - P_mid)
    exp_b: Tensor  # [B, M, H, C, K] view: exp(E_mid - E_t)
    log_c: Tensor  # [B, M - 1, H, 2K]: log decay between neighbouring anchors


def _log_sigmoid(z: Tensor) -> Tensor:
    """min(z, 0) - log(1 + e^-|z|), with log(1 + x) = 2 atanh(x / (2 + x)).

    As accurate as `torch.nn.functional.logsigmoid` and 2 to 3 times faster on a CPU, where log1p is
    the slow part. e^|z| may overflow: its reciprocal is then 0, which is right.
    """
    x = z.abs().mul_(LOG2_E).exp2_().mul_(2).add_(1).reciprocal_().atanh_()
    return z.clamp(max=0).sub_(x, alpha=2)


@functools.lru_cache(maxsize=64)
def _running_sums(size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Matrices [C + 1, C] that turn log-sigmoids into anchored running sums, by one product.

    In units of log 2, as exp2 is the faster one. Forward: rows P_t - P_mid, last row P_mid.
    Backward: rows E_mid - E_t for t = 0 ... C.
    """
    mid = size // 2
    ones = torch.full((size + 1, size), LOG2_E / GATE_LOGIT_NORMALIZER, dtype=dtype, device=device)
    inclusive, exclusive = ones.tril(), ones.tril(-1)
    forward = inclusive - inclusive[mid]
    forward[size] = inclusive[mid]
    return forward, exclusive[mid] - exclusive


def _chunk_size(num_tokens: int, target: int) -> int:
    """The chunk length nearest to ``target`` that divides N, or the one that pads least."""
    if num_tokens <= target:
        return num_tokens
    near = range(max(target * 3 // 4, 1), target * 5 // 4 + 1)
    divisors = [size for size in near if num_tokens % size == 0]
    if divisors:
        return min(divisors, key=lambda size: abs(size - target))
    return math.ceil(num_tokens / math.ceil(num_tokens / target))


def _pad(x: Tensor, num_tokens: int, value: float = 0.0) -> Tensor:
    missing = num_tokens - x.shape[1]
    return F.pad(x, (0, 0, 0, 0, 0, missing), value=value) if missing else x


def _heads_first(x: Tensor, size: int) -> Tensor:
    """``[B, N, H, D]`` -> view ``[B, M, H, C, D]``."""
    return x.unflatten(1, (-1, size)).transpose(2, 3)


def _tokens_first(x: Tensor, batch: int, heads: int, num_tokens: int, scale: float) -> Tensor:
    """``[G, C, D]`` -> ``scale * x`` as contiguous ``[B, N, H, D]``, padding cut off."""
    x = x.view(batch, -1, heads, *x.shape[1:])
    out = x.new_empty(batch, x.shape[1], x.shape[3], heads, x.shape[4])
    torch.mul(x.transpose(2, 3), scale, out=out)
    return out.flatten(1, 2)[:, :num_tokens]


def _prepare(q: Tensor, k: Tensor, v: Tensor, gate_f: Tensor, gate_b: Tensor) -> _Chunks:
    """Apply the gates to q and k, in the longest chunks that they allow."""
    batch, num_tokens, heads, width = q.shape
    # 2^limit times any sane activation stays finite; beyond it use shorter chunks.
    limit = 800.0 if q.dtype == torch.float64 else 80.0
    target = CHUNK
    while True:
        size = _chunk_size(num_tokens, target)
        padded = math.ceil(num_tokens / size) * size
        sums_f, sums_b = _running_sums(size, q.dtype, q.device)
        x = []
        for gate, sums in ((gate_f, sums_f), (gate_b, sums_b)):
            log_sigmoid = _log_sigmoid(_pad(gate, padded, OPEN_GATE_LOGIT).flatten(2))
            if target <= MIN_CHUNK:
                # 2^(-limit / 3) is nothing beside a token's own weight of 1.
                floor = -limit / (MIN_CHUNK - 1) * GATE_LOGIT_NORMALIZER / LOG2_E
                log_sigmoid.clamp_(min=floor)
            blocks = log_sigmoid.view(-1, size, heads * width)
            x.append(torch.bmm(sums.expand(blocks.shape[0], -1, -1), blocks))
        x_f, x_b = x  # [B * M, C + 1, H * K]
        span = torch.maximum(x_f[:, 0] - x_f[:, size - 1], x_b[:, size - 1] - x_b[:, 0])
        # A NaN input compares false and ends, as NaN, with the shortest chunk.
        if target <= MIN_CHUNK or span.max() <= limit:
            break
        target //= 2

    to_next = torch.stack((x_f[:, size - 1], -x_b[:, size]), dim=1)  # anchor to right end
    from_start = torch.stack((x_f[:, size], x_b[:, 0]), dim=1)  # left end to anchor
    chunked = (batch, -1, 2, heads, width)
    log_c = to_next.view(chunked)[:, :-1] + from_start.view(chunked)[:, 1:]
    log_c = log_c.transpose(2, 3).flatten(3)

    exp_f, exp_b = (
        e[:, :size].exp2_().view(batch, -1, size, heads, width).transpose(2, 3) for e in (x_f, x_b)
    )
    q, k, v = (_heads_first(_pad(t, padded), size) for t in (q, k, v))
    q2, k2 = (q.new_empty(*q.shape[:-1], 2 * width) for _ in range(2))
    for half, e in ((slice(0, width), exp_f), (slice(width, None), exp_b)):
        torch.mul(q, e, out=q2[..., half])
        torch.div(k, e, out=k2[..., half])
    q2, k2 = q2.flatten(0, 2), k2.flatten(0, 2)
    v = v.reshape(-1, size, v.shape[-1])
    return _Chunks(size, q2, k2, v, exp_f, exp_b, log_c)


@functools.lru_cache(maxsize=64)
def _lower(size: int, device: torch.device) -> Tensor:
    return torch.ones(size, size, dtype=torch.bool, device=device).tril()


def _attention(q: Tensor, k: Tensor) -> Tensor:
    """A ``[G, C, C]`` of both directions from ``[G, C, 2K]``."""
    width = q.shape[-1] // 2
    a = torch.bmm(q[..., :width], k[..., :width].mT)
    upper = torch.bmm(q[..., width:], k[..., width:].mT)
    torch.where(_lower(a.shape[-1], a.device), a, upper, out=a)
    a.diagonal(dim1=1, dim2=2).mul_(2)
    return a


def _attention_blocks(count: int, size: int) -> Iterator[slice]:
    """Slices of G for which A stays small."""
    step = max(ATTENTION_BLOCK // size**2, 1)
    return (slice(start, start + step) for start in range(0, count, step))


def _scan(x: Tensor, log_c: Tensor, y: Tensor, *, descending: bool) -> None:
    """y[m+1] = c[m] (y[m] + x[m]), y[0] = 0, over chunks; or from the last to the first.

    Two levels: groups of about sqrt(M) chunks side by side, then the groups in turn, so that the
    number of Python steps is 2 sqrt(M) and each works on a large tensor.

    Args:
        x: ``[B, M, H, K, V]``.
        log_c: ``[B, M - 1, H, K]``: log2 of the decay between chunks m and m + 1.
        y: like x, written to.
    """
    chunks = x.shape[1]

    def at(t: Tensor, start: int, step: int, count: int) -> Tensor:
        """Chunks start, start + step, ... in scan order."""
        if descending:
            first = t.shape[1] - 1 - start - (count - 1) * step
            return t[:, first : t.shape[1] - start : step]
        return t[:, start : start + (count - 1) * step + 1 : step]

    group = math.isqrt(chunks)
    groups = math.ceil(chunks / group)
    decay = log_c.exp2().unsqueeze(-1)
    at(y, 0, group, groups).zero_()
    since_start = log_c.new_zeros(log_c.shape[0], chunks, *log_c.shape[2:])
    for i in range(1, group):
        # chunk i of every group that has one, from chunk i - 1 of the same group
        n = math.ceil((chunks - i) / group)
        here = at(y, i, group, n)
        torch.add(at(y, i - 1, group, n), at(x, i - 1, group, n), out=here)
        here.mul_(at(decay, i - 1, group, n))
        before, c = at(since_start, i - 1, group, n), at(log_c, i - 1, group, n)
        torch.add(before, c, out=at(since_start, i, group, n))
    since_start = since_start.exp2_().unsqueeze(-1)
    for g in range(1, groups):
        # the state that the group before hands over, and what remains of it at each chunk
        start, n = g * group, min(group, chunks - g * group)
        handed = (at(y, start - 1, 1, 1) + at(x, start - 1, 1, 1)) * at(decay, start - 1, 1, 1)
        here = at(y, start, 1, n)
        torch.addcmul(here, at(since_start, start, 1, n), handed, out=here)


def _states(x: Tensor, c: _Chunks, *, reverse: bool) -> Tensor:
    """Scan ``[G, 2K, V]``: forward half left to right, backward half right to left.

    ``reverse`` swaps the two, as the gradients need it.
    """
    batch, _, heads, width = c.log_c.shape
    y = torch.empty_like(x)
    x5, y5 = (t.view(batch, -1, heads, *t.shape[1:]) for t in (x, y))
    for half, descending in (
        (slice(0, width // 2), reverse),
        (slice(width // 2, None), not reverse),
    ):
        _scan(x5[..., half, :], c.log_c[..., half], y5[..., half, :], descending=descending)
    return y


def chunked_forward(q: Tensor, k: Tensor, v: Tensor, gate_f: Tensor, gate_b: Tensor) -> Tensor:
    """``[B, N, H, V]`` from ``[B, N, H, K]`` (q, k, gate logits) and ``[B, N, H, V]`` (v)."""
    batch, num_tokens, heads, width = q.shape
    c = _prepare(q, k, v, gate_f, gate_b)
    out = torch.empty_like(c.v)
    for g in _attention_blocks(len(c.v), c.size):
        torch.bmm(_attention(c.q[g], c.k[g]), c.v[g], out=out[g])
    if c.size < num_tokens:
        out.baddbmm_(c.q, _states(torch.bmm(c.k.mT, c.v), c, reverse=False))
    return _tokens_first(out, batch, heads, num_tokens, 0.5 * width**-0.5)


def chunked_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, gate_f: Tensor, gate_b: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and both gate logits, each shaped like its input.

    With x_t = P_t - P_mid the only exponent of token t in its chunk, the gate's gradient is a
    running sum from the right over q * dq - k * dk, plus what the state that leaves the chunk
    carries on, sum_v T * dT: chunk-local, so its error does not grow with N.
    """
    batch, num_tokens, heads, width = q.shape
    c = _prepare(q, k, v, gate_f, gate_b)
    padded = c.v.shape[0] * c.size // (batch * heads)
    grad = _heads_first(_pad(grad, padded), c.size) * (0.5 * width**-0.5)
    grad = grad.reshape(-1, c.size, v.shape[-1])
    forward, backward = (..., slice(0, width)), (..., slice(width, None))

    dv = torch.empty_like(c.v)
    dq_f, dq_b, dk_f, dk_b = (grad.new_empty(*grad.shape[:2], width) for _ in range(4))
    for g in _attention_blocks(len(c.v), c.size):
        torch.bmm(_attention(c.q[g], c.k[g]).mT, grad[g], out=dv[g])
        da_b = torch.bmm(grad[g], c.v[g].mT)
        da_f = da_b.tril()
        da_b.triu_()
        for da, dq, dk, half in ((da_f, dq_f, dk_f, forward), (da_b, dq_b, dk_b, backward)):
            torch.bmm(da, c.k[g][half], out=dq[g])
            torch.bmm(da.mT, c.q[g][half], out=dk[g])

    boundary = grad.new_zeros(2, batch, padded // c.size, heads, width)
    if c.size < num_tokens:
        states = _states(torch.bmm(c.k.mT, c.v), c, reverse=False)
        direct = torch.bmm(c.q.mT, grad)
        du = _states(direct, c, reverse=True)
        dv.baddbmm_(c.k, du)
        dq_f.baddbmm_(grad, states[:, :width].mT)
        dq_b.baddbmm_(grad, states[:, width:].mT)
        dk_f.baddbmm_(c.v, du[:, :width].mT)
        dk_b.baddbmm_(c.v, du[:, width:].mT)
        crossing = direct.add_(du).mul_(states).sum(dim=-1).view(batch, -1, heads, 2 * width)
        boundary[0, :, :-1] = crossing[:, 1:, :, :width]  # leaves chunk m to enter m + 1
        boundary[1] = crossing[..., width:]  # enters chunk m from the right

    def token_rows(x: Tensor) -> Tensor:
        """``[G, C, K]`` -> view ``[B, M, C, H, K]``."""
        return x.unflatten(0, (batch, -1, heads)).transpose(2, 3)

    def finish(x: Tensor, like: Tensor) -> Tensor:
        return x.flatten(1, 2)[:, :num_tokens].to(like.dtype)

    exp_f, exp_b = c.exp_f.transpose(2, 3), c.exp_b.transpose(2, 3)
    dgates = []
    for gate, i, dq, dk, half in (
        (gate_f, 0, dq_f, dk_f, forward),
        (gate_b, 1, dq_b, dk_b, backward),
    ):
        u = torch.empty_like(exp_f, memory_format=torch.contiguous_format)
        torch.mul(token_rows(dq), token_rows(c.q[half].contiguous()), out=u)
        u.addcmul_(token_rows(dk), token_rows(c.k[half].contiguous()), value=-1)
        u = u.view(-1, c.size, heads * width)
        # dP = u and the forward sum is inclusive; dE = -u and the backward sum is exclusive
        sums = torch.ones(c.size, c.size, dtype=u.dtype, device=u.device).triu(i) * (1 - 2 * i)
        edge = boundary[i].reshape(-1, 1, heads * width).expand_as(u)
        du_log = torch.baddbmm(edge, sums.expand(u.shape[0], -1, -1), u)
        dgate = finish(du_log.view(batch, -1, c.size, heads, width), gate)
        dgates.append(dgate * torch.sigmoid(-gate).div_(GATE_LOGIT_NORMALIZER))

    dq = (token_rows(dq_f) * exp_f).addcmul_(token_rows(dq_b), exp_b)
    dk = (token_rows(dk_f) / exp_f).addcdiv_(token_rows(dk_b), exp_b)
    dv = _tokens_first(dv, batch, heads, num_tokens, 1.0)
    return finish(dq, q), finish(dk, k), dv, dgates[0], dgates[1]
