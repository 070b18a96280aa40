"""How far rounding may take each entry of a result from the truth.

Every output and gradient is a sum of products. In whatever order it is added up, rounding moves it
by at most a few units in the last place of the same sum over absolute values: what the recurrence
gives for |q|, |k|, |v| and |gradient|. Such bounds hold entry by entry, however much cancels and
however much the tokens differ in size, and leave no room for an error that a norm would hide.
"""

import math

import torch
import torch.nn.functional as F
from references import gla_truth
from torch import Tensor

from vig_mm.kernels import GATE_LOGIT_NORMALIZER

LONGEST_CHUNK = 80
LOST = torch.finfo(torch.float32).tiny / torch.finfo(torch.float32).eps  # rounds as coarsely as 0


def expectation(
    inputs: list[Tensor], grad: Tensor, floor: float
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The truth, the sums over absolute values, and what flooring the decays may add to them.

    Args:
        inputs: q, k, v, gate_f, gate_b.
        floor: log2 of the smallest decay of one token that is told from 0; -inf for none.

    Returns:
        Three lists of six tensors: the output and the gradients of the inputs.
    """
    *qkv, gate_f, gate_b = (x.double() for x in inputs)
    grad = grad.double()
    logits = [gate_f, gate_b]
    floored = [z.clamp(min=floor * math.log(2) * GATE_LOGIT_NORMALIZER) for z in logits]
    absolute = [x.abs() for x in qkv]
    # side by side in the batch: one pass over the tokens for all three
    parts = ([*qkv, *logits], [*absolute, *logits], [*absolute, *floored])
    joined = [torch.cat(x) for x in zip(*parts, strict=True)]
    results = gla_truth(joined, torch.cat([grad, grad.abs(), grad.abs()]))
    true, exact, scale = ([x.chunk(3)[i] for x in results] for i in range(3))
    added = [x - y for x, y in zip(scale, exact, strict=True)]

    # A gate's gradient is a running sum over a chunk, in which most of what other pairs of
    # tokens add is taken away again.
    q, k, *_ = absolute
    neighbours = _window_sum(q * scale[1] + k * scale[2])
    for i, z in ((4, gate_f), (5, gate_b)):
        slope = torch.sigmoid(-z).clamp(min=LOST) / GATE_LOGIT_NORMALIZER
        scale[i] = scale[i] + neighbours * slope
    return true, scale, added


def _window_sum(x: Tensor) -> Tensor:
    """Sum over all tokens that can share a chunk with each one; ``[B, N, H, K]``."""
    sums = F.pad(x.cumsum(1), (0, 0, 0, 0, 1, 0))
    index = torch.arange(x.shape[1])
    low, high = (index - LONGEST_CHUNK).clamp(min=0), (index + LONGEST_CHUNK + 1)
    return sums[:, high.clamp(max=x.shape[1])] - sums[:, low]


def worst(x: Tensor, true: Tensor, scale: Tensor, added: Tensor, eps: float, steps: float) -> float:
    """The largest error as a share of what is allowed; above 1 is wrong, NaN is infinite.

    Args:
        x: result.
        true, scale, added: entries of `expectation`.
        eps: of the dtype that is computed in.
        steps: roundings that may add up.
    """
    stored = torch.finfo(x.dtype)
    allowed = steps * eps * scale + added + stored.eps * (true.abs() + added)
    allowed += stored.smallest_normal * stored.eps + torch.finfo(torch.float32).tiny
    x, true = (y.double().clamp(-stored.max, stored.max) for y in (x, true))  # inf is its maximum
    share = (x - true).abs() / allowed
    return share.nan_to_num(nan=math.inf).max().item() if share.numel() else 0.0
