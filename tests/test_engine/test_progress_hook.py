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
from mmengine.runner import loops
from toy import toy_runner

from vig_mm.engine.hooks import ProgressBarHook


def train_and_test(work_dir: Path, by_epoch: bool, fd: int, last: int = 30) -> None:
    """20 iterations of training, 5 an epoch, then some of a test's 30."""
    options = dict(by_epoch=by_epoch, length=4 if by_epoch else 20, checkpoint=dict(interval=100))
    runner = toy_runner(work_dir, **options, progress=dict(type="vig_mm.ProgressBarHook", fd=fd))
    runner.train()
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, ProgressBarHook))
    hook.before_test(SimpleNamespace(test_dataloader=range(30)))
    for i in range(last):
        hook.after_test_iter(runner, i)
    if last < 30:
        sys.exit(1)  # a traceback would be drawn, too
    hook.after_test(runner)


@pytest.mark.parametrize("by_epoch", [True, False], ids=["epochs", "iterations"])
def test_lines_where_there_is_no_terminal(by_epoch: bool, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(loops.time, "sleep", lambda seconds: None)  # two seconds at every pass
    with open(tmp_path / "drawn.txt", "w") as file:
        train_and_test(tmp_path, by_epoch, file.fileno())
    lines = (tmp_path / "drawn.txt").read_text().splitlines()
    training = [line for line in lines if "testing" not in line]
    first, last = ("epoch 1/4", "epoch 4/4") if by_epoch else ("training", "training")
    loss = r"loss -?\d+\.\d{3}"
    assert re.fullmatch(rf"  {first}, 1/20, {loss}", training[0])
    assert re.fullmatch(rf"  {first}, 3/20, {loss}, \d+:\d\d to go", training[1])
    assert re.fullmatch(rf"  {last}, 20/20, {loss}, 0:00 to go", training[-1])
    testing = lines[len(training) :]
    assert testing[-1] == "  testing, 30/30, 0:00 to go"
    assert 10 <= len(training) <= 11 and 10 <= len(testing) <= 11
    (log,) = tmp_path.glob("*/*.log")
    assert "(train)" in log.read_text()  # mmengine's own is as ever


def on_terminal(*arguments: str | Path) -> tuple[int, str]:
    """Exit status, and what a process draws on a terminal that is its descriptor 3 alone."""
    master, slave = pty.openpty()
    command = ["bash", "-c", 'exec "$@" 3<&0 >/dev/null 2>&1', "bash", *arguments]
    process = subprocess.Popen(command, stdin=slave, env=os.environ | dict(COLUMNS="120"))
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
    """Of a run that ends within its test: the cursor is back."""
    status, drawn = on_terminal(sys.executable, "-W", "ignore", __file__, tmp_path)
    assert status == 1
    assert "epoch 4/4" in drawn and "100%" in drawn and "loss " in drawn and "to go" in drawn
    assert "testing" in drawn
    assert drawn.count("\n") <= 6  # drawn over itself, not line by line
    assert "Epoch(train)" not in drawn
    assert drawn.rfind("\x1b[?25h") > drawn.rfind("\x1b[?25l") >= 0


def test_descriptor_that_is_not_open() -> None:
    with pytest.raises(ValueError, match="file descriptor 987 is not open"):
        ProgressBarHook(fd=987)


if __name__ == "__main__":
    train_and_test(Path(sys.argv[1]), by_epoch=True, fd=3, last=15)
