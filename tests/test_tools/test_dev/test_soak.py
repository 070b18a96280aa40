"""Long runs: memory is watched, and a data worker that dies ends the run with a clear error."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("mmcv")
pytest.importorskip("mmpretrain")
pytest.importorskip("psutil")

import psutil
from mmengine.config import Config
from tool_runs import ROOT

from vig_mm.datasets import make_digits
from vig_mm.errors import UsageError

pytestmark = pytest.mark.usefixtures("default_scope")
CONFIG = ROOT / "configs/mmpretrain/vig-h-mini_digits.py"


def test_a_short_soak(run_tool, tmp_path):
    """The classifier for sixty iterations, which are too few for the limit of a long run."""
    options = ("--iters", 60, "--limit", 20, "--interval", 0.05, "--work-dir", "soak")
    printed = run_tool("dev/soak", CONFIG, *options, "--out", "soak.json", cwd=tmp_path)
    (result,) = json.loads((tmp_path / "soak.json").read_text())
    assert result["task"] == "mmpretrain" and 60 <= result["iterations"] <= 65
    for place in ("process", "workers"):
        assert result["memory"][place]["growth"] < 20
        assert 50 < result["memory"][place]["start"] < 20_000
        steps = [step for step, _ in result["samples"][place]]
        assert steps == sorted(steps) and steps[0] <= 20
    assert f"| {CONFIG.name} | {result['iterations']} | the training process |" in printed


def test_shared_pages_count_in_both(load_tool):
    """Pages that a child writes to and so gets for itself are no growth."""
    soak = load_tool("dev/soak")
    code = """
import os, sys
filled = bytearray(b"x" * 200_000_000)
if not os.fork():
    for step in sys.stdin:
        if step.strip() == "write":
            filled[:] = bytes(len(filled))
        elif step.strip() == "grow":
            more = bytearray(b"y" * 100_000_000)
        print(step, end="", flush=True)
    os._exit(0)
print("ready", flush=True)
os.wait()
"""
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as parent:
        parent.stdout.readline()
        (child,) = psutil.Process(parent.pid).children()
        used = []
        for step in ("nothing", "write", "grow"):
            print(step, file=parent.stdin, flush=True)
            assert parent.stdout.readline().strip() == step
            used.append(soak.own_memory(child))
        parent.stdin.close()
    assert used[0] > 190
    assert abs(used[1] - used[0]) < 5  # a leak of 20 MB would not be lost in this
    assert 90 < used[2] - used[1] < 110
    assert soak.own_memory(child) == 0  # it ended


def test_growth(load_tool):
    """A leak of 1 MB an iteration; the warm-up does not count, and spikes do not matter."""
    soak = load_tool("dev/soak")
    leak = [(step, 1000.0 + step) for step in range(1, 101)]
    assert soak.growth(leak, 100) == pytest.approx(
        dict(start=1030.5, end=1090.5, growth=100 * 60 / 1030.5)
    )
    warm = [(step, 10.0 if step <= 20 else 500.0) for step in range(1, 101)]
    spiky = [(step, used + 1000 * (step % 7 == 0)) for step, used in warm]
    assert soak.growth(warm, 100)["growth"] == soak.growth(spiky, 100)["growth"] == 0
    with pytest.raises(UsageError, match="1 and 1 samples of memory are too few"):
        soak.growth(leak[::20], 100)


def test_growth_beyond_the_limit_fails(load_tool, tmp_path, monkeypatch):
    soak = load_tool("dev/soak")
    result = dict(
        iterations=9,
        minutes=1,
        gpu=None,
        torch="2",
        python="3",
        options={},
        memory=dict(process=dict(start=1.0, end=2.0, growth=100.0)),
    )
    monkeypatch.setattr(soak, "soak", lambda config, args: dict(result, config=config.name))
    monkeypatch.setattr(soak, "make_digits", lambda *args, **options: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.py").touch()
    monkeypatch.setattr(sys, "argv", ["soak.py", "a.py", "--out", "out.json"])
    with pytest.raises(SystemExit, match=r"than 2 %: a.py \(the training process\)"):
        soak.main()
    page = (tmp_path / "out.md").read_text()
    assert "| a.py | 9 | the training process | 1 | 2 | +100.00 % |" in page

    # what another config gave stays in the file; what shrinks or stays is fine
    result["memory"]["process"] = dict(start=2.0, end=1.0, growth=-50.0)
    (tmp_path / "b.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["soak.py", "b.py", "--out", "out.json"])
    soak.main()
    both = json.loads((tmp_path / "out.json").read_text())
    assert [(one["config"], one["memory"]["process"]["growth"]) for one in both] == [
        ("a.py", 100),
        ("b.py", -50),
    ]


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
