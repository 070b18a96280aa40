"""Strategies of mmengine's FlexibleRunner."""

from .fsdp import FSDPStrategy, wrap_blocks

__all__ = ["FSDPStrategy", "wrap_blocks"]
