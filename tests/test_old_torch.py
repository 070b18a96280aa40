"""Older torch: which is refused, and what runs without that which it lacks (docs/install.md)."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vig_mm.apis.launch import run
from vig_mm.checkpoints.reading import read_checkpoint
from vig_mm.errors import RequirementError
from vig_mm.serialization import check_torch

ROOT = Path(__file__).resolve().parents[1]
REASON = r"torch 2\.5\.1\+cu124 is too old: .*CVE-2025-32434.*pip install 'torch>=2\.6'"


def test_tools_and_checkpoints_refuse_torch_before_2_6(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    check_torch()  # this one is taken
    file = tmp_path / "weights.pth"
    torch.save({"state_dict": {"a": torch.zeros(1)}}, file)
    monkeypatch.setattr(torch, "__version__", "2.5.1+cu124")
    with pytest.raises(RequirementError, match=REASON):
        read_checkpoint(file)
    started = []
    with pytest.raises(SystemExit, match=REASON):
        run(lambda: started.append(1))
    assert not started
    monkeypatch.setattr(torch, "__version__", "2.10.0a0+git123")
    check_torch()


def test_without_what_torch_2_6_lacks() -> None:
    """`torch.compiler.is_exporting` came with 2.7."""
    code = (
        "import torch\n"
        "if hasattr(torch.compiler, 'is_exporting'):\n"
        "    del torch.compiler.is_exporting\n"
        "from vig_mm.kernels.trace_time import is_exporting\n"
        "assert not is_exporting()\n"
        "from vig_mm.nets import ViG\n"
        "model = ViG(embed_dims=32, depth=1, num_heads=2).eval()\n"
        "x = torch.zeros(1, 3, 32, 32)\n"
        "model(x)[0]\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_package_asks_for_this_torch() -> None:
    assert "torch>=2.6\n" in (ROOT / "requirements" / "core.txt").read_text()
