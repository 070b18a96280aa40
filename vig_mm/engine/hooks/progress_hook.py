"""Hook that shows one progress bar in place of a line every few steps."""

import atexit
import os
import time
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from torch import Tensor

from vig_mm.registry import HOOKS

LINES = 10
"""How many lines a training or a test prints where there is no terminal."""


@HOOKS.register_module()
class ProgressBarHook(Hook):
    """A bar with loss and time left for training, and one for testing.

    On what is no terminal it prints ten lines instead. It leaves mmengine's log as it is: send that
    to a file, and give this hook a descriptor of the terminal.

        python tools/train.py CONFIG --cfg-options default_hooks.progress.fd=3 \\
            default_hooks.progress.type=vig_mm.ProgressBarHook 3>&1 >train.log 2>&1

    Args:
        fd: file descriptor to draw on; 2 is standard error.

    Raises:
        ValueError: `fd` is not open.
    """

    priority = "VERY_LOW"

    def __init__(self, fd: int = 2) -> None:
        try:
            self._file = os.fdopen(os.dup(fd), "w")
        except OSError as error:
            raise ValueError(f"ProgressBarHook: file descriptor {fd} is not open") from error
        self._terminal = self._file.isatty()
        self._bar: Progress | None = None

    def before_train(self, runner: Any) -> None:
        self._start(runner.iter, runner.max_iters)

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        epochs = runner.max_epochs  # 1 for training by iterations
        where = f"epoch {runner.epoch + 1}/{epochs}" if epochs > 1 else "training"
        self._show(runner.iter + 1, where, (outputs or {}).get("loss"))

    def after_train(self, runner: Any) -> None:
        self._stop()

    def before_test(self, runner: Any) -> None:
        self._start(0, len(runner.test_dataloader))

    def after_test_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self._show(batch_idx + 1, "testing", None)

    def after_test(self, runner: Any) -> None:
        self._stop()

    def _start(self, done: int, total: int) -> None:
        self._total, self._first, self._since = total, done, time.monotonic()
        self._next, self._seen = done, 0.0
        if not self._terminal or not is_main_process():
            return
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeRemainingColumn(),
            TextColumn("to go"),
        )
        self._bar = Progress(*columns, console=Console(file=self._file))
        self._task = self._bar.add_task("", total=total, completed=done, loss="")
        self._bar.start()
        atexit.register(self._stop)  # an interrupt must not leave the cursor hidden

    def _show(self, done: int, where: str, loss: Any) -> None:
        now = time.monotonic()
        last = done == self._total
        if self._bar is not None:
            # reading a loss makes a GPU wait
            if last or now - self._seen >= 0.5:
                self._seen = now
                shown = {} if loss is None else {"loss": f"loss {_number(loss):.3f}"}
                self._bar.update(self._task, completed=done, description=where, **shown)
        elif is_main_process() and not self._terminal and (done >= self._next or last):
            self._next = done + self._total // LINES
            shown = "" if loss is None else f", loss {_number(loss):.3f}"
            if done > self._first + 1:  # the first one takes longer
                left = int((now - self._since) / (done - self._first) * (self._total - done))
                shown += f", {left // 60}:{left % 60:02d} to go"
            print(f"  {where}, {done}/{self._total}{shown}", file=self._file, flush=True)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _number(loss: Tensor | float) -> float:
    return loss.item() if isinstance(loss, Tensor) else loss
