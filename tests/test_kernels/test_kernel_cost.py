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
from test_compile import CHOSEN

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "tools" / "benchmark"
RECORDED = ROOT / "docs/measured/kernel_cost.json"
MAX_RISE = 1.1
PASSES = ("forward", "backward", "gate forward", "gate backward")
ONE_CHUNK = (128, 49, 24, 16, 32)
# B, N, H, K, V: instructions for a token and head in each pass
LIMITS = {
    (128, 3136, 3, 16, 32): (85, 200, 35, 65),
    (128, 4096, 3, 32, 64): (150, 380, 70, 130),
    ONE_CHUNK: (),
}
MAX_BYTES = {(128, 3136, 3, 16, 32): 600}  # forward
SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
import torch
from kernel_cost import as_json, costs
from shapes import Shape
for shape in json.loads(sys.argv[2]):
    print(json.dumps(as_json(costs(Shape(*shape), torch.bfloat16, 90, {}))))
"""


def test_counts():
    # in a process of its own, as this one may have Triton's interpreter switched on
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(TOOLS), json.dumps([*LIMITS])],
        env={**os.environ, "TRITON_INTERPRET": "0"}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-4000:]
    lines = run.stdout.splitlines()[-len(LIMITS) :]
    data = json.loads(RECORDED.read_text())
    rows = {tuple(row["shape"].values()): row for row in data["results"]}
    for (shape, limits), line in zip(LIMITS.items(), lines, strict=True):
        found = json.loads(line)
        assert shape in rows, f"run {TOOLS / 'kernel_cost.py'}"
        for name in PASSES:
            if version("triton") == data["triton"]:
                rise = found[name]["instructions"] / rows[shape][name]["instructions"]
                assert rise <= MAX_RISE, (shape, name, rise)
                assert found[name]["bytes"] == rows[shape][name]["bytes"]
                assert found[name]["launches"] == rows[shape][name]["launches"]
            if CHOSEN:
                spilled = found[name]["spilled"]
                assert spilled <= (64 if "backward" in name else 0), (shape, name, spilled)
        for name, limit in zip(PASSES, limits if CHOSEN else (), strict=False):
            assert found[name]["instructions"] <= limit, (shape, name)
        assert found["forward"]["bytes"] <= MAX_BYTES.get(shape, 2**60)
        if shape == ONE_CHUNK:
            assert [found[name]["launches"] for name in PASSES] == [1, 1, 1, 1]
