"""tools/analysis_tools/benchmark.py on the small models of the examples."""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmcv")
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
pytest.importorskip("mmpretrain")
pytest.importorskip("timm")

from mmengine.config import Config

from vig_mm import nets
from vig_mm.errors import UsageError

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "configs"
MINI = {
    "det": CONFIGS / "mmdet/mask-rcnn_vig-h-mini_fpn_digits.py",
    "seg": CONFIGS / "mmseg/vig-h-mini_upernet_digits.py",
    "cls": CONFIGS / "mmpretrain/vig-h-mini_digits.py",
}
PEERS = {"swin-t", "convnext-t", "volo-d1", "gcvit-t", "maxvit-t"}
COMMON = ("--device", "cpu", "--threads", 1, "--size", 64, 96)


@pytest.fixture(scope="module")
def tool(analysis_tool):
    return analysis_tool("benchmark")


@pytest.fixture(autouse=True)
def small(tool, monkeypatch):
    """Short timings; the process's memory is not limited and its threads are restored."""
    monkeypatch.setattr(tool, "SECONDS", {"cpu": 0.0})
    monkeypatch.setattr("common.limit_memory", lambda: None)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def call(tool, monkeypatch, *args) -> None:
    monkeypatch.setattr("sys.argv", ["benchmark.py", *map(str, args)])
    tool.main()


def test_every_backbone_of_the_configs_is_known(tool):
    for task in MINI:
        files = tool.config_files(task)
        assert PEERS | {"vig-h-t", "vig-h-s", "vig-h-b"} <= set(files)
        assert files["vig-h-t"].parent.name != "peers"
        assert not any("mini" in path.name or "amp" in path.name for path in files.values())
        names = tool.default_backbones(task, files)
        assert names[:2] == ["vig-h-t", tool.PLAIN[task]] and PEERS <= set(names)
        assert not {"vig-h-b", "deit-b"} & set(names)


# UperNet pools to one pixel, which has no statistics in a batch of one
@pytest.mark.parametrize("task, batch", [("det", 1), ("seg", 2), ("cls", 1)])
def test_run_of_a_task(tool, task, batch, tmp_path, monkeypatch, capsys, default_scope):
    """The same model twice has ratios of 1; a backbone that does not take the size is noted."""
    few = "test_cfg=dict(rpn=dict(max_per_img=50))" if task == "det" else ""  # proposals
    files = {name: tmp_path / f"{name}.py" for name in ("vig-h-t", "refusing", "same")}
    for name, path in files.items():
        changed = "backbone=dict(arch='none')" if name == "refusing" else few
        path.write_text(f"_base_ = {str(MINI[task])!r}\nmodel = dict({changed})\n")
    monkeypatch.setattr(tool, "config_files", lambda task: files)
    out, page = tmp_path / "new/result.json", tmp_path / "page.md"
    page.write_text("<!-- result:begin -->old<!-- result:end -->")
    names = ["refusing", "same"] if task == "cls" else ["refusing"]
    precisions = ("float32", "bfloat16") if task == "det" else ("float32",)
    run = ("--task", task, *COMMON, "--backbones", *names, "--precisions", *precisions)
    call(tool, monkeypatch, *run, "--batch", batch, "--out", out, "--page", page)

    reference, refused, *others = rows = json.loads(out.read_text())["results"]
    assert [row["backbone"] for row in rows] == ["vig-h-t", *names]
    for row in (reference, *others):
        for entry in (
            row[f"{precision} {mode}"] for precision in precisions for mode in tool.MODES
        ):
            assert entry["images_per_s"] == pytest.approx(batch / entry["median"])
        # gradients, and activations kept for them
        assert row["float32 training"]["peak_bytes"] > 4 * row["parameters"]
    for same in others:
        assert (same["flops"], same["parameters"]) == (reference["flops"], reference["parameters"])
        peaks = [row["float32 inference"]["peak_bytes"] for row in (same, reference)]
        assert peaks[0] == pytest.approx(peaks[1], rel=0.05)
    assert "none" in refused["missing"] and "float32 inference" not in refused
    text = capsys.readouterr().out
    assert "- refusing: failed: " in text and (task != "cls" or "1.00x" in text)
    assert "| vig-h-t " in page.read_text() and "old" not in page.read_text()


