"""Full check of data sets: every image, label map and annotation is read."""

from .survey import Run, survey

__all__ = ["Run", "survey"]
