"""Reading every file of a config's data sets, before a long training stops on one of them."""

from .survey import Run, survey

__all__ = ["Run", "survey"]
