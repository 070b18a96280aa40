"""Training loops that resume exactly: the same batches and random numbers as without a stop.

Every batch and every random number is a function of the seed and of the iteration (see
`seeds`), so a checkpoint has to hold nothing but the iteration's number. Batches that were
trained on before are left out by the sampler instead of being loaded again.
"""

import logging
from collections.abc import Iterator
from typing import Any

from mmengine.dist import get_dist_info
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop as EpochLoop
from mmengine.runner import IterBasedTrainLoop as IterLoop
from torch import nn
from torch.utils.data import BatchSampler, DataLoader

from vig_mm.registry import LOOPS

from .seeds import NumberedBatchSampler, SeededSamples, seed_generators

_ORDER = "vig_mm_data_order"  # under this name in the message hub, hence in checkpoints


class _Exact:
    """What both loops add to mmengine's.

    Args:
        runner: A `Runner` or `FlexibleRunner`.
        dataloader: The loader's config.
        **kwargs: See mmengine's loop.

    Raises:
        TypeError: ``dataloader`` is a loader already, whose batches cannot be numbered any more.
    """

    def __init__(self, runner: Any, dataloader: dict, **kwargs) -> None:
        if not isinstance(dataloader, dict):
            raise TypeError(
                f"{type(self).__name__} takes train_dataloader as a config dict, got "
                f"{type(dataloader).__name__}: with a loader of your own use mmengine's loop"
            )
        self._sampler_seed = _base_seed(runner)
        loader = _numbered(runner, dataloader, self._sampler_seed)
        super().__init__(runner, loader, **kwargs)

    def _start(self) -> tuple[NumberedBatchSampler, bool]:
        """Open the sampler at the present iteration.

        Returns:
            It, and whether batches are those of the run that wrote the checkpoint (true without).
        """
        seed, (rank, processes) = _base_seed(self.runner), get_dist_info()
        sampler = self.dataloader.batch_sampler
        if seed != self._sampler_seed:  # a checkpoint's, which mmengine loads after the loader
            sampler.sampler.seed = self._sampler_seed = seed
        self._key = seed, rank

        hub = self.runner.message_hub
        order = dict(
            processes=processes, batch_size=sampler.batch_size, batches=len(self.dataloader)
        )
        before = hub.runtime_info.get(_ORDER, order)
        hub.update_info(_ORDER, order)
        if self._iter:
            _log(f"going on behind iteration {self._iter} with seed {seed}")
        if before != order:
            _log(
                "the checkpoint's run read its data in another way, so this one will differ from "
                f"one that was never interrupted: {_differences(before, order)}",
                logging.WARNING,
            )
        counts = getattr(self.runner.optim_wrapper, "_accumulative_counts", 1)
        if self._iter % counts:
            _log(
                f"the checkpoint was written between two of the optimizer's steps, and gradients "
                f"are not in it: those of the last {self._iter % counts} iterations are lost. "
                f"Choose a checkpoint interval that is a multiple of accumulative_counts={counts}",
                logging.WARNING,
            )
        return sampler, before == order

    def _begin(self, sampler: NumberedBatchSampler) -> None:
        sampler.begin(*self._key, self._iter)

    def _seed(self) -> None:
        seed_generators((*self._key, self._iter, 0))


@LOOPS.register_module()
class EpochBasedTrainLoop(_Exact, EpochLoop):
    """Training by epochs; a resumed run continues within the epoch of its checkpoint."""

    def run(self) -> nn.Module:
        sampler, same = self._start()
        # of the present epoch's batches; mmengine would take them all again
        self._done = self._iter - self._epoch * len(sampler) if same else 0
        if not 0 <= self._done <= len(sampler):
            _log(
                f"{self._epoch} epochs of {len(sampler)} batches do not make {self._iter} "
                f"iterations: epoch {self._epoch + 1} starts with its first batch, so this run "
                "will differ from one that was never interrupted",
                logging.WARNING,
            )
            self._done = 0
        return super().run()

    def run_epoch(self) -> None:
        sampler = self.dataloader.batch_sampler
        self._begin(sampler)
        if self._done:
            _log(f"epoch {self._epoch + 1} goes on behind batch {self._done} of {len(sampler)}")
            if hasattr(sampler.sampler, "set_epoch"):
                sampler.sampler.set_epoch(self._epoch)
            sampler.advance(self._done)
        super().run_epoch()
        self._done = 0

    def run_iter(self, idx: int, data_batch: Any) -> None:
        self._seed()
        super().run_iter(idx + self._done, data_batch)


@LOOPS.register_module()
class IterBasedTrainLoop(_Exact, IterLoop):
    """Training by iterations."""

    def run(self) -> nn.Module:
        sampler, _ = self._start()
        self._begin(sampler)
        passes = sampler.advance(self._iter)
        # anew: mmengine's was started before there was a checkpoint to go on from
        batches = type(self.dataloader_iterator)(self.dataloader)
        batches._epoch = passes
        not_skipped = getattr(self, "fast_forward_on_resume", False)  # an option of onedl-mmengine
        self.dataloader_iterator = _Skipped(0 if not_skipped else self._iter, batches)
        return super().run()

    def run_iter(self, data_batch: Any) -> None:
        self._seed()
        super().run_iter(data_batch)


class _Skipped:
    """Batches behind those that mmengine still wants to skip, of which there is nothing left.

    Args:
        count: How many it is going to take (mmengine) or name in `skip_iter` (onedl-mmengine).
        batches: What comes then.
    """

    def __init__(self, count: int, batches: Iterator) -> None:
        self._count = count
        self._batches = batches

    def skip_iter(self, count: int) -> None:
        self._count -= count

    def __next__(self) -> Any:
        if self._count:
            self._count -= 1
            return None
        return next(self._batches)


def _base_seed(runner: Any) -> int:
    """The seed of all processes; with ``diff_rank_seed`` a Runner's has its rank added."""
    rank, _ = get_dist_info()
    return runner.seed - (rank if runner._randomness_cfg.get("diff_rank_seed") else 0)


def _numbered(runner: Any, dataloader: dict, seed: int) -> DataLoader:
    """Build a loader whose batches are numbered and whose samples are seeded by that number."""
    cfg = dict(dataloader)
    cfg.setdefault("batch_size", 1)
    cfg["sampler"] = dict(cfg["sampler"])
    cfg["sampler"].setdefault("seed", seed)
    inner = cfg.get("batch_sampler")
    if inner is None:
        inner = dict(type=BatchSampler, drop_last=cfg.pop("drop_last", False))
    cfg["batch_sampler"] = dict(type=NumberedBatchSampler, inner=inner)
    loader = runner.build_dataloader(cfg, seed=seed)
    loader.dataset.__getitems__ = SeededSamples(loader.dataset)
    return loader


def _differences(before: dict, order: dict) -> str:
    return ", ".join(
        f"{name} was {before[name]}, is {order[name]}"
        for name in order
        if before[name] != order[name]
    )


def _log(message: str, level: int = logging.INFO) -> None:
    print_log(message, "current", level)
