"""Hook that writes checkpoints atomically.

mmengine 0.10.7 removes the oldest checkpoint before it writes the new one, and writes under the
final name: a full disk or a kill at that moment leaves half a file, which `--resume` then takes.
"""

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.dist import barrier, is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import Tensor

from vig_mm.checkpoints.reading import CheckpointError
from vig_mm.engine.loops.resume import check_optimizer_state
from vig_mm.registry import HOOKS

PART = ".part"
"""What is behind a checkpoint's name as long as it is being written."""


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook with atomic writes.

    Checkpoints, including the best one, and ``last_checkpoint`` are written under a temporary name,
    flushed and renamed; older checkpoints are removed after that. The disk needs room for one
    checkpoint more than are kept. Storage other than local files (`backend_args`) is used as it is.

    Raises:
        CheckpointError: while saving: there is no room, or the file cannot be written.
    """

    def before_train(self, runner: Any) -> None:
        super().before_train(runner)
        self._local = isinstance(self.file_backend, LocalBackend)
        self._bytes = 0
        if self._local and is_main_process():
            for path in map(str, Path(self.out_dir).glob(f"*.pth{PART}")):
                print_log(f"removing {path!r}: its writing was interrupted", "current")
                _remove(path)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Note how much is going to be written."""
        self._bytes = sum(tensor.nbytes for tensor in _tensors(checkpoint))

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Log what a resumed run takes from its checkpoint.

        Raises:
            CheckpointError: its optimizer state does not fit the run's optimizer.
        """
        if not runner._resume:
            return
        state = checkpoint.get("optimizer") or {}
        # FlexibleRunner's strategies and wrappers of several optimizers have forms of their own
        if isinstance(runner, Runner) and "param_groups" in state:
            check_optimizer_state(runner.optim_wrapper.optimizer, state, runner._load_from)
        parts = {
            "weights": "state_dict" in checkpoint,
            "averaged weights": "ema_state_dict" in checkpoint,
            "optimizer": bool(state),
            "loss scale": "loss_scaler" in state,
            "learning rate schedule": "param_schedulers" in checkpoint,
            "log": "message_hub" in checkpoint,
        }
        lacking = [name for name, there in parts.items() if not there]
        print_log(
            f"restored: {', '.join(name for name, there in parts.items() if there)}"
            + (f"; not in the checkpoint: {', '.join(lacking)}" if lacking else ""),
            "current",
        )

    def _save_checkpoint(self, runner: Any) -> None:
        super()._save_checkpoint(_Whole(runner, self) if self._local else runner)
        gc.collect()  # mmengine formats the config every time, and leaves megabytes of cycles

    def _save_best_checkpoint(self, runner: Any, metrics: dict) -> None:
        if not self._local:
            super()._save_best_checkpoint(runner, metrics)
            return
        backend, runner = self.file_backend, _Whole(runner, self)
        self.file_backend = _Later(backend)
        try:
            super()._save_best_checkpoint(runner, metrics)
            outdated = self.file_backend.outdated
        finally:
            self.file_backend = backend
        for path in outdated:
            if path not in runner.written:
                _remove(path)

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict) -> None:
        if not self._local:
            super()._save_checkpoint_with_step(runner, step, meta)
            return
        outdated = []
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            kept = [*self.keep_ckpt_ids, step]
            outdated = kept[: -self.max_keep_ckpts]
            self.keep_ckpt_ids.append(step)  # a deque that drops the first
            runner.message_hub.update_info("keep_ckpt_ids", list(self.keep_ckpt_ids))

        name = self.filename_tmpl.format(step)
        self.last_ckpt = os.path.join(self.out_dir, name)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            **self.args,
        )
        if is_main_process():
            self._point_to(self.last_ckpt, runner.work_dir)
            for old in outdated:
                _remove(os.path.join(self.out_dir, self.filename_tmpl.format(old)))

    def _point_to(self, path: str, work_dir: str) -> None:
        """Write the file by which `--resume` finds a checkpoint."""
        pointer = os.path.join(work_dir, "last_checkpoint")
        try:
            Path(pointer + PART).write_text(path)
            _settle(pointer)
        except OSError as error:
            raise self._error(pointer, error, work_dir) from error

    def _error(self, path: str, error: OSError, work_dir: str) -> CheckpointError:
        _remove(path + PART)
        folder = os.path.dirname(path)
        while not os.path.isdir(folder):
            folder = os.path.dirname(folder)
        pointer = Path(work_dir, "last_checkpoint")
        last = pointer.read_text() if pointer.is_file() else None
        return CheckpointError(
            f"cannot write {path!r}: {error.strerror or error}. A checkpoint takes about "
            f"{_size(self._bytes)}, and {_size(shutil.disk_usage(folder).free)} are free in "
            f"{folder!r}. "
            + (f"The last one, {last!r}, is untouched. " if last else "There is none before it. ")
            + "Make room, or keep fewer (default_hooks.checkpoint.max_keep_ckpts), or write them "
            "elsewhere (default_hooks.checkpoint.out_dir); then go on with --resume."
        )


class _Whole:
    """A Runner whose checkpoints get their names when they are on the disk."""

    def __init__(self, runner: Any, hook: SafeCheckpointHook) -> None:
        self._runner = runner
        self._hook = hook
        self.written: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def save_checkpoint(self, out_dir: str, filename: str, *args, **kwargs) -> None:
        path = os.path.join(out_dir, filename)
        try:
            self._runner.save_checkpoint(out_dir, filename + PART, *args, **kwargs)
            barrier()  # with sharded weights every process writes
            if is_main_process():
                _settle(path)
            self.written.append(path)
        except OSError as error:
            raise self._hook._error(path, error, self._runner.work_dir) from error


class _Later:
    """A file backend that only notes what is outdated."""

    def __init__(self, backend: LocalBackend) -> None:
        self._backend = backend
        self.outdated: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        self.outdated.append(path)

    rmtree = remove


def _settle(path: str) -> None:
    """Give a file that was written under a temporary name its own, safe from a power cut."""
    _to_disk(path + PART)
    os.replace(path + PART, path)
    _to_disk(os.path.dirname(path))


def _to_disk(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: str) -> None:
    """Remove a checkpoint, if it is there: a file, or a folder of shards."""
    if os.path.isdir(path):
        shutil.rmtree(path)
    else:
        Path(path).unlink(missing_ok=True)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for entry in value.values():
            yield from _tensors(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _tensors(entry)


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"
