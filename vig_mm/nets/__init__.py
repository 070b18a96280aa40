"""ViG's networks in plain ``torch.nn``: they need torch alone."""

from .attention import GatedLinearAttention2d
from .ffn import SwiGLU
from .hier_vig import HierViG
from .layout import to_map, to_tokens
from .network import Block, Network
from .norm import LayerNorm2d, RMSNorm
from .vig import ViG

__all__ = [
    "Block",
    "GatedLinearAttention2d",
    "HierViG",
    "LayerNorm2d",
    "Network",
    "RMSNorm",
    "SwiGLU",
    "ViG",
    "to_map",
    "to_tokens",
]
