"""Test-time augmentation. Needs mmdet, so only mmdet's configs import it (`custom_imports`)."""

from .instance_tta import InstanceTTAModel

__all__ = ["InstanceTTAModel"]
