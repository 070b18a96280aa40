from .hier_vig import HierViG
from .vig import ViG

__all__ = ["HierViG", "ViG"]
