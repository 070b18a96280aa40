"""Runs the compiled kernels in the emulator, for sm_80 and sm_90, and what checks the emulator.

What only compiled code shows: races, addresses, asynchronous copies, rounding of operands. Sizes,
gates and layouts are for Triton's interpreter (tests/test_kernels, tests/test_fuzz), or for
`python -m emulator` by hand. In processes of their own, as the interpreter is switched on in this
one. Needs no GPU.
"""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
from .case import error  # noqa: E402

TESTS = Path(__file__).parents[1]
KERNELS = TESTS.parent / "kernels"


@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_and_the_emulator_itself(capability):
    command = [sys.executable, "-m", "emulator", "emulator", "quick"]
    run = subprocess.run(
        [*command, "--capability", str(capability)],
        cwd=TESTS, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    print(run.stdout)
    failed = [line for line in run.stdout.splitlines() if not line.startswith("ok")]
    assert run.returncode == 0, "\n".join(failed) + run.stderr[-4000:]
    ran = set(run.stdout.rpartition("kernels:")[2].split())
    ours = {
        name
        for path in KERNELS.rglob("*.py")
        for name in re.findall(
            r"^@triton\.jit.*\ndef (\w+_kernel)\(", path.read_text(), re.MULTILINE
        )
    }
    assert len(ours) > 10 and ours <= ran, ours - ran


def test_a_wrong_result_is_an_error():
    want = torch.randn(3, 50, dtype=torch.float64)
    assert error(want.float(), want, nan=False) < 1e-7
    assert 5e-3 < error(want * 1.01, want, nan=False) < 2e-2
    for place in ((0, 5), (2, 5)):
        x = want.clone()
        x[place] = math.nan
        assert math.isnan(error(x, want, nan=False))
        assert math.isnan(error(want, x, nan=True))  # NaN is lost
        assert error(x, x, nan=True) == 0
    assert math.isnan(error(x, want, nan=True))  # NaN has spread to another entry
    assert math.isnan(error(want[:2], want, nan=False))
