"""The documentation builds without warnings and dead links; its figures are the counted ones."""

import importlib.util
import json
import re
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


def test_peers_page_shows_the_counted_figures() -> None:
    page = (ROOT / "docs/peers.md").read_text()
    models = json.loads((ROOT / "docs/models.json").read_text())["models"]
    counted = {
        row["config"]: f"{row['parameters'] / 1e6:.2f}, {row['flops'] / 1e9:.2f}" for row in models
    }
    shown = re.findall(r"\[(\d[\d.]+, [\d.]+)(?: at (\d+)x(\d+))?\]\(\.\./(configs/[^)]+)\)", page)
    assert {config: figures for figures, _, _, config in shown}.items() <= counted.items()
    sizes = {row["config"]: row["input"] for row in models}
    assert all(sizes[config] == [int(h), int(w)] for _, h, w, config in shown if h)
    peers = {
        config for config in counted if "/peers/" in config and "/peers/mask-rcnn_vig" not in config
    }
    assert peers <= {config for *_, config in shown}, "python tools/analysis/model_table.py"
