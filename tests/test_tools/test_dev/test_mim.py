"""OpenMMLab's `mim` on a regular install of this package: tools/dev/check_mim.sh and how it fails.

The script fetches openmim where it is not installed; everything else is local.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mmcv")
pytest.importorskip("mmpretrain")

ROOT = Path(__file__).resolve().parents[3]
COMMANDS = ["pip install .", "mim install .", "mim list"]
COMMANDS += [f"mim {x} vig_mm" for x in ("search", "train", "test", "run", "download")]


def run_script(folder: Path, *arguments: str, path: Path) -> subprocess.CompletedProcess:
    """Run the script in `folder`, with `path` first on the PATH and `folder` as its TMPDIR."""
    return subprocess.run(
        ["bash", str(ROOT / "tools/dev/check_mim.sh"), *arguments],
        cwd=folder,
        env=os.environ | {"PATH": f"{path}:{os.environ['PATH']}", "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=900,
    )


def traces_of_a_build() -> set[Path]:
    return {*ROOT.glob("build"), *ROOT.glob("*.egg-info")}


def test_every_command_works_on_a_regular_install(tmp_path: Path) -> None:
    built_before = traces_of_a_build()
    done = run_script(tmp_path, path=Path(sys.executable).parent)
    assert done.returncode == 0, done.stdout + done.stderr
    for command in COMMANDS:
        assert f"\nok: {command}" in f"\n{done.stdout}", (command, done.stdout)
    assert not list(tmp_path.iterdir()) and traces_of_a_build() == built_before


def test_bad_call_is_one_message(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    done = run_script(tmp_path, path=tmp_path)
    assert done.returncode == 1 and not done.stdout
    assert f"{python} lacks mmengine" in done.stderr and "setup_env.sh" in done.stderr

    done = run_script(tmp_path, "--fresh", path=tmp_path)
    assert done.returncode == 2
    assert "unknown argument '--fresh'" in done.stderr
