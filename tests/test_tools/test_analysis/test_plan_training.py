"""tools/analysis_tools/plan_training.py: the arithmetic, and a small model measured."""

import argparse
import json
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmcv")
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
pytest.importorskip("mmpretrain")

from mmengine.config import Config

from vig_mm.errors import UsageError

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "configs"
COCO = CONFIGS / "mmdet/mask-rcnn_vig-h-t_fpn_1x_coco.py"
ADE = CONFIGS / "mmseg/vig-h-t_upernet_8xb2-160k_ade20k-512x512.py"
IMAGENET = CONFIGS / "mmpretrain/vig-b_8xb128_in1k.py"
MINI = CONFIGS / "mmpretrain/vig-h-mini_digits.py"
MEASURED = dict(size=[64, 64], weights=1000, gradients=900, optimizer=1800, flops=1e12)
MEASURED |= dict(traffic=300e9, step={"1": 2000, "2": 3500})


@pytest.fixture(scope="module")
def tool(analysis_tool):
    return analysis_tool("plan_training")


def test_training_size(tool) -> None:
    pyramid = COCO.with_name("mask-rcnn_vig-t_simple-pyramid_lsj-100e_coco.py")
    sizes = {COCO: (800, 1344), pyramid: (1024, 1024), ADE: (512, 512), IMAGENET: (224, 224)}
    for path, size in sizes.items():
        assert tool.training_size(Config.fromfile(path)) == size


def plan(tool, path, gpus=8, **options):
    chosen = dict(batch=None, images=None, gpu="A100", step_seconds=None) | options
    return tool.plan(Config.fromfile(path), MEASURED, gpus, argparse.Namespace(**chosen))


def test_epochs(tool) -> None:
    found = plan(tool, COCO, 64)
    assert (found["batch"], found["gpus"], found["base_batch"]) == (2, 64, 16)
    assert found["rate"] == pytest.approx(dict(linear=8e-4, root=8**0.5 * 1e-4))
    assert found["iterations"] == 12 * 917  # 117,266 images, the last batch not full
    assert found["warm_up"] == 1000
    assert found["memory"] == dict(held=2800, gradients=1800, step=3500, all=8100)

    # twice the weights, because of the moving average; a warm-up of epochs; incomplete batches drop
    found = plan(tool, IMAGENET, 64)
    assert found["batch"] * 64 == 8192 and found["rate"]["linear"] == pytest.approx(0.016)
    assert found["warm_up"] == 20 * 156 and found["iterations"] == 300 * 156
    assert found["memory"]["held"] == 3800


def test_iterations(tool) -> None:
    found = plan(tool, ADE, 64)
    assert found["iterations"] == 160_000 and found["epochs"] == pytest.approx(1013.4)
    assert found["iterations_for_the_same_images"] == 20_000
    one = plan(tool, ADE, 1, batch=16)
    assert one["rate"]["linear"] == one["rate"]["root"] == 6e-5
    assert one["memory"]["gradients"] == 900


def test_hours(tool) -> None:
    """By hand: 2 images of 1 T multiply-adds, 300 GB a step, on an A100; or as measured."""
    shortest, longest = tool.step_seconds(MEASURED, 2, "A100")
    compute = 2 * 3 * 2 * 1e12 / 312e12
    assert shortest == pytest.approx(max(compute / 0.4, 2 * 300e9 * 0.5 / (2.04e12 * 0.8)))
    assert longest == pytest.approx(compute / 0.04 + 2 * 300e9 / (2.04e12 * 0.2))
    hours = plan(tool, COCO, 8)["hours"]
    assert hours == pytest.approx([x * 12 * 7330 / 3600 for x in (shortest, longest)])
    assert plan(tool, COCO, 8, step_seconds=0.5)["hours"] == [12 * 7330 / 7200] * 2
    # for the same images at any batch
    assert plan(tool, ADE, 64)["hours"][0] == pytest.approx(plan(tool, ADE, 8)["hours"][0] / 8)


def test_more_images_than_measured_and_bad_input(tool) -> None:
    assert tool.step_bytes({"1": 2000, "2": 3500}, 8) == 3500 + 6 * 1500
    assert tool.step_bytes({"2": 3000}, 4) == 6000  # as if nothing were fixed
    assert tool.step_bytes({}, 4) is None
    with pytest.raises(UsageError, match="give --images"):
        plan(tool, MINI)
    with pytest.raises(UsageError, match="give --size H W"):
        tool.training_size(Config(dict(default_scope="mmdet", model={}, train_pipeline=[])))


@pytest.fixture
def call(tool, tmp_path, monkeypatch):
    """Calls the command for one small config; returns what it wrote."""
    monkeypatch.setattr("common.limit_memory", lambda: None)
    config, out, page = (tmp_path / name for name in ("plain.py", "plan.json", "page.md"))
    # under plain autograd, as activations then are most of what is held
    config.write_text(f'_base_ = "{MINI}"\nmodel = dict(backbone=dict(backend="torch"))\n')
    page.write_text("# Plan\n<!-- plan:begin -->\nold\n<!-- plan:end -->\nrest\n")

    def run(*options) -> dict:
        command = [config, "--gpus", 1, 4, "--images", 1000, "--out", out, "--page", page]
        command += ["--threads", torch.get_num_threads(), *options]
        monkeypatch.setattr(sys, "argv", ["plan_training.py", *map(str, command)])
        tool.main()
        return json.loads(out.read_text())

    return run


def test_measures_and_fills_a_page(call, tmp_path) -> None:
    found = call()["measured"]["plain"]
    parameters = found["gradients"] / 4
    assert found["weights"] >= found["gradients"]  # buffers
    assert found["optimizer"] == pytest.approx(8 * parameters, rel=1e-2)  # two moments, and steps
    # activations are in proportion to the images
    assert found["step"]["2"] == pytest.approx(2 * found["step"]["1"], rel=0.1)
    text = (tmp_path / "page.md").read_text()
    assert "old" not in text and text.endswith("rest\n") and "32 x 4 = 128" in text
    assert "32 x 1 = 32" in text and "assumed for A100s" in text and " to " in text


def test_measures_what_is_new_or_failed(tool, call, tmp_path, monkeypatch, capsys) -> None:
    asked, config = [], tmp_path / "plain.py"
    found = {**MEASURED, "missing": "out of memory"}
    monkeypatch.setattr(tool, "measure", lambda cfg, size: asked.append(size) or dict(found))
    call()
    assert "plain: out of memory" in capsys.readouterr().out
    found.pop("missing")
    call()
    call("--batch", "8")
    assert len(asked) == 2 and "8 x 4 = 32" in capsys.readouterr().out
    config.write_text(config.read_text().replace('"torch"', '"torch", drop_path_rate=0.3'))
    call()
    call("--size", 96, 96)
    assert len(asked) == 4 and asked[-1] == (96, 96)


def test_a_file_of_something_else(call, tmp_path) -> None:
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(SystemExit, match="is not what this command writes"):
        call()
