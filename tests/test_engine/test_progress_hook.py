"""One bar on a terminal, ten lines elsewhere, and nothing of mmengine's log."""

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner, loops
from torch.utils.data import DataLoader

import vig_mm.registry  # noqa: F401
from vig_mm.engine.hooks import ProgressBarHook


class Model(BaseModel):
    """Its loss is 2.5; `last`: it dies after so many predictions."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.left = last

    def forward(self, inputs: torch.Tensor, mode: str) -> dict | list:
        y = self.layer(inputs)
        if mode == "loss":
            return dict(loss=0 * y.mean() + 2.5)
        if self.left == 0:
            raise RuntimeError
        self.left -= 1
        return [y]


def loader(length: int) -> DataLoader:
    return DataLoader([torch.ones(1)] * length, collate_fn=lambda x: {"inputs": x[0]})


EPOCHS, ITERATIONS = dict(by_epoch=True, max_epochs=4), dict(by_epoch=False, max_iters=80)


def train_and_test(work_dir: str | Path, train_cfg: dict, fd: int, last: int = 30) -> None:
    """80 iterations of training, 20 an epoch, then a test of 30."""
    scores_nothing = SimpleNamespace(
        dataset_meta=None, process=lambda **_: None, evaluate=lambda size: {}
    )
    runner = Runner(
        Model(last),
        work_dir=str(work_dir),
        train_dataloader=loader(20),
        train_cfg=train_cfg,
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1)),
        test_dataloader=loader(30),
        test_cfg=dict(),
        test_evaluator=scores_nothing,
        default_hooks=dict(progress=dict(type="vig_mm.ProgressBarHook", fd=fd)),
        experiment_name=str(work_dir),
    )
    runner.train()
    runner.test()


@pytest.mark.parametrize("train_cfg", [EPOCHS, ITERATIONS], ids=["epochs", "iterations"])
def test_lines_where_there_is_no_terminal(train_cfg: dict, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(loops.time, "sleep", lambda seconds: None)  # two seconds at every pass
    with open(tmp_path / "drawn.txt", "w") as file:
        train_and_test(tmp_path, train_cfg, file.fileno())
    lines = (tmp_path / "drawn.txt").read_text().splitlines()
    training = [line for line in lines if "testing" not in line]
    first, last = ("epoch 1/4", "epoch 4/4") if train_cfg is EPOCHS else ("training", "training")
    assert training[0] == f"  {first}, 1/80, loss 2.500"
    assert re.fullmatch(rf"  {first}, \d+/80, loss 2\.500, \d+:\d\d to go", training[1])
    assert training[-1] == f"  {last}, 80/80, loss 2.500, 0:00 to go"
    testing = lines[len(training) :]
    assert testing[-1] == "  testing, 30/30, 0:00 to go"
    assert 10 <= len(training) <= 11 and 10 <= len(testing) <= 11
    (log,) = tmp_path.glob("*/*.log")
    assert "(train)" in log.read_text()  # mmengine's own is as ever


def on_terminal(*arguments: str | Path) -> tuple[int, str]:
    """Exit status, and what a process draws on a terminal that is its descriptor 3 alone."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        ["bash", "-c", 'exec "$@" 3<&0 >/dev/null 2>&1', "bash", *arguments], stdin=slave
    )
    os.close(slave)
    drawn, end = b"", time.monotonic() + 200
    while time.monotonic() < end:
        if select.select([master], [], [], 0.2)[0]:
            try:
                drawn += os.read(master, 65536)
            except OSError:  # Linux's way to say that nobody has the other end
                break
        elif process.poll() is not None:
            break
    os.close(master)
    return process.wait(timeout=10), drawn.decode()


def test_bar_on_a_terminal(tmp_path: Path) -> None:
    """Of a run that dies in its test: the cursor is back."""
    status, drawn = on_terminal(sys.executable, "-W", "ignore", __file__, tmp_path)
    assert status == 1
    assert "epoch 4/4" in drawn and "100%" in drawn and "loss 2.500" in drawn and "to go" in drawn
    assert "testing" in drawn
    assert drawn.count("\n") <= 6  # drawn over itself, not line by line
    assert "Epoch(train)" not in drawn
    assert drawn.rfind("\x1b[?25h") > drawn.rfind("\x1b[?25l") >= 0


def test_descriptor_that_is_not_open() -> None:
    with pytest.raises(ValueError, match="file descriptor 987 is not open"):
        ProgressBarHook(fd=987)


if __name__ == "__main__":
    train_and_test(sys.argv[1], EPOCHS, fd=3, last=15)
