"""A checkpoint is whole or not there, whatever happens while it is written."""

import ctypes
import errno
import os
import resource
import shutil
import sys
from pathlib import Path

import pytest
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from toy import toy, toy_runner
from trainings import Training, train_py

from vig_mm.apis.launch import run
from vig_mm.checkpoints.reading import CheckpointError, read_checkpoint
from vig_mm.datasets import make_digits
from vig_mm.engine.loops.resume import latest_checkpoint

ROOT = Path(__file__).resolve().parents[3]
LARGE = 10_000_000  # numbers, 40 MB: takes a while to write


def files(folder):
    return sorted(path.name for path in folder.glob("*.pth*"))


def error_of(output):
    assert "Traceback" not in output
    (line,) = (line for line in output.splitlines() if ": error: " in line)
    return line


def test_killed_while_writing(tmp_path):
    training = Training(
        tmp_path, toy, tmp_path, False, 1000, 0, "DefaultSampler", 1, None, LARGE, _KEEP_ONE
    )
    part = tmp_path / "iter_3.pth.part"
    training.wait_until(lambda: part.exists() and part.stat().st_size)
    training.kill()
    assert part.exists() and not (tmp_path / "iter_3.pth").exists()
    start = latest_checkpoint(tmp_path)
    assert start == str(tmp_path / "iter_2.pth")
    assert read_checkpoint(start)["meta"]["iter"] == 2

    (tmp_path / "mine.part").touch()
    seen = toy(tmp_path, False, 4, load_from=start, size=LARGE, checkpoint=_KEEP_ONE)
    assert len(seen) == 2
    assert files(tmp_path) == ["iter_4.pth"]
    assert sorted(path.name for path in tmp_path.glob("*.part")) == ["mine.part"]


_KEEP_ONE = dict(max_keep_ckpts=1)


def test_cannot_be_written(tmp_path):
    """The limit of a process on the size of its files stands for a full disk."""
    toy(tmp_path, length=1, size=_LARGER_THAN_LOGS, checkpoint=dict(interval=5, **_KEEP_ONE))
    first = (tmp_path / "iter_5.pth").read_bytes()
    start = str(tmp_path / "iter_5.pth")
    output = Training(tmp_path, _limited, len(first) - 100, tmp_path, start).wait(ok=False)
    message = error_of(output)
    assert f"error: cannot write '{tmp_path}/iter_10.pth': File too large." in message
    assert "A checkpoint takes about 3.8 MiB, and " in message
    assert f"The last one, '{start}', is untouched." in message and "--resume" in message
    assert files(tmp_path) == ["iter_5.pth"] and Path(start).read_bytes() == first
    assert latest_checkpoint(tmp_path) == start


_LARGER_THAN_LOGS = 1_000_000


def _limited(size, work_dir, start):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    options = dict(size=_LARGER_THAN_LOGS, checkpoint=dict(interval=5, **_KEEP_ONE))
    run(lambda: toy(work_dir, length=2, load_from=start, **options))


def test_full_disk(tmp_path):
    """tools/train.py on a file system with room for one checkpoint and a half."""
    for library in ("mmcv", "mmpretrain"):
        pytest.importorskip(library)
    from tool_runs import small_config

    make_digits(tmp_path / "data/digits", coco=(0, 0), ade=(0, 0), imagenet=(1, 1))
    changes = {"train_cfg.val_begin": 100, "default_hooks.checkpoint.max_keep_ckpts": 1}
    config = small_config("mmpretrain/vig-h-mini_digits.py", tmp_path, changes)
    whole = tmp_path / "whole"
    once = ["--seed", "1", "--cfg-options", "train_cfg.max_epochs=1"]
    Training(tmp_path, train_py, config, "--work-dir", whole, *once).wait()
    size = (whole / "epoch_1.pth").stat().st_size

    training = Training(tmp_path, _on_small_disk, tmp_path, int(1.5 * size), config)
    training._process.join()
    if training._process.exitcode == _CANNOT_MOUNT:
        pytest.skip("file systems cannot be mounted here")
    output = training.wait(ok=False)
    message = error_of(output)
    assert "error: cannot write '" in message and "epoch_2.pth': No space left on device" in message
    left = tmp_path / "left"
    assert files(left) == ["epoch_1.pth"]
    assert latest_checkpoint(left) == str(left / "epoch_1.pth")
    assert read_checkpoint(left / "epoch_1.pth")["meta"]["iter"] == 1


_CANNOT_MOUNT = 77


def _on_small_disk(folder, size, config):
    """Train in a file system of so many bytes that only this process sees."""
    disk, libc = folder / "disk", ctypes.CDLL(None, use_errno=True)
    disk.mkdir()
    new_namespace, private, recursive = 0x20000, 1 << 18, 1 << 14
    if (
        libc.unshare(new_namespace)
        or libc.mount(b"none", b"/", None, private | recursive, None)
        or libc.mount(b"tmpfs", bytes(disk), b"tmpfs", 0, b"size=%d" % size)
    ):
        sys.exit(_CANNOT_MOUNT)
    try:
        train_py(config, "--work-dir", disk, "--seed", "1")
    finally:
        shutil.copytree(disk, folder / "left")


def test_other_full_disk_is_one_message(capsys):
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
