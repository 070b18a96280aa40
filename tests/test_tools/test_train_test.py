"""tools/train.py and tools/test.py, run as a user runs them, on a few built-in images."""

import importlib.util
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmcv")
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
pytest.importorskip("mmpretrain")

from mmengine.config import Config
from mmengine.registry import MODELS

from vig_mm.checkpoints.conversion import to_public
from vig_mm.datasets import make_digits
from vig_mm.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")

# A classifier trains with what the ImageNet recipe has besides: averaged weights and mixup.
EXTRA = {
    "mmpretrain": """
custom_hooks = [
    dict(type='EMAHook', ema_type='ExponentialMovingAverage', momentum=0.01)]
model = dict(train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8)], probs=[1.0]))
"""
}
TASKS = {
    "mmdet": ("mmdet/mask-rcnn_vig-h-mini_fpn_digits.py", "coco/segm_mAP"),
    "mmseg": ("mmseg/vig-h-mini_upernet_digits.py", "mIoU"),
    "mmpretrain": ("mmpretrain/vig-h-mini_digits.py", "accuracy/top1"),
}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A working directory with data/digits in it."""
    folder = tmp_path_factory.mktemp("work")
    sizes = dict(coco_size=(96, 128), ade_size=(64, 64), imagenet_size=(48, 48))
    make_digits(folder / "data/digits", coco=(8, 3), ade=(8, 3), imagenet=(2, 1), **sizes)
    return folder


def tool(name, *args, cwd, ok=True):
    command = [sys.executable, "-W", "ignore", str(ROOT / "tools" / name), *map(str, args)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert (done.returncode == 0) is ok, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr if ok else done.stderr


def small(scope, work):
    """A config of two iterations an epoch that differs from the project's in nothing else."""
    lines = [f"_base_ = {str(ROOT / 'configs' / TASKS[scope][0])!r}"]
    for loader in LOADERS:
        batch = "batch_size=4, " if loader == "train_dataloader" and scope != "mmpretrain" else ""
        lines.append(f"{loader} = dict({batch}num_workers=0, persistent_workers=False)")
    if scope == "mmpretrain":
        lines.append("train_dataloader['batch_size'] = 10")
    lines.append("default_hooks = dict(logger=dict(interval=1))")
    path = work / f"{scope}_small.py"
    path.write_text("\n".join(lines) + EXTRA.get(scope, ""))
    return path


def length(scope, epochs):
    if scope == "mmseg":
        its = 2 * epochs
        return [
            f"train_cfg.max_iters={its}",
            f"train_cfg.val_interval={its}",
            "default_hooks.checkpoint.interval=2",
        ]
    return [f"train_cfg.max_epochs={epochs}", f"train_cfg.val_interval={epochs}"]


def last_checkpoint(folder):
    return Path((folder / "last_checkpoint").read_text())


@pytest.mark.parametrize("scope", TASKS)
def test_train_resume_test(scope, work):
    config, metric = small(scope, work), TASKS[scope][1]
    log = tool("train.py", config, "--seed", "3", "--cfg-options", *length(scope, 1), cwd=work)
    work_dir = work / "work_dirs" / config.stem  # the default, beside the data
    assert metric in log
    first = torch.load(last_checkpoint(work_dir), weights_only=False)
    assert first["meta"]["seed"] == 3 and first["meta"]["iter"] == 2
    assert ("ema_state_dict" in first) is (scope == "mmpretrain")

    # --resume finds the checkpoint, and optimizer and log go on from it
    log = tool("train.py", config, "--resume", "--cfg-options", *length(scope, 2), cwd=work)
    assert "iter: 2" in log and "resumed" in log
    checkpoint = last_checkpoint(work_dir)
    second = torch.load(checkpoint, weights_only=False)
    assert second["meta"]["iter"] == 4
    step = next(iter(second["optimizer"]["state"].values()))["step"]
    assert step == 4
    losses = second["message_hub"]["log_scalars"]["train/loss"].data[0]
    assert len(losses) == 4 and all(losses > 0)

    out, pictures = work / scope / "out.pkl", work / scope / "pictures"
    results = ("--out", out, "--show-dir", pictures.relative_to(work))
    log = tool("test.py", config, checkpoint, "--tta", *results, cwd=work)
    assert metric in log
    predictions = pickle.loads(out.read_bytes())
    images = len(list(pictures.rglob("*.*g")))
    assert len(predictions) == images == (10 if scope == "mmpretrain" else 3)
    if scope == "mmseg":
        assert "seg_logits" not in predictions[0]
        assert predictions[0]["pred_sem_seg"]["data"].shape == (1, 64, 64)
    if scope == "mmdet":
        assert {"bboxes", "scores", "labels", "masks"} <= set(predictions[0]["pred_instances"])


