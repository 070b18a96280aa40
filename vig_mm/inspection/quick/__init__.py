"""Checks that the data a config names is there and fits the model, before anything is built.

The libraries notice most of these mistakes late, far from their cause, or never: mmdet drops the
annotations of classes it does not find and trains on what is left.
"""

from .check import DataCheck, check_data
from .options import leaves

__all__ = ["DataCheck", "check_data", "leaves"]
