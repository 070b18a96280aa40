"""The definition of bidirectional gated linear attention: the recurrence, token by token.

Slow and exact. Every other backend is checked against this one, in float64.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

GATE_LOGIT_NORMALIZER = 16.0
"""log(alpha) = logsigmoid(gate logit) / 16 (ViG, section 3.2; the value of the public models)."""


def reference_bidirectional_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate_f: Tensor,
    gate_b: Tensor,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Run both recurrences step by step; differentiable by autograd.

        S_t  = diag(alpha_f[t]) S_{t-1} + k_t v_t^T        t = 0 ... N-1
        S'_t = diag(alpha_b[t]) S'_{t+1} + k_t v_t^T       t = N-1 ... 0
        o_t  = K^-1/2 / 2 * (S_t + S'_t)^T q_t

    Args:
        q, k, gate_f, gate_b: ``[B, N, H, K]``; the gates are logits.
        v: ``[B, N, H, V]``.
        out_dtype: of the result; None is that of ``v``.

    Returns:
        ``[B, N, H, V]``. Half precision is computed in float32.
    """
    dtype = torch.float64 if v.dtype == torch.float64 else torch.float32
    out_dtype = out_dtype or v.dtype
    q, k, v, gate_f, gate_b = (x.to(dtype) for x in (q, k, v, gate_f, gate_b))
    if q.shape[1] == 0:
        return v.to(out_dtype)
    queries, keys, values = (x.unbind(1) for x in (q, k, v))

    def scan(gate: Tensor, order: int) -> Tensor:
        alpha = (F.logsigmoid(gate) / GATE_LOGIT_NORMALIZER).exp().unbind(1)
        state = q.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3])
        outputs = []
        for a, q_t, k_t, v_t in list(zip(alpha, queries, keys, values, strict=True))[::order]:
            state = a[..., None] * state + k_t[..., None] * v_t[..., None, :]
            outputs.append((q_t[..., None] * state).sum(dim=2))
        return torch.stack(outputs[::order], dim=1)

    out = scan(gate_f, 1) + scan(gate_b, -1)
    return (out * (0.5 * q.shape[-1] ** -0.5)).to(out_dtype)
