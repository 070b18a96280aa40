"""Trainings by tools/train.py, each in a process of its own that can be killed."""

import contextlib
import json
import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from vig_mm.checkpoints.reading import read_checkpoint

ROOT = Path(__file__).resolve().parents[3]
_PATIENCE = 600  # seconds, for busy machines

# Processes fork from one that has imported the libraries, which takes ten seconds a time.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["mmdet.models", "mmseg.models", "mmpretrain.models"])


class Training:
    """``target(*args)`` in a new process, its output in a file.

    Args:
        cwd: Its working directory.
    """

    def __init__(self, cwd: Path, target: Callable, *args) -> None:
        self.log = cwd / f"log_{time.monotonic_ns()}.txt"
        self._process = _CONTEXT.Process(target=_run, args=(cwd, self.log, target, args))
        self._process.start()

    @property
    def output(self) -> str:
        return self.log.read_text()

    def kill(self) -> None:
        """SIGKILL, in the middle of its work."""
        assert self._process.is_alive(), self.output[-3000:]
        self._process.kill()
        self._process.join()
        # its data workers, which torch leaves waiting for it
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def wait(self, ok: bool = True) -> str:
        self._process.join(_PATIENCE)
        assert (self._process.exitcode == 0) is ok, self.output[-5000:]
        return self.output

    def wait_until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + _PATIENCE
        while not condition():
            assert self._process.is_alive() and time.monotonic() < end, self.output[-5000:]
            time.sleep(0.002)


def _run(cwd: Path, log: Path, target: Callable, args: tuple) -> None:
    os.setpgrp()
    os.chdir(cwd)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    target(*args)


def train_py(*args: str | Path) -> None:
    """What `python tools/train.py ARGS` does."""
    sys.argv = ["train.py", *map(str, args)]
    runpy.run_path(str(ROOT / "tools/train.py"), run_name="__main__")


def curve(work_dir: Path) -> dict[int, dict]:
    """iteration -> what the scalars file says of it, of all runs in a folder, the latest counts."""
    entries = {}
    for path in sorted(work_dir.glob("*/vis_data/scalars.json")):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if "loss" in entry:
                keep = {k: x for k, x in entry.items() if k not in ("time", "data_time", "memory")}
                entries[entry["step"]] = keep
    return entries


def lines(work_dir: Path) -> int:
    """Finished lines of the scalars files, also while they are being written."""
    return sum(
        path.read_bytes().count(b'"loss"') for path in work_dir.glob("*/vis_data/scalars.json")
    )


def last(work_dir: Path) -> dict:
    """The checkpoint that ``last_checkpoint`` names."""
    return read_checkpoint((work_dir / "last_checkpoint").read_text())


def training_state(checkpoint: dict) -> dict:
    """What training goes on from: all but the log and what names the run."""
    parts = ("state_dict", "ema_state_dict", "optimizer", "param_schedulers")
    return {part: checkpoint[part] for part in parts if part in checkpoint}
