"""tools/train.py and tools/test.py: what they start from, what they refuse, in which precision.

Whole trainings and tests are in test_evaluation.py and test_engine/test_resume.
"""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmcv")
pytest.importorskip("mmpretrain")

from known_cases import ROOT
from mmengine.config import Config
from mmengine.registry import MODELS
from tool_runs import small_config

from vig_mm.checkpoints.conversion import to_public
from vig_mm.datasets import make_digits
from vig_mm.errors import CheckpointError, DataError, UsageError

pytestmark = pytest.mark.usefixtures("default_scope")
CONFIG = ROOT / "configs/mmpretrain/vig-h-mini_digits.py"


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A working directory with data/digits and a config of two iterations an epoch in it."""
    folder = tmp_path_factory.mktemp("work")
    sizes = dict(coco=(0, 0), ade=(0, 0), imagenet=(2, 1), imagenet_size=(48, 48))
    make_digits(folder / "data/digits", **sizes)
    small_config(str(CONFIG), folder, {"train_dataloader.batch_size": 10})
    return folder


def test_public_file(work, run_tool):
    """A public file goes into test.py as it is; `model_ema` is what counts."""
    cfg = Config.fromfile(CONFIG)
    with MODELS.switch_scope_and_registry(cfg.default_scope) as registry:
        model = registry.build(cfg.model)
    torch.nn.init.zeros_(model.head.fc.weight)
    model.head.fc.bias.data = torch.eye(10)[4]  # always the fifth class: one image in ten is right
    public = to_public(model.state_dict())
    nothing = {name: torch.zeros_like(x) for name, x in public.items()}
    torch.save(dict(model=nothing, model_ema=public, epoch=300), work / "public.pth")
    files = ("mmpretrain.py", "public.pth", "--out", "public.pkl", "--work-dir", "public")
    assert "accuracy/top1: 10.0" in run_tool("test", *files, cwd=work)
    assert {int(x["pred_label"]) for x in pickle.loads((work / "public.pkl").read_bytes())} == {4}


def test_no_check(work, run_tool):
    """What a check refuses, classes in another order to validate on, or a head that the weights
    do not fit, runs all the same where the user wants it."""
    names = sorted("zero one two three four five six seven eight nine".split())
    options = [f"train_dataloader.dataset.classes={','.join(names)}", "train_cfg.max_epochs=1"]
    options += [f"val_dataloader.dataset.classes={','.join(names[::-1])}"]
    command = ("mmpretrain.py", "--work-dir", "other", "--cfg-options", *options)
    with pytest.raises(DataError, match="(?s)in another order.*--no-check runs all the same"):
        run_tool("train", *command, cwd=work)
    run_tool("train", "--no-check", *command, cwd=work)
    checkpoint = (work / "other/last_checkpoint").read_text()
    command = ("mmpretrain.py", checkpoint, "--cfg-options", "model.head.num_classes=11")
    with pytest.raises(CheckpointError, match="--no-check"):
        run_tool("test", *command, cwd=work)
    assert "accuracy/top1" in run_tool("test", "--no-check", *command, cwd=work)


def test_a_mistake_ends_in_one_message(tmp_path):
    """Of the tool's own process; there is no data here."""
    command = [sys.executable, "-W", "ignore", ROOT / "tools/train.py", CONFIG]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "train.py: error: " in done.stderr and "make_digits.py" in done.stderr


@pytest.mark.parametrize(
    "tool, arguments, reason",
    [
        ("train", ["nowhere.py"], "config 'nowhere.py' is not a file"),
        ("train", ["config.txt"], "config 'config.txt', or a file in its _base_, cannot be read"),
        ("train", [CONFIG, "--work-dir", "config.txt"], "--work-dir 'config.txt' cannot be used"),
        ("test", [CONFIG, "x", "--show-dir", "config.txt"], "--show-dir 'config.txt' cannot be"),
        ("train", [CONFIG, "--cfg-options", "optim_wrapper.optimizer.type=Adamw"], "'AdamW'"),
        ("train", [CONFIG, "--cfg-options", "model.type.x=1"], "--cfg-options do not fit .*digits"),
        ("train", [CONFIG, "--cfg-options", "train_pipeline.9.x=1"], "--cfg-options do not fit"),
    ],
)
def test_bad_command_lines(tool, arguments, reason, run_tool, tmp_path):
    (tmp_path / "config.txt").touch()
    with pytest.raises(UsageError, match=reason):
        run_tool(tool, *arguments, cwd=tmp_path)


def test_bad_arguments(run_tool, tmp_path, capsys):
    for arguments in (("--seed", "-1"), ("--cfg-options", "foo"), ("--amp", "fp8")):
        with pytest.raises(SystemExit) as caught:
            run_tool("train", CONFIG, *arguments, cwd=tmp_path)
        assert caught.value.code == 2 and "error: argument --" in capsys.readouterr().err


def test_weights_of_another_model(work, run_tool):
    torch.save(dict(state_dict={"head.fc.weight": torch.zeros(10, 64)}), work / "other.pth")
    with pytest.raises(
        CheckpointError, match=r"(?s)does not fit.*\(10, 64\) instead of \(10, 256\)"
    ):
        run_tool("test", "mmpretrain.py", "other.pth", cwd=work)


def test_precision(load_tool, monkeypatch):
    train = load_tool("train")
    monkeypatch.setattr(train, "is_npu_available", lambda: False)
    plain = dict(type="OptimWrapper", optimizer=dict(type="AdamW"))
    fp16 = dict(plain, type="AmpOptimWrapper", dtype="float16", loss_scale="dynamic")
    bf16 = dict(plain, type="vig_mm.Bf16OptimWrapper")
    other = dict(plain, type="ApexOptimWrapper", dtype="float16")

    def after(wrapper, amp, gpu):
        monkeypatch.setattr(train, "is_cuda_available", lambda: gpu)
        cfg = Config(dict(optim_wrapper=dict(wrapper)))
        train.set_precision(cfg, amp)
        return cfg.optim_wrapper.to_dict()

    for gpu in (True, False):
        for wrapper in (plain, bf16, other):
            assert after(wrapper, None, gpu) == wrapper
        for wrapper in (plain, fp16, bf16):
            assert after(wrapper, "bf16", gpu) == bf16
    assert after(fp16, None, True) == fp16 and after(fp16, None, False) == plain
    for wrapper in (plain, fp16, bf16, dict(fp16, dtype="bfloat16")):
        assert after(wrapper, "fp16", True) == fp16
    with pytest.raises(UsageError, match="--amp .fp16. needs a GPU.*--amp bf16"):
        after(plain, "fp16", False)
    with pytest.raises(UsageError, match="'ApexOptimWrapper' is not known to take it"):
        after(other, "bf16", True)
    monkeypatch.setattr(sys, "argv", ["train.py", "config.py", "--amp"])
    assert train.parse_args().amp == "fp16"


def test_tta_needs_its_entries(load_tool):
    with pytest.raises(UsageError, match="no tta_model and no tta_pipeline"):
        load_tool("test").use_tta(Config(dict(model=dict(type="X"))))
