from .adapter import Adapter, Geometry
from .feed_forward import feed_forward
from .layout import by_blocks, to_map, to_tokens
from .linear import TokenLinear
from .mix import mix
from .mlp import SwiGLU
from .norm import LayerNorm2d, RMSNorm
from .stem import Stem
from .token_mixer import GatedLinearAttention2d

__all__ = [
    "Adapter",
    "GatedLinearAttention2d",
    "Geometry",
    "LayerNorm2d",
    "RMSNorm",
    "Stem",
    "SwiGLU",
    "TokenLinear",
    "by_blocks",
    "feed_forward",
    "mix",
    "to_map",
    "to_tokens",
]
