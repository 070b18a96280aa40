"""The three backbones, narrow and shallow."""

import torch
from torch import Tensor, nn

import vig_mm
from vig_mm.models.layers.deformable_attention import DeformableAttention

SMALL = {
    "ViG": dict(embed_dims=32, depth=3, num_heads=2),
    "HierViG": dict(embed_dims=16, depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4)),
    "ViGAdapter": dict(embed_dims=32, depth=4, num_heads=2, deform_heads=4, conv_inplane=8),
}
FAMILIES = list(SMALL)


def build(family: str, **kwargs) -> nn.Module:
    torch.manual_seed(0)
    backbone = getattr(vig_mm, family)(**{**SMALL[family], **kwargs})
    backbone.init_weights()
    return backbone


def build_awake(family: str, **kwargs) -> nn.Module:
    """At the start zeros (gamma, and how places depend on the query) hide much of an adapter."""
    backbone = build(family, **kwargs)
    for name, parameter in backbone.named_parameters():
        if name.endswith("injector.gamma"):
            nn.init.constant_(parameter, 0.5)
    for module in backbone.modules():
        if isinstance(module, DeformableAttention):
            nn.init.normal_(module.sampling_offsets.weight, std=0.1)
            nn.init.normal_(module.attention_weights.weight, std=0.1)
    return backbone


def gradients(backbone: nn.Module, x: Tensor) -> dict[str, Tensor | None]:
    """Of every parameter, of a loss that is no sum over samples; what is random is the same."""
    torch.manual_seed(1)
    backbone.zero_grad()
    sum((out * torch.randn_like(out)).sum() for out in backbone(x)).backward()
    return {name: p.grad for name, p in backbone.named_parameters()}
