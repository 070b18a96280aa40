"""Hooks; importing this registers those that need none of mmdet, mmseg and mmpretrain."""

from .checkpoint_hook import SafeCheckpointHook
from .progress_hook import ProgressBarHook
from .start_hook import StartHook

__all__ = ["ProgressBarHook", "SafeCheckpointHook", "StartHook"]
