"""The rival of the operator's benchmark: a chunked one-directional GLA, run twice, once flipped.

What one would write without a bidirectional operator: the same anchored chunks and the same
two-level scan, plain PyTorch, gradients by autograd. No fallback for strong gates.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

GATE_LOGIT_NORMALIZER = 16.0


def one_directional_gla(q: Tensor, k: Tensor, v: Tensor, gate: Tensor, chunk: int = 64) -> Tensor:
    """Left to right. q, k, gate logits ``[B, N, H, K]``, v ``[B, N, H, V]`` -> ``[B, N, H, V]``."""
    batch, num_tokens, heads, width = q.shape
    chunks = math.ceil(num_tokens / chunk)
    pad = chunks * chunk - num_tokens

    def heads_first(x: Tensor, value: float = 0.0) -> Tensor:
        x = F.pad(x, (0, 0, 0, 0, 0, pad), value=value) if pad else x
        return x.unflatten(1, (chunks, chunk)).transpose(2, 3)

    log_alpha = F.logsigmoid(heads_first(gate, 200.0)) / GATE_LOGIT_NORMALIZER
    sums = log_alpha.cumsum(dim=3)
    mid = sums[..., chunk // 2, None, :]
    decay = (sums - mid).exp()
    q, k, v = heads_first(q) * decay, heads_first(k) / decay, heads_first(v).contiguous()
    out = (q @ k.mT).tril() @ v
    if chunks > 1:
        total = sums[..., -1, :]
        # decay from a chunk's anchor to the next one's, as in a chunk's own exponents
        decay = (total[:, :-1] - mid[:, :-1, :, 0] + mid[:, 1:, :, 0]).exp().unsqueeze(-1)
        out = out + q @ _scan(k.mT @ v, decay)
    out = out.transpose(2, 3).flatten(1, 2)[:, :num_tokens]
    return out * width**-0.5


def _scan(x: Tensor, decay: Tensor) -> Tensor:
    """y[m+1] = decay[m] (y[m] + x[m]) over dim 1, in sqrt(M) steps within and across groups."""
    chunks = x.shape[1]
    group = max(math.isqrt(chunks), 1)
    groups = math.ceil(chunks / group)
    missing = groups * group - chunks
    x = F.pad(x[:, :-1] * decay, (0, 0, 0, 0, 0, 0, 0, missing + 1)).unflatten(1, (groups, group))
    c = F.pad(decay, (0, 0, 0, 0, 0, 0, 0, missing + 1)).unflatten(1, (groups, group))
    local, prefix = [x[:, :, 0]], [c[:, :, 0]]
    for i in range(1, group):
        local.append(torch.addcmul(x[:, :, i], local[-1], c[:, :, i]))
        prefix.append(prefix[-1] * c[:, :, i])
    carry = [torch.zeros_like(local[0][:, 0])]
    for g in range(groups - 1):
        carry.append(torch.addcmul(local[-1][:, g], carry[-1], prefix[-1][:, g]))
    carry = torch.stack(carry, dim=1).unsqueeze(2)
    y = torch.addcmul(torch.stack(local, dim=2), torch.stack(prefix, dim=2), carry).flatten(1, 2)
    return torch.cat((torch.zeros_like(y[:, :1]), y[:, : chunks - 1]), dim=1)


def two_pass_gla(q: Tensor, k: Tensor, v: Tensor, gate_f: Tensor, gate_b: Tensor) -> Tensor:
    """Bidirectional by two one-directional passes, the second over the flipped sequence."""
    forward = one_directional_gla(q, k, v, gate_f)
    backward = one_directional_gla(*(x.flip(1) for x in (q, k, v, gate_b))).flip(1)
    return (forward + backward) / 2
