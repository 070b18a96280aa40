"""Backbones and necks; importing this registers them in `vig_mm.registry.MODELS`."""

from .backbones import HierViG, ViG, ViGAdapter
from .necks import SimplePyramid

__all__ = ["HierViG", "SimplePyramid", "ViG", "ViGAdapter"]
