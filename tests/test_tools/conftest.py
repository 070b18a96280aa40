"""What the tests share of the tools that look at data and results."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def load_tool(monkeypatch):
    """`load_tool(name)` imports a file under tools/."""

    def load(name: str):
        path = ROOT / "tools" / f"{name}.py"
        # where Python looks for modules when it runs the file
        monkeypatch.syspath_prepend(str(path.parent))
        spec = importlib.util.spec_from_file_location(f"tools_{path.stem}", path)
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        return loaded

    return load


@pytest.fixture
def run_tool(load_tool, monkeypatch, capsys):
    """`run_tool(name, *args, cwd=folder)` calls the main function; returns what it printed."""

    def call(name: str, *args, cwd: Path) -> str:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, args)])
        capsys.readouterr()
        load_tool(name).main()
        return capsys.readouterr().out

    return call


@pytest.fixture
def default_scope():
    """Forget the default scope that a tool sets for its whole process."""
    from mmengine.registry import DefaultScope

    before = dict(DefaultScope._instance_dict)
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(before)


@pytest.fixture(scope="session")
def known(tmp_path_factory):
    """See `known_cases.known_cases`."""
    for library in ("mmdet", "mmseg", "mmpretrain"):
        pytest.importorskip(library)
    from known_cases import known_cases

    return known_cases(tmp_path_factory.mktemp)
