"""What the kernels issue, move and spill on sm_90, counted from their machine code.

The recorded counts are those that `tools/benchmark/kernel_cost.py` wrote. They hold for one version
of Triton; the limits hold for all.
"""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from test_triton_compile import CHOSEN

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "tools" / "benchmark"
RECORDED = ROOT / "docs/measured/kernel_cost.json"
MAX_RISE = 1.1
PASSES = ("forward", "backward", "gate forward", "gate backward")
# B, N, H, K, V: whole chunks, one segment; instructions for a token and head in each pass
LIMITS = {
    (128, 3136, 3, 16, 32): (85, 200, 35, 65),
    (128, 4096, 3, 32, 64): (150, 380, 70, 130),
}
MAX_BYTES = {(128, 3136, 3, 16, 32): 600}  # forward
ONE_CHUNK = (128, 49, 24, 16, 32)
SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
import torch
from kernel_cost import as_json, costs
from shapes import Shape
found = as_json(costs(Shape(*map(int, sys.argv[2:])), torch.bfloat16, 90, {}))
print(json.dumps(found))
"""


def count(shape):
    """In a process of its own, as this one may have Triton's interpreter switched on."""
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(TOOLS), *map(str, shape)],
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout.splitlines()[-1])


def recorded():
    data = json.loads(RECORDED.read_text())
    return data["triton"], {tuple(row["shape"].values()): row for row in data["results"]}


@pytest.mark.parametrize("shape", [*LIMITS, ONE_CHUNK], ids=str)
def test_counts(shape):
    found = count(shape)
    triton, rows = recorded()
    assert shape in rows, f"run {TOOLS / 'kernel_cost.py'}"
    for name in PASSES:
        spilled = found[name]["spilled"]
        if CHOSEN:
            assert spilled <= (64 if "backward" in name else 0), (name, spilled)
        if version("triton") == triton:
            rise = found[name]["instructions"] / rows[shape][name]["instructions"]
            assert rise <= MAX_RISE, (name, rise)
            assert found[name]["bytes"] == rows[shape][name]["bytes"]
            assert found[name]["launches"] == rows[shape][name]["launches"]
    limits = LIMITS.get(shape, ()) if CHOSEN else ()
    for name, limit in zip(PASSES, limits, strict=False):
        assert found[name]["instructions"] <= limit, name
    if shape in MAX_BYTES:
        assert found["forward"]["bytes"] <= MAX_BYTES[shape]
    if shape == ONE_CHUNK:
        assert [found[name]["launches"] for name in PASSES] == [1, 1, 1, 1]
