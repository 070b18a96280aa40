"""A checkpoint is whole or not there, whatever happens while it is written."""

import errno
import os
import resource

import pytest
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from toy import toy, toy_runner
from trainings import Training

from vig_mm.apis.launch import run
from vig_mm.checkpoints.reading import CheckpointError, read_checkpoint
from vig_mm.engine.loops.resume import latest_checkpoint

LARGER_THAN_LOGS, LARGE = 1_000_000, 10_000_000  # numbers; 40 MB take a while to write
KEEP_ONE = dict(max_keep_ckpts=1)


def files(folder):
    return sorted(path.name for path in folder.glob("*.pth*"))


def test_killed_while_writing(tmp_path):
    training = Training(
        tmp_path, toy, tmp_path, False, 1000, 0, "DefaultSampler", 1, None, LARGE, KEEP_ONE
    )
    part = tmp_path / "iter_3.pth.part"
    training.wait_until(lambda: part.exists() and part.stat().st_size)
    training.kill()
    assert part.exists() and not (tmp_path / "iter_3.pth").exists()
    start = latest_checkpoint(tmp_path)
    assert start == str(tmp_path / "iter_2.pth")
    assert read_checkpoint(start)["meta"]["iter"] == 2

    (tmp_path / "mine.part").touch()
    seen = toy(tmp_path, False, 4, load_from=start, size=LARGE, checkpoint=KEEP_ONE)
    assert len(seen) == 2
    assert files(tmp_path) == ["iter_4.pth"]
    assert sorted(path.name for path in tmp_path.glob("*.part")) == ["mine.part"]


def train_limited(size, work_dir, start):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    options = dict(size=LARGER_THAN_LOGS, checkpoint=dict(interval=5, **KEEP_ONE))
    run(lambda: toy(work_dir, length=2, load_from=start, **options))


def test_cannot_be_written(tmp_path):
    """The limit of a process on the size of its files stands for a full disk."""
    toy(tmp_path, length=1, size=LARGER_THAN_LOGS, checkpoint=dict(interval=5, **KEEP_ONE))
    first = (tmp_path / "iter_5.pth").read_bytes()
    start = str(tmp_path / "iter_5.pth")
    output = Training(tmp_path, train_limited, len(first) - 100, tmp_path, start).wait(ok=False)
    assert "Traceback" not in output
    (message,) = (line for line in output.splitlines() if ": error: " in line)
    assert f"error: cannot write '{tmp_path}/iter_10.pth': File too large." in message
    assert "A checkpoint takes about 3.8 MiB, and " in message
    assert f"The last one, '{start}', is untouched." in message and "--resume" in message
    assert files(tmp_path) == ["iter_5.pth"]
    assert (tmp_path / "iter_5.pth").read_bytes() == first
    assert latest_checkpoint(tmp_path) == start


def test_other_full_disk_is_one_message():
    """A log, for example."""

    def main():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "scalars.json")

    with pytest.raises(SystemExit, match="No space left on device: 'scalars.json': make room"):
        run(main)


def test_best_checkpoint(tmp_path, monkeypatch):
    options = dict(by_epoch=True, save_best="score", rule="greater")
    runner = toy_runner(tmp_path, length=1, checkpoint=options)
    runner.train()
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, CheckpointHook))
    hook.after_val_epoch(runner, dict(score=0.5))
    assert files(tmp_path) == ["best_score_epoch_1.pth", "epoch_1.pth"]
    hook.after_val_epoch(runner, dict(score=0.6))  # of the same epoch, so under the same name
    assert files(tmp_path) == ["best_score_epoch_1.pth", "epoch_1.pth"]
    runner.train_loop._epoch = 2
    hook.after_val_epoch(runner, dict(score=0.4))
    assert files(tmp_path) == ["best_score_epoch_1.pth", "epoch_1.pth"]
    hook.after_val_epoch(runner, dict(score=0.8))
    assert files(tmp_path) == ["best_score_epoch_2.pth", "epoch_1.pth", "epoch_2.pth"]
    best = read_checkpoint(tmp_path / "best_score_epoch_2.pth")
    assert best["message_hub"]["runtime_info"]["best_score"] == 0.8

    def full(self, data, path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    runner.train_loop._epoch = 3
    monkeypatch.setattr(LocalBackend, "put", full)
    with pytest.raises(CheckpointError, match="best_score_epoch_3.pth': No space left"):
        hook.after_val_epoch(runner, dict(score=0.9))
    assert files(tmp_path) == ["best_score_epoch_2.pth", "epoch_1.pth", "epoch_2.pth"]
