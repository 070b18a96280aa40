"""A training of a second, that writes down what it sees and draws."""

import itertools
import json
import random
from pathlib import Path

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.model import BaseModel
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.runner import Runner
from torch.utils.data import Dataset

import vig_mm.registry  # noqa: F401  (lets torch load mmengine's checkpoints)

_names = itertools.count()


class Draws(Dataset):
    """Ten samples: their index and a number from each generator."""

    metainfo = dict(classes=("one",))

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict:
        return dict(inputs=[index, random.random(), np.random.rand(), torch.rand(()).item()])


class Note(BaseModel):
    """Trains one weight on noise, and keeps its inputs and its noise in `seen`.

    Args:
        size: Numbers in a buffer, to make checkpoints large.
    """

    def __init__(self, size: int = 1) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.register_buffer("ballast", torch.zeros(size))
        self.seen: list[list] = []

    def forward(self, inputs, mode: str = "loss") -> dict:
        noise = [torch.rand(()), np.random.rand(), random.random()]
        numbers = [float(x) for x in itertools.chain(*inputs, noise)]
        self.seen.append([*numbers, self.weight.item()])
        return dict(loss=self.weight * sum(numbers))


class CpuAmpOptimWrapper(AmpOptimWrapper):
    """mmengine's, with torch's scaler for the CPU; mmengine's own constructor asks for a GPU."""

    def __init__(self, loss_scale: dict, **kwargs) -> None:
        OptimWrapper.__init__(self, **kwargs)
        self.loss_scaler = torch.amp.GradScaler("cpu", **loss_scale)
        self._scale_update_param = self.cast_dtype = None


def toy(work_dir: Path, *args, **options) -> list[list]:
    """Train and return what each iteration saw: inputs, noise, weight. See `toy_runner`."""
    runner = toy_runner(work_dir, *args, **options)
    runner.train()
    return runner.model.seen


def toy_runner(
    work_dir: Path,
    by_epoch: bool = True,
    length: int = 3,
    workers: int = 0,
    sampler: str = "DefaultSampler",
    seed: int | None = 1,
    load_from: str | None = None,
    size: int = 1,
    checkpoint: dict | None = None,
    wrapper: dict | None = None,
    **hooks: dict,
) -> Runner:
    """A Runner with nothing done yet.

    Args:
        length: Epochs of five iterations (of one process), or iterations.
        load_from: Checkpoint to resume.
        checkpoint: Options of the checkpoint hook.
        wrapper: Options of the optimizer's wrapper.
        hooks: Further default hooks.
    """
    kind, most = ("Epoch", "max_epochs") if by_epoch else ("Iter", "max_iters")
    hook = dict(type="vig_mm.SafeCheckpointHook", by_epoch=False, interval=1)
    return Runner(
        model=Note(size),
        work_dir=str(work_dir),
        train_dataloader=dict(
            dataset=Draws(),
            batch_size=2,
            num_workers=workers,
            sampler=dict(type=sampler, shuffle=True),
        ),
        train_cfg={"type": f"vig_mm.{kind}BasedTrainLoop", most: length},
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.01, momentum=0.9), **(wrapper or {})),
        default_hooks=dict(checkpoint={**hook, **(checkpoint or {})}, **hooks),
        randomness=dict(seed=seed),
        load_from=load_from,
        resume=load_from is not None,
        experiment_name=f"toy_{next(_names)}_{work_dir.name}",
    )


def processes(rank: int, work_dir: Path, options: dict) -> None:
    """`toy` as one of two processes; what it saw goes into a file."""
    store = f"file://{work_dir}/store_{options.get('load_from') is None}"
    torch.distributed.init_process_group("gloo", store, rank=rank, world_size=2)
    seen = toy(work_dir, **options)
    name = "resumed" if options.get("load_from") else "whole"
    (work_dir / f"{name}_{get_rank()}.json").write_text(json.dumps(seen))
    torch.distributed.destroy_process_group()
