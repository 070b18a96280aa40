"""The feed-forward half of a block: norm, SwiGLU, both layers and the residual branch."""

from .op import feed_forward

__all__ = ["feed_forward"]
