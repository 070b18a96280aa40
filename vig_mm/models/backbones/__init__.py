from .hier_vig import HierViG
from .vig import ViG
from .vig_adapter import ViGAdapter

__all__ = ["HierViG", "ViG", "ViGAdapter"]
