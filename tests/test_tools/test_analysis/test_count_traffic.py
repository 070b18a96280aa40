"""tools/analysis/count_traffic.py against counts by hand, and what our models keep and move."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("mmcv")
pytest.importorskip("mmdet")
pytest.importorskip("mmpretrain")

from mmengine.config import Config

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "configs"
MIB, GIB = 2**20, 2**30


@pytest.fixture(scope="module")
def tool():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools" / "analysis"))
        yield importlib.import_module("traffic")


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_a_layer_counted_by_hand(tool, device):
    """relu(x W^T): x [10, 3], W [4, 3]."""
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU()).to(device)
    x = torch.zeros(10, 3, device=device)
    found = tool.training_traffic(lambda: model(x), model.parameters())
    assert found["kept"] == 4 * (10 * 3 + 10 * 4)  # x and relu's output, not W
    product, relu = 30 + 12 + 40, 40 + 40
    assert found["forward"] == 4 * (product + relu)
    moved = found["by_operator"]
    assert moved["mm"] == 4 * (product + 40 + 30 + 12)  # and dW = dy^T x
    assert moved["threshold_backward"] == 4 * 3 * 40
    assert list(moved.values()) == sorted(moved.values(), reverse=True)


def test_views_and_storages_shared_count_once(tool):
    x = torch.zeros(6, 8, device="meta", requires_grad=True)

    def forward():
        left, right = x.chunk(2, dim=1)
        return (left * right).transpose(0, 1)

    found = tool.training_traffic(forward, [])
    assert found["kept"] == 4 * 48 and found["forward"] == 4 * 3 * 24
    assert tool.training_traffic(forward, [x])["kept"] == 0


TARGETS = {  # of the issue: what is kept, MiB; what it was before, MiB and GiB
    "vig-t": (125, 233, 2.15),
    "vig-s": (240, 443, 4.58),
    "vig-b": (480, 883, 9.65),
    "vig-h-t": (350, 651, 5.80),
    "vig-h-s": (560, 1042, 9.46),
    "vig-h-b": (752, 1397, 12.95),
}


@pytest.mark.parametrize("name", TARGETS)
def test_our_models_at_512(tool, name):
    """Little more than half is kept, and at most 0.78 of the bytes move: see docs/cost.md."""
    pytest.importorskip("triton")
    cfg = Config.fromfile(CONFIGS / f"mmpretrain/{name}_8xb128_in1k.py")
    if "-h-" in name:
        cfg.model.backbone.out_indices = (0, 1, 2, 3)
    found = tool.backbone_traffic(cfg)
    target, kept, moved = TARGETS[name]
    assert found["kept"] <= min(target, 0.54 * kept) * MIB
    assert found["training"] <= 0.78 * moved * GIB
    page = json.loads((ROOT / "docs/traffic.json").read_text())["after"][name]
    assert page["kept"] == found["kept"] and page["training"] == found["training"]


def test_what_a_cpu_keeps(tool):
    cfg = Config.fromfile(CONFIGS / "mmpretrain/vig-h-mini_digits.py")
    meta, cpu = (tool.backbone_traffic(cfg, (96, 128), device) for device in ("meta", "cpu"))
    # the kernels keep two numbers a token beside
    assert cpu["kept"] <= meta["kept"] <= 1.02 * cpu["kept"]
    cfg.model.backbone.backend = "torch"
    assert tool.backbone_traffic(cfg, (96, 128), "cpu")["kept"] > 1.7 * cpu["kept"]


def test_command_line(run_tool, tmp_path, default_scope):
    config = CONFIGS / "mmpretrain/vig-h-mini_digits.py"
    out = tmp_path / "traffic.json"
    args = (config, "--size", 64, 96, "--top", 2, "--json", out)
    printed = run_tool("analysis/count_traffic", *args, cwd=tmp_path)
    (found,) = json.loads(out.read_text())["results"].values()
    first, second, *_ = found["by_operator"]
    assert f"vig-h-mini_digits: {first} " in printed and f"vig-h-mini_digits: {second} " in printed
    assert printed.count("GiB\n") == 2 and 0 < found["forward"] < found["training"]


def test_whole_model(run_tool, tmp_path, default_scope, capsys):
    config = CONFIGS / "mmpretrain/vig-h-mini_digits.py"
    for options in ([], ["--whole"]):
        out = tmp_path / f"{len(options)}.json"
        args = (config, "--size", 64, 64, "--device", "cpu", *options, "--json", out)
        run_tool("analysis/count_traffic", *args, cwd=tmp_path)
    part, whole = (json.loads((tmp_path / f"{i}.json").read_text())["results"] for i in (0, 1))
    part, whole = (next(iter(x.values())) for x in (part, whole))
    assert whole["training"] > part["training"] and whole["kept"] >= part["kept"]
    with pytest.raises(SystemExit):
        run_tool("analysis/count_traffic", config, "--whole", cwd=tmp_path)
    assert "--device cpu" in capsys.readouterr().err
