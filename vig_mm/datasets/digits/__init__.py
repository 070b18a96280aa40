"""The built-in digits data."""

from .classes import CLASSES
from .make import make_digits

__all__ = ["CLASSES", "make_digits"]
