"""Conversion of YOLO and Pascal VOC annotations to COCO's."""

from .convert import FORMATS, OTHERS, convert

__all__ = ["FORMATS", "OTHERS", "convert"]
