"""Random seeds of iterations and samples, computed from the run's seed, with no state to save.

mmengine saves no generator's state and seeds a data worker the same whenever it starts. So a
resumed run draws other numbers than one that was never interrupted, and without persistent workers
every epoch repeats the augmentation of the one before. Here the generators are set anew before
every iteration and every sample, from the seed, the process and the iteration's number.
"""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import Dataset, Sampler

Key = tuple[int, ...]
"""Seed, rank, number of the iteration; then 0 for the iteration itself, 1... for its samples."""


def seed_generators(key: Key, every_device: bool = True) -> None:
    """Set the generators of Python, numpy and torch from a key.

    Args:
        every_device: Also those of GPUs. It takes 0.3 ms, too much for every sample.
    """
    words = [int(word) for word in np.random.SeedSequence(key).generate_state(4)]
    random.seed(words[0])
    np.random.seed(words[1])
    set_seed = torch.manual_seed if every_device else torch.default_generator.manual_seed
    set_seed(words[2] << 32 | words[3])


class NumberedBatch(list):
    """Indices of one batch, as torch's data loaders take them, and the key of its iteration."""

    def __init__(self, indices: list[int], key: Key) -> None:
        super().__init__(indices)
        self.key = key


class NumberedBatchSampler:
    """The batches of another batch sampler, numbered as the iterations that train on them.

    It gives nothing before `begin`, so that a loader that is started too early loads nothing.

    Args:
        sampler: Gives the indices.
        batch_size: Indices in a batch.
        inner: The batch sampler's config.
    """

    def __init__(self, sampler: Sampler, batch_size: int, inner: dict) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        given = dict(sampler=sampler, batch_size=batch_size)
        self.inner = DATA_SAMPLERS.build(inner, default_args=given)
        self._next: Key | None = None
        self._advanced: Iterator[list[int]] | None = None

    def begin(self, seed: int, rank: int, number: int) -> None:
        """Number the batches from ``number`` on."""
        self._next = seed, rank, number

    def advance(self, count: int) -> int:
        """Leave out the next batches, without loading them.

        Args:
            count: How many, over as many passes through the data as it takes.

        Returns:
            Number of the pass in which this ends, from 0.
        """
        passes, batches = 0, iter(self.inner)
        for _ in range(count):
            if next(batches, None) is None:
                passes += 1
                if hasattr(self.sampler, "set_epoch"):
                    self.sampler.set_epoch(passes)
                batches = iter(self.inner)
                next(batches)
        self._advanced = batches
        return passes

    def __iter__(self) -> Iterator[NumberedBatch]:
        if self._next is None:
            return
        batches, self._advanced = self._advanced or iter(self.inner), None
        for indices in batches:
            key = self._next
            self._next = *key[:-1], key[-1] + 1
            yield NumberedBatch(indices, key)

    def __len__(self) -> int:
        return len(self.inner)


class SeededSamples:
    """A data set's ``__getitems__``: what torch's loaders call, in a worker, for a whole batch."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __call__(self, batch: NumberedBatch) -> list[Any]:
        samples = []
        for place, index in enumerate(batch, 1):
            seed_generators((*batch.key, place), every_device=False)
            samples.append(self.dataset[index])
        return samples
