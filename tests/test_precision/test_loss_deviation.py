"""tools/analysis/loss_deviation.py on logs that are made up."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

TOOL = Path(__file__).resolve().parents[2] / "tools/analysis/loss_deviation.py"


def write_log(folder: Path, losses: dict[int, float]) -> Path:
    lines = [json.dumps(dict(loss=x, iter=i, step=i)) for i, x in losses.items()]
    log = folder / "20260101_000000" / "vis_data" / "scalars.json"
    log.parent.mkdir(parents=True)
    log.write_text("\n".join(lines))
    return folder


def compare(*args) -> subprocess.CompletedProcess:
    command = [sys.executable, TOOL, *args]
    return subprocess.run([str(x) for x in command], capture_output=True, text=True)


def test_deviation_of_two_runs(tmp_path):
    first = write_log(tmp_path / "float32", {1: 9.0, 2: 2.0, 3: 4.0, 4: 1.0})
    second = write_log(tmp_path / "bf16", {1: 3.0, 2: 2.0, 4: 0.9, 5: 7.0})
    done = compare(first, second, "--start", 2)
    assert done.stdout == "bf16: 2 iterations to 4: mean 5.00%, largest 10.00% at 4, last -10.00%\n"
    done = compare(first, second, "--start", 5)
    assert done.returncode == 1 and "at no iteration from 5 on" in done.stderr
