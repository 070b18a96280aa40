"""The backbones; importing this registers them in `vig_mm.registry.MODELS`."""

from .backbones import HierViG, ViG

__all__ = ["HierViG", "ViG"]