def test_backbones_alone(tool, tmp_path, monkeypatch, capsys):
    """Precisions and their errors; what breaks and what is not measured for want of time."""

    def build(name, size):
        model = nets.HierViG(embed_dims=16, depths=(1, 1), num_heads=(1, 2), out_indices=(0, 1))
        if name == "swin-t":
            model.forward = lambda x: 1 / 0
        return model, {"parameters": 1}

    monkeypatch.setattr(tool, "build_alone", build)
    out = tmp_path / "maps.json"
    run = ("--task", "maps", *COMMON, "--backbones", "swin-t", "--out", out)
    call(tool, monkeypatch, *run, "--precisions", *tool.PRECISIONS)
    ours, broken = json.loads(out.read_text())["results"]
    assert broken["float32 training"] == {"missing": "failed: division by zero"}
    assert 0 < ours["bfloat16 inference"]["error"] < 2e-2
    assert 1e-4 < ours["int8 inference"]["error"] < 0.3
    assert "int8 training" not in ours and "error" not in ours["float32 inference"]
    assert "- swin-t float32 inference: failed" in capsys.readouterr().out

    monkeypatch.setattr(tool, "GROUP", 1)
    call(tool, monkeypatch, *run[:-1], tmp_path / "none.json", "--minutes", 0)
    assert "time is up" in capsys.readouterr().out


def test_backbones_alone_are_the_models(tool):
    for name in ("swin-t", "convnext-t", "vig-h-t", "vig-t"):
        with torch.device("meta"):
            model, counted = tool.build_alone(name, (64, 96))
            maps = model(torch.empty(1, 3, 64, 96))
        assert len(maps) == (1 if name == "vig-t" else 4) and counted["parameters"] > 5e6


def test_models_of_one_size_are_built_for_the_chosen_one(tool):
    def read(task, name, size):
        return tool.without_padding(Config.fromfile(tool.config_files(task)[name]), size)

    assert read("seg", "volo-d1", (64, 96)).model.backbone.img_size == (64, 96)
    detector = read("det", "gcvit-t", (512, 512)).model
    assert detector.backbone.window_size == (8, 8, 16, 8) and detector.backbone.img_size == 512
    assert detector.data_preprocessor.pad_size_divisor == 1
    with pytest.raises(UsageError, match="square images here, not 64x96"):
        read("det", "gcvit-t", (64, 96))


def test_bad_input_is_one_clear_error(tool, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for arguments, message in (
        (("--size", "64", "16"), "--size: must be at least 32, got 16"),
        (("--batch", "0"), "--batch: must be at least 1, got 0"),
        (("--plot", "nowhere.json"), "must be an existing file, got nowhere.json"),
        (("--device", "cuda"), "--device cuda needs a CUDA GPU, and torch sees none"),
    ):
        with pytest.raises(SystemExit):
            call(tool, monkeypatch, "--task", "cls", *arguments)
        assert message in capsys.readouterr().err
    with pytest.raises(UsageError, match="no config of resnet; there are vig-b, "):
        call(tool, monkeypatch, "--task", "cls", "--backbones", "resnet")


def test_committed_files_are_shown(tool, monkeypatch, capsys):
    for path in sorted((ROOT / "docs/measured").glob("*.json")):
        task = json.loads(path.read_text()).get("settings", {}).get("task")
        if task:
            call(tool, monkeypatch, "--task", task, "--plot", path, "--device", "cpu")
            table = capsys.readouterr().out.partition("|")[2].rpartition("|")[0]
            assert table in (ROOT / "docs/measurements.md").read_text()
