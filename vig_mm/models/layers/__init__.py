from .adapter import Adapter, Geometry

__all__ = ["Adapter", "Geometry"]
