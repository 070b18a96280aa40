"""get_flops.py and model_table.py: counts against published figures; what is written from them."""

import importlib
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("mmcv")
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
pytest.importorskip("mmpretrain")

from mmengine.config import Config
from mmengine.hub import get_config
from torch import nn

from vig_mm.errors import UsageError

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "configs"
MASK_RCNN = "mmdet/mask-rcnn_vig-h-t_fpn_1x_coco.py"
CASCADE = "mmdet/cascade-mask-rcnn_vig-h-t_fpn_4conv1fc-giou_ms-crop-3x_coco.py"
UPERNET = "mmseg/vig-h-t_upernet_8xb2-160k_ade20k-512x512.py"
VIG_T = "mmpretrain/vig-t_8xb128_in1k.py"
MINI = CONFIGS / "mmpretrain/vig-h-mini_digits.py"


@pytest.fixture(scope="module")
def flops(analysis_tool):
    return analysis_tool("get_flops")


@pytest.fixture(scope="module")
def tool(flops):
    return importlib.import_module("model_table")


@pytest.fixture(scope="module")
def listed() -> dict[str, dict]:
    """The entries of docs/models.json by their config."""
    models = json.loads((ROOT / "docs/models.json").read_text())["models"]
    return {model["config"]: model for model in models}


# FLOPs


PUBLISHED = {  # FLOPs, parameters
    "cascade-mask-rcnn": (745e9, 86e6),
    "upernet": (945e9, 60e6),
    "retinanet": (239.32e9, 37.7e6),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(flops, name):
    """Swin-T in its paper (arXiv 2103.14030, tables 2 and 3), ResNet-50 in mmdet's documentation:
    the convention is the field's."""
    if name == "retinanet":
        cfg = get_config("mmdet::retinanet/retinanet_r50_fpn_1x_coco.py")
    else:
        cfg = Config.fromfile(CONFIGS / (UPERNET if name == "upernet" else CASCADE))
        swin = dict(type="mmpretrain.SwinTransformer", arch="tiny", out_indices=(0, 1, 2, 3))
        cfg.model.backbone = swin | (dict(pad_small_map=True) if name != "upernet" else {})
    counts = flops.count(cfg)
    assert (counts["flops"], counts["parameters"]) == pytest.approx(PUBLISHED[name], rel=0.01)


SIZES = {
    MASK_RCNN: (800, 1280),
    "mmdet/mask-rcnn_vig-t_simple-pyramid_lsj-100e_coco.py": (1024, 1024),
    "mmdet/peers/mask-rcnn_maxvit-t_fpn_1x_coco.py": (1024, 1280),  # multiples of 256
    UPERNET: (512, 2048),
    "mmseg/peers/gcvit-t_upernet_8xb2-160k_ade20k-512x512.py": (512, 512),  # takes no other
    "mmpretrain/vig-t_in1k-384px_test.py": (384, 384),
}


def test_image_sizes(flops):
    found = {name: flops.input_size(Config.fromfile(CONFIGS / name)) for name in SIZES}
    assert found == SIZES


def test_what_cannot_be_counted_is_one_clear_error(flops):
    with pytest.raises(UsageError, match="DETR is neither a one-stage nor a two-stage detector"):
        flops.count(get_config("mmdet::detr/detr_r50_8xb2-150e_coco.py"))
    cfg = Config.fromfile(CONFIGS / VIG_T)
    cfg.test_dataloader.dataset.pipeline = [s for s in cfg.test_pipeline if s.type != "CenterCrop"]
    with pytest.raises(UsageError, match="0 CenterCrop steps"):
        flops.count(cfg)


def test_commands(run_tool, tmp_path, capsys, default_scope):
    printed = run_tool("analysis_tools/get_flops", CONFIGS / VIG_T, cwd=tmp_path)
    assert "5,834,536" in printed and "1,167,762,432  at 224x224" in printed
    out, page = tmp_path / "traffic.json", tmp_path / "page.md"
    page.write_text("<!-- traffic:begin -->old<!-- traffic:end -->")
    args = (MINI, "--traffic", "--size", 64, 96, "--top", 1, "--out", out, "--page", page)
    printed = run_tool("analysis_tools/get_flops", *args, cwd=tmp_path)
    (found,) = json.loads(out.read_text())["results"].values()
    assert f"vig-h-mini_digits: {next(iter(found['by_operator']))} " in printed
    assert 0 < found["forward"] < found["training"] and "old" not in page.read_text()
    with pytest.raises(SystemExit):
        run_tool("analysis_tools/get_flops", MINI, "--whole", cwd=tmp_path)
    assert "--device cpu" in capsys.readouterr().err
    page.write_text("nothing")
    with pytest.raises(SystemExit, match="page.md: .* lacks the lines '<!-- traffic:begin -->'"):
        run_tool("analysis_tools/get_flops", MINI, "--traffic", "--page", page, cwd=tmp_path)


# Traffic


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_a_layer_counted_by_hand(flops, device):
    """relu(x W^T): x [10, 3], W [4, 3]."""
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU()).to(device)
    x = torch.zeros(10, 3, device=device)
    found = flops.training_traffic(lambda: model(x), model.parameters())
    assert found["kept"] == 4 * (10 * 3 + 10 * 4)  # x and relu's output, not W
    product, relu = 30 + 12 + 40, 40 + 40
    assert found["forward"] == 4 * (product + relu)
    moved = found["by_operator"]
    assert moved["mm"] == 4 * (product + 40 + 30 + 12)  # and dW = dy^T x
    assert moved["threshold_backward"] == 4 * 3 * 40
    assert list(moved.values()) == sorted(moved.values(), reverse=True)


