"""A data worker that dies ends a training with one clear error."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("mmcv")
pytest.importorskip("mmpretrain")

from mmengine.config import Config
from tool_runs import ROOT

from vig_mm.datasets import make_digits

CONFIG = ROOT / "configs/mmpretrain/vig-h-mini_digits.py"


def test_a_worker_that_dies(tmp_path):
    """One message that says what happened and what to do, and no waiting for its samples."""
    make_digits(tmp_path / "data/digits", coco=(0, 0), ade=(0, 0), imagenet=(4, 1))
    cfg = Config.fromfile(CONFIG)
    cfg.train_dataloader.batch_size = 4
    cfg.train_dataloader.dataset.pipeline.insert(0, dict(type="KillWorker", after=9))
    cfg.custom_imports = dict(imports=["deadly_transform"], allow_failed_imports=False)
    cfg.dump(tmp_path / "config.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(ROOT / "tools/train.py"), "config.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "error: DataLoader worker (pid" in last and "killed by signal: Killed" in last
    for word in ("memory runs out", "/dev/shm", "train_dataloader.num_workers=1", "--resume"):
        assert word in last
    assert "Traceback" not in done.stderr
