"""Conversion of other annotation formats to COCO's."""

from .objects import FormatError
from .readers import FORMATS
from .write import convert

__all__ = ["FORMATS", "FormatError", "convert"]
