"""One bar on a terminal, ten lines elsewhere, and nothing of mmengine's log."""

import os
import pty
import re
import select
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

pytest.importorskip("mmengine")

from vig_mm.engine.hooks import ProgressBarHook

# 4 epochs of 20 iterations (or 80 iterations), then a test of 30.
RUN = textwrap.dedent("""
    import sys, torch
    from mmengine.model import BaseModel
    from mmengine.runner import Runner
    import vig_mm.registry

    class Model(BaseModel):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)
        def forward(self, inputs, mode):
            y = self.layer(inputs)
            return dict(loss=0 * y.mean() + 2.5) if mode == "loss" else [y]

    class Metric:
        dataset_meta = None
        def process(self, **kwargs): pass
        def evaluate(self, size): return {}

    def loader(n):
        data = [torch.ones(1)] * n
        return torch.utils.data.DataLoader(data, collate_fn=lambda x: {"inputs": x[0]})

    train, test, work_dir, fd = sys.argv[1:]
    cfg = dict(by_epoch=False, max_iters=80)
    if train == "epochs":
        cfg = dict(by_epoch=True, max_epochs=4)
    runner = Runner(
        Model(), work_dir=work_dir, train_dataloader=loader(20), train_cfg=cfg,
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1)),
        test_dataloader=loader(30), test_cfg=dict(), test_evaluator=Metric(),
        default_hooks=dict(progress=dict(type="vig_mm.ProgressBarHook", fd=int(fd))),
    )
    runner.train()
    if test == "test":
        runner.test()
    if test == "dies":
        raise RuntimeError
""")


def command(tmp_path: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-W", "ignore", "-c", RUN, *arguments[:2], str(tmp_path), arguments[2]]


@pytest.mark.parametrize("train", ["epochs", "iterations"])
def test_lines_where_there_is_no_terminal(tmp_path: Path, train: str) -> None:
    result = subprocess.run(
        command(tmp_path, train, "test", "2"), capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("  ")]
    where = "epoch 1/4" if train == "epochs" else "training"
    assert lines[0] == f"  {where}, 1/80, loss 2.500"
    assert re.fullmatch(rf"  {where}, \d+/80, loss 2\.500, \d+:\d\d to go", lines[1])
    last = "epoch 4/4" if train == "epochs" else "training"
    train_lines = [line for line in lines if "testing" not in line]
    assert re.fullmatch(rf"  {last}, 80/80, loss 2\.500, 0:00 to go", train_lines[-1])
    assert 10 <= len(train_lines) <= 11
    test_lines = [line for line in lines if "testing" in line]
    assert 10 <= len(test_lines) <= 11 and test_lines[-1] == "  testing, 30/30, 0:00 to go"
    assert "Epoch(train)" in result.stdout or "Iter(train)" in result.stdout


def on_terminal(arguments: list[str]) -> tuple[int, str]:
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
    status, drawn = on_terminal(command(tmp_path, "epochs", "test", "3"))
    assert status == 0
    assert "epoch 4/4" in drawn and "100%" in drawn and "loss 2.500" in drawn and "to go" in drawn
    assert "testing" in drawn
    assert drawn.count("\n") <= 6  # drawn over itself, not line by line
    assert "Epoch(train)" not in drawn


def test_cursor_is_back_after_an_error(tmp_path: Path) -> None:
    status, drawn = on_terminal(command(tmp_path, "epochs", "dies", "3"))
    assert status == 1
    assert drawn.rfind("\x1b[?25h") > drawn.rfind("\x1b[?25l") >= 0


def test_descriptor_that_is_not_open() -> None:
    with pytest.raises(ValueError, match="file descriptor 987 is not open"):
        ProgressBarHook(fd=987)
