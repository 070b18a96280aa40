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

Only the inputs are saved for the backward pass; everything else is computed again. Gates and A are
made for a few chunks at a time, small enough for a CPU's cache; the gated q and k, a copy of v and
the states are held for all chunks.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .naive import GATE_LOGIT_NORMALIZER

CHUNK = 64
MIN_CHUNK = 4
BLOCK = 2**18  # entries of a temporary: 1 MiB in float32 stays in a CPU's caches
LOG2_E = math.log2(math.e)
OPEN_GATE_LOGIT = 200.0  # logsigmoid of it is 0 in float32: a padded token decays nothing


class _Chunks(NamedTuple):
    """Operands of one call, chunk by chunk; R = B * M rows of chunks."""

    size: int  # C, tokens a chunk
    aq: Tensor  # [R, H, C, C + 2K]: room for A | q
    q: Tensor  # [R, H, C, 2K]: q exp(P_t - P_mid) | q exp(E_mid - E_t), view of aq
    k: Tensor  # [R, H, C, 2K]: k exp(P_mid - P_s) | k exp(E_s - E_mid)
    vt: Tensor  # [R, H, C + 2K, V]: v above room for the states
    v: Tensor  # [R, H, C, V], view of vt
    local: Tensor  # [R, H, 2K, V]: room for U
    decays: Tensor | None  # [2, R, C, H, K]: the factors of q above, for the backward pass
    log_c: Tensor  # [B, M - 1, H, 2K]: log2 of the decay between neighbouring anchors


def _closing(gates: tuple[Tensor, Tensor], floor: float | None) -> Tensor:
    """-log2 of both gates, stacked: log(1 + e^-z) / 16 in units of log 2, as exp2 is faster.

    Half the passes over memory of `F.logsigmoid` on a CPU. Without ``floor``, logits under -88 give
    inf in float32; with it, results are exact down to -log2(alpha) = floor.
    """
    x = gates[0].new_empty(2, *gates[0].shape)
    for gate, out in zip(gates, x, strict=True):
        torch.mul(gate, -LOG2_E, out=out)
    if floor is None:
        return x.exp2_().log1p_().mul_(LOG2_E / GATE_LOGIT_NORMALIZER)
    # log(1 + e^-z) = max(-z, 0) + log(1 + e^-|z|)
    small = x.abs().neg_().exp2_().log1p_()
    x.clamp_(min=0).add_(small, alpha=LOG2_E).div_(GATE_LOGIT_NORMALIZER)
    return x.clamp_(max=floor)


