"""Old place of `vig_mm.models.test_time_augs`, which configs in older checkpoints import."""

from vig_mm.models.test_time_augs import InstanceTTAModel

__all__ = ["InstanceTTAModel"]