def test_views_and_storages_shared_count_once(flops):
    x = torch.zeros(6, 8, device="meta", requires_grad=True)

    def forward():
        left, right = x.chunk(2, dim=1)
        return (left * right).transpose(0, 1)

    found = flops.training_traffic(forward, [])
    assert found["kept"] == 4 * 48 and found["forward"] == 4 * 3 * 24
    assert flops.training_traffic(forward, [x])["kept"] == 0


@pytest.mark.parametrize(
    "name", [f"mmpretrain/vig-{x}_8xb128_in1k" for x in "tb"] + [MASK_RCNN.removesuffix(".py")]
)
def test_our_models_at_512(flops, name):
    """No more than the documented figures, which are less than half of what autograd kept."""
    pytest.importorskip("triton")
    found = flops.backbone_traffic(Config.fromfile(CONFIGS / f"{name}.py"))
    listed = json.loads((ROOT / "docs/measured/traffic.json").read_text())["results"]
    for key in ("kept", "training"):  # other releases of torch split operators in other parts
        assert found[key] == pytest.approx(listed[Path(name).name][key], rel=0.02)


def test_what_a_cpu_keeps_and_a_whole_model(flops):
    cfg = Config.fromfile(MINI)
    meta, cpu = (flops.backbone_traffic(cfg, (96, 128), device) for device in ("meta", "cpu"))
    # the kernels compute the MLP's first layer again where channels are few
    assert 0.5 * cpu["kept"] < meta["kept"] < 0.75 * cpu["kept"]
    whole = flops.whole_traffic(Config.fromfile(MINI), (96, 128))
    assert whole["training"] > cpu["training"] and whole["kept"] >= cpu["kept"]
    cfg.model.backbone.backend = "torch"
    assert flops.backbone_traffic(cfg, (96, 128), "cpu")["kept"] > 1.7 * cpu["kept"]


# What is written


def test_models_json_is_what_the_command_counts(tool, listed):
    for name in (VIG_T, MASK_RCNN, UPERNET):
        assert tool.entry(CONFIGS / name) == listed[f"configs/{name}"]


def test_page_and_metafiles_are_made_from_models_json(tool, listed):
    everything = {path for path in CONFIGS.glob("mm*/**/*.py") if "-mini_" not in path.name}
    assert list(listed) == [path.relative_to(ROOT).as_posix() for path in sorted(everything)]
    models, text = list(listed.values()), (ROOT / "docs/models.md").read_text()
    assert tool.page(text, models) == text
    for scope in tool.TITLES:
        chosen = [model for model in models if model["scope"] == scope]
        assert (CONFIGS / scope / "metafile.yml").read_text() == tool.metafile(chosen)


def test_main_writes_a_new_config_everywhere(tool, tmp_path, monkeypatch):
    shutil.copytree(CONFIGS / "_base_", tmp_path / "configs/_base_")
    for folder in ("docs", "configs/mmdet", "configs/mmseg", "configs/mmpretrain/peers"):
        (tmp_path / folder).mkdir(parents=True)
    page = "before\n<!-- archs:begin --><!-- archs:end -->\n<!-- models:begin -->\nold\n"
    (tmp_path / "docs/models.md").write_text(page + "<!-- models:end -->\nafter\n")
    for name in ("vig-t_new.py", "vig-mini_digits.py"):
        shutil.copy(CONFIGS / VIG_T, tmp_path / "configs/mmpretrain" / name)
    rival = tmp_path / "configs/mmpretrain/peers/rival.py"
    rival.write_text("_base_ = '../vig-t_new.py'\n")
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["model_table.py"])
    tool.main()

    rival, new = json.loads((tmp_path / "docs/models.json").read_text())["models"]
    assert rival["config"] == "configs/mmpretrain/peers/rival.py"
    assert new["config"] == "configs/mmpretrain/vig-t_new.py" and new["flops"] == 1167762432
    text = (tmp_path / "docs/models.md").read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| [vig-t_new](../configs/mmpretrain/vig-t_new.py) | 5.83 | 1.17 | 224x224 |" in text
    assert text.index("vig-t_new") < text.index("ImageNet-1K: peers") < text.index("[rival]")
    metafile = yaml.safe_load((tmp_path / "configs/mmpretrain/metafile.yml").read_text())
    (entry,) = metafile["Models"]  # no peer, no example
    assert entry["Name"] == "vig-t_new" and "Results" not in entry
    assert entry["In Collection"] == metafile["Collections"][0]["Name"]