def _chunk_size(num_tokens: int, target: int) -> int:
    """The chunk length nearest to ``target`` that divides N, or the one that pads least."""
    if num_tokens <= target:
        return num_tokens
    near = range(max(target * 3 // 4, 1), target * 5 // 4 + 1)
    divisors = [size for size in near if num_tokens % size == 0]
    if divisors:
        return min(divisors, key=lambda size: abs(size - target))
    return math.ceil(num_tokens / math.ceil(num_tokens / target))


def _rows(x: Tensor, size: int, value: float = 0.0) -> Tensor:
    """``[B, N, H, D]`` -> ``[R, C, H, D]``, a view where N is a multiple of C and x allows it."""
    missing = -x.shape[1] % size
    if missing:
        x = F.pad(x, (0, 0, 0, 0, 0, missing), value=value)
    return x.reshape(-1, size, *x.shape[2:])


def _room(x: Tensor, size: int) -> Tensor:
    """``[R, C, H, D]`` to write a result shaped like x into: x itself unless padding is needed."""
    batch, num_tokens, *rest = x.shape
    if num_tokens % size == 0:
        return x.view(-1, size, *rest)
    return x.new_empty(batch * math.ceil(num_tokens / size), size, *rest)


def _unpad(room: Tensor, x: Tensor) -> None:
    """Bring into x what was written to its room."""
    if room.data_ptr() != x.data_ptr():
        x.copy_(room.view(x.shape[0], -1, *x.shape[2:])[:, : x.shape[1]])


def _blocks(rows: int, entries_a_row: int) -> Iterator[slice]:
    """Slices of rows for which a temporary of so many entries a row stays small."""
    step = max(BLOCK // entries_a_row, 1)
    return (slice(start, start + step) for start in range(0, rows, step))


def _prepare(
    q: Tensor, k: Tensor, v: Tensor, gate_f: Tensor, gate_b: Tensor, keep_decays: bool
) -> _Chunks:
    """Apply the gates to q and k, in the longest chunks that they allow."""
    target = CHUNK
    while True:
        size = _chunk_size(q.shape[1], target)
        chunks = _apply_gates(q, k, v, gate_f, gate_b, size, target <= MIN_CHUNK, keep_decays)
        if chunks is not None:
            return chunks
        target //= 2


def _apply_gates(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate_f: Tensor,
    gate_b: Tensor,
    size: int,
    shortest: bool,
    keep_decays: bool,
) -> _Chunks | None:
    """None where the gates close too far for chunks of this size, unless it is the shortest."""
    batch, _, heads, width = q.shape
    # 2^limit times any sane activation stays finite
    limit = 800.0 if q.dtype == torch.float64 else 80.0
    q, k, v = (_rows(x, size) for x in (q, k, v))
    gates = [_rows(gate, size, OPEN_GATE_LOGIT) for gate in (gate_f, gate_b)]
    mid = size // 2
    rows = q.shape[0]
    # One allocation: a C library gives many middle-sized ones back to the system each time, and
    # the page faults of getting them again cost up to a quarter of a model's time.
    shapes = [
        (rows, heads, size, size + 2 * width),
        (rows, heads, size, 2 * width),
        (rows, heads, size + 2 * width, v.shape[-1]),
        (rows, heads, 2 * width, v.shape[-1]),
    ]
    parts = q.new_empty(sum(map(math.prod, shapes))).split([math.prod(s) for s in shapes])
    aq, k2, vt, local = (x.view(shape) for x, shape in zip(parts, shapes, strict=True))
    q2, v2 = aq[..., size:], vt[:, :, :size]
    decays = q.new_empty(2, rows, size, heads, width) if keep_decays else None
    ends = q.new_empty(2, 2, rows, heads * width)  # anchor to right end, left end to anchor
    for r in _blocks(rows, size * heads * width):
        # 2^(-limit / 3) is nothing beside a token's own weight of 1
        floor = limit / (MIN_CHUNK - 1) if shortest else None
        closing = _closing((gates[0][r].flatten(2), gates[1][r].flatten(2)), floor)
        sums = torch.cumsum(closing, dim=2)
        total = sums[:, :, -1].neg()
        sums[1].sub_(closing[1])  # -P_t is inclusive, -E_t is not
        anchor = sums[:, :, mid].neg()
        # exponents of q: P_t - P_mid and E_mid - E_t
        torch.sub(-anchor[0].unsqueeze(1), sums[0], out=sums[0])
        sums[1].add_(anchor[1].unsqueeze(1))
        span = (sums[:, :, 0] - sums[:, :, -1]).abs_().max()
        if not shortest and not span <= limit:  # NaN ends, as NaN, with the shortest chunk
            return None
        torch.sub(total, anchor, out=ends[0, :, r])
        ends[1, :, r] = anchor
        decay = sums.exp2_().unflatten(-1, (heads, width))
        for i, half in enumerate((slice(0, width), slice(width, None))):
            torch.mul(q[r].transpose(1, 2), decay[i].transpose(1, 2), out=q2[r, ..., half])
            torch.div(k[r].transpose(1, 2), decay[i].transpose(1, 2), out=k2[r, ..., half])
        if decays is not None:
            decays[:, r] = decay
        v2[r] = v[r].transpose(1, 2)
    ends = ends.view(2, 2, batch, -1, heads, width)
    log_c = ends[0, :, :, :-1] + ends[1, :, :, 1:]  # [2, B, M - 1, H, K]
    log_c = log_c.permute(1, 2, 3, 0, 4).flatten(3)
    return _Chunks(size, aq, q2, k2, vt, v2, local, decays, log_c)


def _attention(aq: Tensor, k: Tensor) -> Tensor:
    """Fill A of both directions into its room in ``[G, C, C + 2K]`` from q there and k."""
    width = k.shape[-1] // 2
    a, q_f, q_b = aq.split((k.shape[1], width, width), dim=-1)
    lower = torch.bmm(q_f, k[..., :width].mT).tril_()
    upper = torch.bmm(q_b, k[..., width:].mT).triu_()
    return torch.add(lower, upper, out=a)  # the diagonal counts for both directions


def _scan(x: Tensor, log_c: Tensor, y: Tensor, *, descending: bool) -> None:
    """y[m+1] = c[m] (y[m] + x[m]), y[0] = 0, over chunks; or from the last to the first.

    Args:
        x: ``[B, M, H, K, V]``.
        log_c: ``[B, M - 1, H, K]``: log2 of the decay between chunks m and m + 1.
        y: like x, written to.
    """
    decay = log_c.exp2().unsqueeze(-1)
    if descending:
        torch.mul(x[:, 1:], decay, out=y[:, :-1])
        states, factors = y.unbind(1)[::-1], decay.unbind(1)[::-1]
    else:
        torch.mul(x[:, :-1], decay, out=y[:, 1:])
        states, factors = y.unbind(1), decay.unbind(1)
    states[0].zero_()
    for before, after, c in zip(states[:-1], states[1:], factors, strict=True):
        after.addcmul_(before, c)


def _pairs(x: Tensor, y: Tensor, out: Tensor) -> Tensor:
    """sum_t x_t y_t^T in each chunk: ``[R, H, C, 2K]``, ``[R, H, C, V]`` -> ``[R, H, 2K, V]``."""
    torch.bmm(x.flatten(0, 1).mT, y.flatten(0, 1), out=out.flatten(0, 1))
    return out


def _states(local: Tensor, c: _Chunks, states: Tensor, *, reverse: bool) -> None:
    """Sum ``[R, H, 2K, V]`` up over the chunks before (forward half) and after (backward half).

    ``reverse`` swaps the two, as the gradients need it. Writes to ``states``, shaped like local.
    """
    batch, width = c.log_c.shape[0], c.log_c.shape[-1]
    local, states = (x.unflatten(0, (batch, -1)) for x in (local, states))
    for half, descending in (
        (slice(0, width // 2), reverse),
        (slice(width // 2, None), not reverse),
    ):
        _scan(local[..., half, :], c.log_c[..., half], states[..., half, :], descending=descending)


def chunked_forward(q: Tensor, k: Tensor, v: Tensor, gate_f: Tensor, gate_b: Tensor) -> Tensor:
    """``[B, N, H, V]`` from ``[B, N, H, K]`` (q, k, gate logits) and ``[B, N, H, V]`` (v)."""
    out = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    with torch.inference_mode():  # hundreds of small calls: autograd's bookkeeping costs a tenth
        _forward(q, k, v, gate_f, gate_b, out)
    return out


def _forward(
    q: Tensor, k: Tensor, v: Tensor, gate_f: Tensor, gate_b: Tensor, result: Tensor
) -> None:
    num_tokens, heads, width = q.shape[1:]
    c = _prepare(q, k, v, gate_f, gate_b, keep_decays=False)
    if c.size < num_tokens:
        _states(_pairs(c.k, c.v, c.local), c, c.vt[:, :, c.size :], reverse=False)
    out = _room(result, c.size)
    for r in _blocks(len(out), heads * c.size**2):
        aq, vt = c.aq[r].flatten(0, 1), c.vt[r].flatten(0, 1)
        a = _attention(aq, c.k[r].flatten(0, 1))
        o = torch.bmm(aq, vt) if c.size < num_tokens else torch.bmm(a, vt[:, : c.size])
        o = o.unflatten(0, (-1, heads)).transpose(1, 2)
        torch.mul(o, 0.5 * width**-0.5, out=out[r])
    _unpad(out, result)


def chunked_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate_f: Tensor,
    gate_b: Tensor,
    *,
    out: tuple[Tensor, ...] | None = None,
) -> tuple[Tensor, ...]:
    """Gradients of q, k, v and both gate logits, each shaped like its input.

    They are written to ``out`` if it is given, for instance to parts of one buffer ``[B, N, C]``.

    With x_t = P_t - P_mid the only exponent of token t in its chunk, the gate's gradient is a
    running sum from the right over q * dq - k * dk, plus what the state that leaves the chunk
    carries on, sum_v T * dT: chunk-local, so its error does not grow with N.
    """
    inputs = (q, k, v, gate_f, gate_b)
    grads = out or tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in inputs)
    with torch.inference_mode():
        _backward(grad, *inputs, grads)
    return grads


def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate_f: Tensor,
    gate_b: Tensor,
    results: tuple[Tensor, ...],
) -> None:
    batch, num_tokens, heads, width = q.shape
    c = _prepare(q, k, v, gate_f, gate_b, keep_decays=True)
    assert c.decays is not None
    rows = c.v.shape[0]
    g = torch.mul(_rows(grad, c.size).transpose(1, 2), 0.5 * width**-0.5, out=torch.empty_like(c.v))
    halves = (slice(0, width), slice(width, None))

    states, du = c.vt[:, :, c.size :], None
    boundary = g.new_zeros(2, batch, rows // batch, heads, width)
    if c.size < num_tokens:
        _states(_pairs(c.k, c.v, c.local), c, states, reverse=False)
        direct = _pairs(c.q, g, c.local)  # U itself is not needed any more
        du = torch.empty_like(direct)
        _states(direct, c, du, reverse=True)
        crossing = direct.add_(du).mul_(states).sum(dim=-1).view(batch, -1, heads, 2 * width)
        boundary[0, :, :-1] = crossing[:, 1:, :, halves[0]]  # leaves chunk m to enter m + 1
        boundary[1] = crossing[..., halves[1]]  # enters chunk m from the right
    # d log(alpha) / dz = sigmoid(-z) / 16; the constant is taken into the sums
    boundary = boundary.view(2, rows, 1, heads * width).div_(GATE_LOGIT_NORMALIZER)
    # dP = q dq - k dk and the forward sum is inclusive; dE = -(..) and the backward is exclusive
    ones = torch.full((c.size, c.size), 1 / GATE_LOGIT_NORMALIZER, dtype=g.dtype, device=g.device)
    sums = (ones.triu(), -ones.triu(1))

    rooms = [_room(x, c.size) for x in results]
    dq, dk, dv, dgate_f, dgate_b = rooms
    for r in _blocks(rows, heads * c.size**2):
        q2, k2, v2, g2 = (x[r].flatten(0, 1) for x in (c.q, c.k, c.v, g))
        dv2 = torch.bmm(_attention(c.aq[r].flatten(0, 1), k2).mT, g2)
        da_b = torch.bmm(g2, v2.mT)
        da_f = da_b.clone().tril_()  # in place: the other form is slower
        da_b.triu_()
        if du is not None:
            dv2.baddbmm_(k2, du[r].flatten(0, 1))
        dv[r] = dv2.unflatten(0, (-1, heads)).transpose(1, 2)
        for i, (da, half, dgate) in enumerate(
            ((da_f, halves[0], dgate_f), (da_b, halves[1], dgate_b))
        ):
            dq2, dk2 = torch.bmm(da, k2[..., half]), torch.bmm(da.mT, q2[..., half])
            if du is not None:
                dq2.baddbmm_(g2, states[r, :, half].flatten(0, 1).mT)
                dk2.baddbmm_(v2, du[r, :, half].flatten(0, 1).mT)
            dq2, dk2 = (x.unflatten(0, (-1, heads)).transpose(1, 2) for x in (dq2, dk2))
            u = torch.mul(dq2, c.q[r, ..., half].transpose(1, 2), out=g.new_empty(dq[r].shape))
            u.addcmul_(dk2, c.k[r, ..., half].transpose(1, 2), value=-1)
            edge = boundary[i, r].expand(-1, c.size, -1)
            matrix = sums[i].expand(len(u), -1, -1)
            torch.baddbmm(edge, matrix, u.flatten(2), out=dgate[r].flatten(2))
            if i == 0:
                torch.mul(dq2, c.decays[i, r], out=dq[r])
                torch.div(dk2, c.decays[i, r], out=dk[r])
            else:
                dq[r].addcmul_(dq2, c.decays[i, r])
                dk[r].addcdiv_(dk2, c.decays[i, r])

    for room, result in zip(rooms, results, strict=True):
        _unpad(room, result)
    for dgate, gate in zip(results[3:], (gate_f, gate_b), strict=True):
        dgate.mul_(gate.neg().sigmoid_())
