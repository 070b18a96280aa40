"""The tests of libraries that mmpretrain 1.2 cannot be imported beside, in processes of their own.

`tools/setup_env.sh` puts these libraries (requirements/hosts.txt) into a folder that nothing else
looks into: mmpretrain imports transformers where it is installed, and fails with version 5.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
HOSTS = Path(sys.prefix) / "hosts"
FILES = {
    "test_page.py": "peft",
    "test_peft.py": "peft",
    "test_smp.py": "segmentation_models_pytorch",
    "test_torchao.py": "torchao",
    "test_transformers.py": "transformers",
}
"""Each file, and the library without which it skips."""


def test_every_file_is_run() -> None:
    assert sorted(FILES) == sorted(p.name for p in (HERE / "apart").glob("test_*.py"))


@pytest.mark.parametrize(("file", "library"), FILES.items())
def test_in_its_own_process(file: str, library: str) -> None:
    if not (HOSTS / library).is_dir():
        pytest.skip(f"{library} is not installed: bash tools/setup_env.sh")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file],
        # not the repository's root, whose folder `kernels` transformers would take for a library
        cwd=HERE / "apart",
        env=os.environ | dict(PYTHONPATH=str(HOSTS), HF_HUB_OFFLINE="1", PYTEST_ADDOPTS=""),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    assert re.search(r"\d+ passed", result.stdout) and "skipped" not in result.stdout
