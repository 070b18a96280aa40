"""tools/analysis/compare_backbones.py on the small models of the examples."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mmcv")
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
pytest.importorskip("mmpretrain")
pytest.importorskip("timm")

from vig_mm.errors import UsageError

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "configs"
MINI = {
    "det": CONFIGS / "mmdet/mask-rcnn_vig-h-mini_fpn_digits.py",
    "seg": CONFIGS / "mmseg/vig-h-mini_upernet_digits.py",
    "cls": CONFIGS / "mmpretrain/vig-h-mini_digits.py",
}
PEERS = {"swin-t", "convnext-t", "volo-d1", "gcvit-t", "maxvit-t"}


@pytest.fixture(scope="module")
def tool():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools" / "analysis"))
        yield importlib.import_module("compare_backbones")


@pytest.fixture(autouse=True)
def small(tool, monkeypatch):
    """Short timings; the process's memory is not limited and its threads are restored."""
    monkeypatch.setattr(tool, "SECONDS", {"cpu": 0.0})
    monkeypatch.setattr(tool, "limit_memory", lambda: None)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def call(tool, monkeypatch, capsys, *args) -> str:
    monkeypatch.setattr(sys, "argv", ["compare_backbones.py", *map(str, args)])
    capsys.readouterr()
    tool.main()
    return capsys.readouterr().out


@pytest.mark.parametrize("task", ["det", "seg", "cls"])
def test_every_backbone_of_the_configs_is_known(tool, task):
    files = tool.config_files(task)
    assert PEERS | {"vig-h-t", "vig-h-s", "vig-h-b"} <= set(files)
    assert files["vig-h-t"].parent.name != "peers"
    assert not any("mini" in path.name or "amp" in path.name for path in files.values())
    names = tool.default_backbones(task, files)
    assert names[:2] == ["vig-h-t", tool.PLAIN[task]] and PEERS <= set(names)
    assert "vig-h-b" not in names


@pytest.mark.parametrize("task", ["det", "seg", "cls"])
def test_run_of_a_task(tool, task, tmp_path, monkeypatch, capsys, default_scope):
    """The same model twice has ratios of 1; a backbone that does not take the size is noted."""
    refusing = tmp_path / "refusing.py"
    refusing.write_text(f"_base_ = {str(MINI[task])!r}\nmodel = dict(backbone=dict(arch='none'))\n")
    small = MINI[task]
    if task == "det":  # fewer proposals than 1000
        small = tmp_path / "small.py"
        few = "model = dict(test_cfg=dict(rpn=dict(max_per_img=50)))"
        small.write_text(f"_base_ = {str(MINI[task])!r}\n{few}\n")
    files = {"vig-h-t": small, "same": small, "refusing": refusing}
    monkeypatch.setattr(tool, "config_files", lambda task: files)
    out = tmp_path / "new/result.json"
    names = ["refusing", "same"] if task == "cls" else ["refusing"]
    text = call(
        tool, monkeypatch, capsys, "--task", task, "--size", 64, 96, "--backbones", *names,
        "--device", "cpu", "--threads", 1, "--out", out,
    )  # fmt: skip

    data = json.loads(out.read_text())
    reference, refused, *others = data["results"]
    assert [row["backbone"] for row in data["results"]] == ["vig-h-t", *names]
    assert data["settings"]["size"] == [64, 96] and "cpu" in data["machine"]
    for row in (reference, *others):
        for mode in tool.MODES:
            entry = row[mode]
            assert entry["runs"] == 3 and entry["min"] <= entry["median"] <= entry["max"]
            assert entry["images_per_s"] == pytest.approx(2 / entry["median"])
        # gradients, and activations kept for them
        assert row["training"]["peak_bytes"] > 4 * row["parameters"]
        assert row["inference"]["peak_bytes"] > 2 * 3 * 64 * 96 * 4
    assert set(reference["ratio"].values()) == {1.0}
    for same in others:
        assert same["ratio"]["flops"] == same["ratio"]["parameters"] == 1
        assert same["ratio"]["inference peak_bytes"] == pytest.approx(1, rel=0.05)
    assert "none" in refused["missing"] and refused["ratio"] == {}
    assert "- refusing: failed: " in text and f"written: {out}" in text
    assert "| vig-h-t " in out.with_suffix(".md").read_text()
    pixels = importlib.import_module("matplotlib.image").imread(out.with_suffix(".png"))[..., :3]
    assert np.unique(pixels.reshape(-1, 3), axis=0).shape[0] > 20


def test_flops_are_those_of_count_flops(tool):
    """The parameters and FLOPs of docs/models.json, where the sizes are the same."""
    listed = {
        row["config"]: row for row in json.loads((ROOT / "docs/models.json").read_text())["models"]
    }
    name, size = "configs/mmpretrain/vig-t_8xb128_in1k.py", (224, 224)
    counted = tool.count(tool.build(tool.read(ROOT / name, size)), "cls", size)
    assert counted == {key: listed[name][key] for key in ("parameters", "flops")}


def test_models_of_one_size_are_built_for_the_chosen_one(tool):
    volo = tool.read(tool.config_files("seg")["volo-d1"], (64, 96)).model.backbone
    assert volo.img_size == (64, 96)
    detector = tool.read(tool.config_files("det")["gcvit-t"], (512, 512)).model
    assert detector.backbone.window_size == (8, 8, 16, 8) and detector.backbone.img_size == 512
    assert detector.data_preprocessor.pad_size_divisor == 1
    with pytest.raises(UsageError, match="square images here, not 64x96"):
        tool.read(tool.config_files("det")["gcvit-t"], (64, 96))


def test_a_step_that_fails_leaves_the_others(tool, tmp_path):
    def make(model):
        if isinstance(model, torch.nn.ReLU):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")
        return torch.ones(2, 3), []

    class Model(torch.nn.Linear):
        def forward(self, x, samples, mode):
            return super().forward(x)

    models = {"good": Model(3, 3), "bad": torch.nn.ReLU()}
    found = tool.measure(models, "inference", tool.make_device("cpu"), make, 0.0)
    assert found["bad"] == {"missing": "out of memory"}
    assert found["good"]["images_per_s"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--size", "64", "16"), "at least 32 pixels, got 64 16"),
        (("--batch", "0"), "--batch: at least 1, got 0"),
        (("--plot", "nowhere.json"), "nowhere.json is not a file"),
    ],
    ids=("size", "batch", "plot"),
)
def test_bad_input_is_one_clear_error(tool, monkeypatch, capsys, arguments, message):
    with pytest.raises(SystemExit):
        call(tool, monkeypatch, capsys, "--task", "cls", *arguments)
    assert message in capsys.readouterr().err


def test_unknown_backbone(tool, monkeypatch, capsys):
    with pytest.raises(UsageError, match="no config of resnet; there are vig-b, "):
        call(tool, monkeypatch, capsys, "--task", "cls", "--backbones", "resnet")
