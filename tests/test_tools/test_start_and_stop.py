"""What tools/train.py says before the first iteration, at the end, and when it is stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmcv")
pytest.importorskip("mmpretrain")

from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import save_checkpoint

from vig_mm.checks.config import read_config
from vig_mm.datasets import make_digits
from vig_mm.engine.hooks.start_hook import backbone_start
from vig_mm.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
BASE = "vig_mm::mmpretrain/vig-h-mini_digits.py"


@pytest.fixture(scope="module")
def cfg() -> Config:
    return Config.fromfile(ROOT / "configs/mmpretrain/vig-h-mini_digits.py")


@pytest.fixture(scope="module")
def model(cfg: Config) -> torch.nn.Module:
    with MODELS.switch_scope_and_registry("mmpretrain") as registry:
        return registry.build(cfg.model)


def start_of(cfg: Config, model: torch.nn.Module, **changes) -> str:
    changed = cfg.copy()
    changed.merge_from_dict(changes)
    return backbone_start(changed, model)


def test_random_weights_and_those_of_others(cfg, model):
    said = start_of(cfg, model)
    assert said.startswith("backbone: random weights; fine-tuning starts from ImageNet weights")
    said = start_of(cfg, model, default_scope="mmdet")
    assert "random weights; recipes for COCO and ADE20K start from ImageNet weights" in said
    address = {"model.backbone.init_cfg": dict(type="Pretrained", checkpoint="torchvision://x")}
    assert start_of(cfg, model, **address) == "backbone: the weights of 'torchvision://x'"
    said = start_of(cfg, model, **{"model.backbone.pretrained": True})
    assert said == "backbone: the weights that pretrained=True names"
    assert backbone_start(cfg, torch.nn.Linear(1, 1)) is None


def test_weights_of_a_file(cfg, model, tmp_path):
    names = [name for name, _ in model.backbone.named_parameters()]
    state = {k: x for k, x in model.state_dict().items() if not k.startswith("backbone.norm3")}
    part, other = str(tmp_path / "part.pth"), str(tmp_path / "other.pth")
    save_checkpoint(dict(state_dict=state, meta={}), part)
    save_checkpoint(dict(state_dict={"layer.weight": torch.ones(3)}, meta={}), other)
    init_cfg = {"model.backbone.init_cfg": dict(type="Pretrained", checkpoint=part)}
    count = f"backbone: {len(names) - 2} of {len(names)} parameters from {part!r}; at random: norm3"
    # of two, the one that mmengine loads last and that has something for the backbone
    for changes in (dict(load_from=part), init_cfg, dict(init_cfg, load_from=other)):
        assert start_of(cfg, model, **changes).startswith(count)
    assert "random weights" in start_of(cfg, model, load_from=other)
    resumed = start_of(cfg, model, load_from=part, resume=True)
    assert resumed == f"all weights: as the run that is resumed left them in {part!r}"


def test_own_config_as_base(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(f"_base_ = {BASE!r}\n")
    assert read_config("mine.py").model.backbone.type == "vig_mm.HierViG"
    Path("mine.py").write_text(f"_base_ = {BASE.replace('digits', 'digit')!r}\n")
    with pytest.raises(UsageError, match=f"did you mean {BASE}"):
        read_config("mine.py")


def heed_interrupts() -> None:
    """What a shell starts in the background ignores Ctrl-C, and so does all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def train(*options: str, cwd: Path) -> subprocess.Popen:
    command = [sys.executable, "-W", "ignore", str(ROOT / "tools/train.py"), "mine.py", *options]
    streams = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    start = dict(start_new_session=True, preexec_fn=heed_interrupts)
    return subprocess.Popen(command, cwd=cwd, env=environment, **start, **streams)


def test_stopped_and_resumed(tmp_path):
    """Ctrl-C goes to all processes of a terminal's job, so to the data workers as well."""
    make_digits(tmp_path / "data/digits", coco=(0, 0), ade=(0, 0), imagenet=(2, 1))
    for image in (tmp_path / "data/digits/imagenet/train/three").iterdir():
        image.unlink()
    (tmp_path / "mine.py").write_text(
        f"_base_ = {BASE!r}\ntrain_dataloader = dict(batch_size=9)\n"
        "train_cfg = dict(max_epochs=1000, val_interval=1000)\n"
    )
    process = train("--work-dir", "work", cwd=tmp_path)
    end = time.monotonic() + 200
    while not (tmp_path / "work/last_checkpoint").exists() and time.monotonic() < end:
        assert process.poll() is None, process.stdout.read()[-3000:]
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    log, _ = process.communicate(timeout=60)
    assert process.returncode == 130, log[-3000:]
    assert "Traceback" not in log and "unexpected failure" not in log
    assert "/epoch_" in log.splitlines()[-1]
    assert log.splitlines()[-1].endswith("the same command with --resume goes on from it")
    *_, before, after = log.partition("Checkpoints will be saved")
    start = "WARNING - before the first iteration: "
    said = [line.partition(start)[2] for line in (before + after).splitlines()[1:3]]
    assert said[0].startswith("backbone: random weights") and "three" in said[1]

    last = int(Path((tmp_path / "work/last_checkpoint").read_text()).stem.rpartition("_")[2])
    options = ("--work-dir", "work", "--cfg-options", f"train_cfg.max_epochs={last + 1}")
    process = train("--resume", *options, cwd=tmp_path)
    log, _ = process.communicate(timeout=200)
    assert process.returncode == 0, log[-3000:]
    assert f": all weights: as the run that is resumed left them in '{tmp_path}" in log
    end = log.partition("this training began with a warning: ")[2]
    assert "three" in end.splitlines()[0] and len(end.splitlines()) < 5


def test_a_worker_that_dies(cfg, tmp_path):
    """One message that says what happened and what to do, and no waiting for its samples."""
    make_digits(tmp_path / "data/digits", coco=(0, 0), ade=(0, 0), imagenet=(4, 1))
    cfg = cfg.copy()
    cfg.train_dataloader.batch_size = 4
    cfg.train_dataloader.dataset.pipeline.insert(0, dict(type="KillWorker", after=9))
    cfg.custom_imports = dict(imports=["deadly_transform"], allow_failed_imports=False)
    cfg.dump(tmp_path / "mine.py")
    process = train(cwd=tmp_path)
    log, _ = process.communicate(timeout=300)
    assert process.returncode == 1 and "Traceback" not in log
    last = log.strip().splitlines()[-1]
    assert "error: DataLoader worker (pid" in last and "killed by signal: Killed" in last
    for word in ("memory runs out", "/dev/shm", "train_dataloader.num_workers=1", "--resume"):
        assert word in last
