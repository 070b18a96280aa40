"""Optimizer wrappers and their constructors."""

from .bf16 import Bf16OptimWrapper
from .layer_decay import LayerDecayError, LayerDecayOptimWrapperConstructor

__all__ = ["Bf16OptimWrapper", "LayerDecayError", "LayerDecayOptimWrapperConstructor"]
