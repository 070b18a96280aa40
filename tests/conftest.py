"""Tests marked `gpu` run where there is a CUDA device and are skipped elsewhere."""

import atexit
import gc
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from vig_mm.checks.environment import collect_nanobind, tell_mmengine_of_forks

ROOT = Path(__file__).resolve().parents[1]

gc.disable()  # until all tests are imported, see `vig_mm.checks.environment.import_quickly`

if not torch.cuda.is_available():
    # Triton decides when it is imported, and mmseg imports it
    os.environ["TRITON_INTERPRET"] = "1"
    if importlib.util.find_spec("triton"):
        from quick_interpreter import patch_the_language_once

        patch_the_language_once()

tell_mmengine_of_forks()

if "PYTEST_XDIST_WORKER" in os.environ:
    # threads of more workers than cores would wait for each other, spinning
    workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    threads = max(len(os.sched_getaffinity(0)) // workers, 1)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # for processes that tests start
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What mmengine's logger says."""
    from mmengine.logging import MMLogger

    logger = MMLogger.get_instance("vig_mm-test")  # the newest is the current one
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO):
        yield caplog
    MMLogger._instance_dict.pop("vig_mm-test")


@pytest.fixture
def load_tool(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """`load_tool(name)` imports a file under tools/."""

    def load(name: str) -> ModuleType:
        path = ROOT / "tools" / f"{name}.py"
        # where Python looks for modules when it runs the file
        monkeypatch.syspath_prepend(str(path.parent))
        spec = importlib.util.spec_from_file_location(f"tools_{path.stem}", path)
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        return loaded

    return load


@pytest.fixture
def run_tool(load_tool, monkeypatch, capsys) -> Callable[..., str]:
    """`run_tool(name, *args, cwd=folder)` calls the main function; returns what it printed."""

    def call(name: str, *args, cwd: Path) -> str:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, args)])
        capsys.readouterr()
        load_tool(name).main()
        return capsys.readouterr().out

    return call


@pytest.fixture
def default_scope() -> Iterator[None]:
    """Forget the default scope that a tool sets for its whole process."""
    from mmengine.registry import DefaultScope

    before = dict(DefaultScope._instance_dict)
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(before)


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()
    atexit.register(collect_nanobind)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