def test_public_file(work):
    """A public file goes into test.py as it is; `model_ema` is what counts."""
    config = small("mmpretrain", work)
    cfg = Config.fromfile(config)
    with MODELS.switch_scope_and_registry(cfg.default_scope) as registry:
        model = registry.build(cfg.model)
    torch.nn.init.zeros_(model.head.fc.weight)
    torch.nn.init.constant_(model.head.fc.bias, -1.0)
    model.head.fc.bias.data[4] = 1.0  # always the fifth class, so one image in ten is right
    public = to_public(model.state_dict())
    nothing = {name: torch.zeros_like(x) for name, x in public.items()}
    torch.save(dict(model=nothing, model_ema=public, epoch=300), work / "public.pth")
    out = work / "public.pkl"
    log = tool("test.py", config, "public.pth", "--out", out, "--work-dir", "public", cwd=work)
    assert "accuracy/top1: 10.0" in log
    assert {int(one["pred_label"]) for one in pickle.loads(out.read_bytes())} == {4}


def test_bad_input_is_one_message(tmp_path, work):
    config = ROOT / "configs" / TASKS["mmpretrain"][0]
    error = tool("train.py", config, cwd=tmp_path, ok=False)
    assert "Traceback" not in error and "make_digits.py" in error
    error = tool("train.py", "nowhere.py", cwd=tmp_path, ok=False)
    assert "Traceback" not in error and "config 'nowhere.py' is not a file" in error

    other = tmp_path / "other.pth"
    torch.save(dict(state_dict={"head.fc.weight": torch.zeros(10, 64)}), other)
    error = tool("test.py", config, other, cwd=work, ok=False)
    assert "Traceback" not in error and "does not fit this config's model" in error
    assert "head.fc.weight (10, 64) instead of (10, 256)" in error


def test_no_check(work):
    """What a check refuses, classes in another order to validate on, or a head that the weights
    do not fit, runs all the same where the user wants it."""
    config = small("mmpretrain", work)
    names = sorted("zero one two three four five six seven eight nine".split())
    options = [f"train_dataloader.dataset.classes={','.join(names)}"]
    options += [f"val_dataloader.dataset.classes={','.join(names[::-1])}"]
    command = (config, "--work-dir", "other", "--cfg-options", *options, *length("mmpretrain", 1))
    error = tool("train.py", *command, cwd=work, ok=False)
    assert "in another order" in error and "--no-check runs all the same" in error
    tool("train.py", "--no-check", *command, cwd=work)
    # without averaged weights, which would not load, and mixed labels, which would not fit
    eleven = ("--cfg-options", "model.head.num_classes=11", "custom_hooks=None")
    eleven += ("model.train_cfg=None",)
    command = (config, last_checkpoint(work / "other"), *eleven)
    assert "--no-check" in tool("test.py", *command, cwd=work, ok=False)
    assert "accuracy/top1" in tool("test.py", "--no-check", *command, cwd=work)


def module(name):
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_precision(monkeypatch):
    train = module("train")
    monkeypatch.setattr(train, "is_npu_available", lambda: False)
    plain = dict(type="OptimWrapper", optimizer=dict(type="AdamW"))
    fp16 = dict(plain, type="AmpOptimWrapper", dtype="float16", loss_scale="dynamic")
    bf16 = dict(plain, type="vig_mm.Bf16OptimWrapper")

    def after(wrapper, *flags, gpu):
        monkeypatch.setattr(train, "is_cuda_available", lambda: gpu)
        monkeypatch.setattr(sys, "argv", ["train.py", "config.py", *flags])
        cfg = Config(dict(optim_wrapper=dict(wrapper)))
        train.set_precision(cfg, train.parse_args().amp)
        return cfg.optim_wrapper.to_dict()

    for gpu in (True, False):
        assert after(plain, gpu=gpu) == plain
        assert after(bf16, gpu=gpu) == bf16
        for wrapper in (plain, fp16, bf16):
            assert after(wrapper, "--amp", "bf16", gpu=gpu) == bf16
    assert after(fp16, gpu=True) == fp16
    assert after(fp16, gpu=False) == plain
    for flags in (["--amp"], ["--amp", "fp16"]):
        for wrapper in (plain, fp16, bf16, dict(fp16, dtype="bfloat16")):
            assert after(wrapper, *flags, gpu=True) == fp16
        with pytest.raises(UsageError, match="--amp .fp16. needs a GPU.*--amp bf16"):
            after(plain, *flags, gpu=False)
    other = dict(plain, type="ApexOptimWrapper", dtype="float16")
    assert after(other, gpu=False) == other
    with pytest.raises(UsageError, match="'ApexOptimWrapper' is not known to take it"):
        after(other, "--amp", "bf16", gpu=True)
    with pytest.raises(SystemExit):
        after(plain, "--amp", "fp8", gpu=True)


def test_start(tmp_path):
    train = module("train")
    given, latest = tmp_path / "given.pth", tmp_path / "epoch_1.pth"
    for path in (given, latest):
        torch.save(dict(state_dict=dict(weight=torch.zeros(1))), path)

    def start(resume):
        cfg = Config(dict(work_dir=str(tmp_path), load_from=str(given), resume=False))
        train.set_start(cfg, resume)
        return cfg.resume, Path(cfg.load_from)

    assert start(None) == (False, given)
    assert start("auto") == (False, given)  # nothing to resume from yet
    (tmp_path / "last_checkpoint").write_text(str(latest))
    assert start("auto") == (True, latest)
    assert start(str(given)) == (True, given)


def test_tta_needs_its_entries():
    with pytest.raises(UsageError, match="no tta_model and no tta_pipeline"):
        module("test").use_tta(Config(dict(model=dict(type="X"))))
