"""The documentation builds without warnings and dead links."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(
    any(
        importlib.util.find_spec(name) is None
        for name in ("sphinx", "myst_nb", "furo", "ipykernel")
    ),
    reason="needs requirements/docs.txt",
)
def test_site_builds(tmp_path: Path) -> None:
    """Warnings are errors: links to pages, headings and files, pictures, names of the API page."""
    command = "-m sphinx -W --keep-going -E -q -b html docs".split()
    done = subprocess.run(
        [sys.executable, *command, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    notebook = (tmp_path / "notebook.html").read_text()  # run from top to bottom
    assert notebook.count("<img alt=") >= 3 and "accuracy on 300 unseen digits" in notebook
    api = (tmp_path / "api.html").read_text()
    for name in ("vig_mm.HierViG", "vig_mm.ViGAdapter", "vig_mm.kernels.bidirectional_gla"):
        assert f'id="{name}"' in api
