"""Batches, samples and random numbers are those of the iteration, wherever training began."""

import json

import pytest
import torch
from mmengine.optim import AmpOptimWrapper
from mmengine.runner import loops
from toy import CpuAmpOptimWrapper, processes, toy, toy_runner
from trainings import Training

from vig_mm.checkpoints.reading import read_checkpoint
from vig_mm.registry import LOOPS


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(loops.time, "sleep", lambda seconds: None)  # two seconds at every pass


KINDS = {
    "epochs": dict(by_epoch=True, length=3),
    "iterations": dict(by_epoch=False, length=13, sampler="InfiniteSampler"),
    "iterations, finite sampler": dict(by_epoch=False, length=13),
}


@pytest.mark.parametrize("kind", KINDS)
def test_from_any_iteration(kind, tmp_path):
    whole = toy(tmp_path / "whole", **KINDS[kind])
    assert len({tuple(seen) for seen in whole}) == len(whole)  # nothing is drawn twice
    # first and last of an epoch, within one; other workers, and another seed in the config
    for done, workers in ((5, 2), (7, 0), (12, 1)):
        start = str(tmp_path / f"whole/iter_{done}.pth")
        folder = tmp_path / f"from_{done}"
        rest = toy(folder, **KINDS[kind], workers=workers, load_from=start, seed=9)
        assert rest == whole[done:]


def test_seed_decides(tmp_path):
    assert toy(tmp_path / "a", length=1) == toy(tmp_path / "b", length=1, workers=2)
    assert toy(tmp_path / "a", length=1) != toy(tmp_path / "c", length=1, seed=2)


def test_two_processes(tmp_path):
    for start in (None, str(tmp_path / "iter_4.pth")):
        runs = [
            Training(tmp_path, processes, rank, tmp_path, dict(workers=1, load_from=start))
            for rank in range(2)
        ]
        for run in runs:
            run.wait()
    whole, resumed = (
        [json.loads((tmp_path / f"{name}_{rank}.json").read_text()) for rank in range(2)]
        for name in ("whole", "resumed")
    )
    # three epochs of three iterations: the checkpoint is within the second
    assert [len(seen) for seen in whole] == [9, 9]
    for rank in range(2):
        without_weight = [[seen[:-1] for seen in run[rank]] for run in (resumed, whole)]
        assert without_weight[0] == without_weight[1][4:]
    assert all(a[1] != b[1] and a[-2] != b[-2] for a, b in zip(*whole, strict=True))


@pytest.mark.parametrize(
    "kind",
    [CpuAmpOptimWrapper, pytest.param(AmpOptimWrapper, marks=pytest.mark.gpu)],
    ids=["cpu", "gpu"],
)
def test_loss_scale(kind, tmp_path):
    wrapper = dict(type=kind, loss_scale=dict(init_scale=4.0, growth_interval=2))
    whole = toy_runner(tmp_path / "whole", length=1, wrapper=wrapper)
    whole.train()
    start = str(tmp_path / "whole/iter_3.pth")  # between two growths
    rest = toy_runner(tmp_path / "rest", length=1, wrapper=wrapper, load_from=start, seed=2)
    rest.train()
    assert rest.model.seen == whole.model.seen[3:]
    scale, expected = (one.optim_wrapper.loss_scaler.state_dict() for one in (rest, whole))
    assert scale == expected and (scale["scale"], scale["_growth_tracker"]) == (16.0, 1)
    (log,) = (tmp_path / "rest").glob("*/*.log")
    assert (
        "restored: weights, optimizer, loss scale, log; not in the checkpoint: " in log.read_text()
    )


def test_between_optimizer_steps_is_said(tmp_path):
    wrapper = dict(accumulative_counts=2)
    whole = toy(tmp_path / "whole", length=1, wrapper=wrapper)
    for done, exact in ((2, True), (3, False)):
        folder, start = tmp_path / f"from_{done}", str(tmp_path / f"whole/iter_{done}.pth")
        rest = toy(folder, length=1, wrapper=wrapper, load_from=start)
        (log,) = folder.glob("*/*.log")
        assert ("gradients are not in it" not in log.read_text()) is exact
        assert (rest == whole[done:]) is exact


def test_other_data_order_is_said(tmp_path):
    toy(tmp_path / "whole", length=1)
    start = read_checkpoint(tmp_path / "whole/iter_3.pth")
    start["message_hub"]["runtime_info"]["vig_mm_data_order"]["processes"] = 4
    torch.save(start, tmp_path / "start.pth")
    seen = toy(tmp_path / "rest", load_from=str(tmp_path / "start.pth"), length=1)
    assert len(seen) == 5  # the whole epoch
    (log,) = (tmp_path / "rest").glob("*/*.log")
    assert "processes was 4, is 1" in log.read_text()


def test_loader_must_be_a_config():
    with pytest.raises(TypeError, match="takes train_dataloader as a config dict, got list"):
        LOOPS.build(
            dict(type="vig_mm.EpochBasedTrainLoop", runner=None, dataloader=[], max_epochs=1)
        )
