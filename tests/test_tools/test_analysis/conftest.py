"""What the tests of tools/analysis_tools share."""

import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[3] / "tools/analysis_tools"


@pytest.fixture(scope="module")
def analysis_tool():
    """`analysis_tool(name)` imports a command; those of a module share `common`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module
