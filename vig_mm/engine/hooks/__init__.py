"""Hooks; importing this registers those that need none of mmdet, mmseg and mmpretrain."""

from .checkpoint_hook import SafeCheckpointHook

__all__ = ["SafeCheckpointHook"]
