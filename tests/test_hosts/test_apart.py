"""The tests of libraries that mmpretrain 1.2 cannot be imported beside, in a process of their own.

`tools/setup_env.sh` puts these libraries (requirements/hosts.txt) into a folder that nothing else
looks into: mmpretrain imports transformers where it is installed, and fails with version 5.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HOSTS = Path(sys.prefix) / "hosts"


def test_in_a_process_of_their_own() -> None:
    for library in ("segmentation_models_pytorch", "transformers", "peft", "torchao"):
        if not (HOSTS / library).is_dir():
            pytest.skip(f"{library} is not installed: bash tools/setup_env.sh")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", "."],
        # not the repository's root, whose folder `kernels` transformers would take for a library
        cwd=Path(__file__).parent / "apart",
        env=os.environ | dict(PYTHONPATH=str(HOSTS), HF_HUB_OFFLINE="1", PYTEST_ADDOPTS=""),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    assert re.search(r"\d+ passed", result.stdout) and "skipped" not in result.stdout
