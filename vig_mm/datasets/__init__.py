"""Data sets that vig_mm makes itself."""

from .digits import CLASSES, make_digits

__all__ = ["CLASSES", "make_digits"]
