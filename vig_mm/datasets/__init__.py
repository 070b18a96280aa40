"""Data sets: the built-in digits."""

from .digits import CLASSES, make_digits

__all__ = ["CLASSES", "make_digits"]
