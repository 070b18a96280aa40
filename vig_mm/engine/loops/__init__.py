"""Training loops that resume exactly, their seeds, and the choice of what to resume from."""

from .train_loops import EpochBasedTrainLoop, IterBasedTrainLoop

__all__ = ["EpochBasedTrainLoop", "IterBasedTrainLoop"]
