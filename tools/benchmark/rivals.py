"""Rivals that other packages provide: operators, and DeiT."""

from collections.abc import Callable
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from shapes import Shape
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Operator = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
NORMALIZER = 16.0
MAX_ATTENTION_FLOPS = 1e13  # a forward pass of 0.05 to 0.1 s on an H100


def flash_linear_attention() -> dict[str, Operator]:
    """The two ways to use `chunk_gla` in both directions; empty where it is not installed."""
    if find_spec("fla") is None:
        return {}
    from fla.ops.gla import chunk_gla

    return fla_operators(chunk_gla)


def fla_operators(chunk_gla: Callable) -> dict[str, Operator]:
    """As the public ViG code calls it: log-gates in the logits' dtype, flips, and the mean.

    ``two passes``: one call a direction. ``batched``: one call on both directions side by side on
    the batch axis (what the public code does to train), fewer launches but more copies.

    Args:
        chunk_gla: of q, k, v and log-gates ``[B, N, H, width]``; left to right, scaled by
            K^-1/2; returns the output first.
    """

    def log_gate(logit: Tensor) -> Tensor:
        return F.logsigmoid(logit) / NORMALIZER

    def two_passes(q: Tensor, k: Tensor, v: Tensor, gate_f: Tensor, gate_b: Tensor) -> Tensor:
        forward = chunk_gla(q, k, v, log_gate(gate_f))[0]
        backward = chunk_gla(*(x.flip(1) for x in (q, k, v)), log_gate(gate_b.flip(1)))[0]
        return (forward + backward.flip(1)) / 2

    def batched(q: Tensor, k: Tensor, v: Tensor, gate_f: Tensor, gate_b: Tensor) -> Tensor:
        both = (torch.cat((x, x.flip(1))) for x in (q, k, v))
        gates = torch.cat((gate_f, gate_b.flip(1)))
        forward, backward = chunk_gla(*both, log_gate(gates))[0].chunk(2)
        return (forward + backward.flip(1)) / 2

    return {"fla two passes": two_passes, "fla batched": batched}


def flash_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention, torch's flash kernel only. All ``[B, N, H, V]``."""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        out = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)))
    return out.transpose(1, 2)


def attention_flops(shape: Shape) -> int:
    """Of the forward pass with heads of the value width, 2 per multiply-add."""
    return 4 * shape.B * shape.H * shape.N**2 * shape.V


def deit(arch: str, size: int, softmax: bool) -> nn.Module:
    """timm's DeiT classifier ("tiny", "small", "base") for square images of ``size`` pixels.

    Args:
        softmax: plain softmax attention, which forms the N x N matrix, instead of torch's SDPA.
    """
    import timm

    model = timm.create_model(f"deit_{arch}_patch16_224", img_size=size)
    for block in model.blocks:
        if not hasattr(block.attn, "fused_attn"):
            raise RuntimeError(f"timm {timm.__version__} has no switch fused_attn; update this")
        block.attn.fused_attn = not softmax
    return model
