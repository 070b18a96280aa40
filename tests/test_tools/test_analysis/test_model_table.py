"""tools/analysis: counts against published figures, and what is written from them."""

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip("mmcv")
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
pytest.importorskip("mmpretrain")

from mmengine.config import Config
from mmengine.hub import get_config

from vig_mm.errors import UsageError

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "configs"
MASK_RCNN = "mmdet/mask-rcnn_vig-h-t_fpn_1x_coco.py"
CASCADE = "mmdet/cascade-mask-rcnn_vig-h-t_fpn_4conv1fc-giou_ms-crop-3x_coco.py"
UPERNET = "mmseg/vig-h-t_upernet_8xb2-160k_ade20k-512x512.py"
VIG_T = "mmpretrain/vig-t_8xb128_in1k.py"


@pytest.fixture(scope="module")
def tool():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools" / "analysis"))
        yield importlib.import_module("model_table")


@pytest.fixture(scope="module")
def listed() -> dict[str, dict]:
    """The entries of docs/models.json by their config."""
    models = json.loads((ROOT / "docs/models.json").read_text())["models"]
    return {model["config"]: model for model in models}


def test_vig_t_against_a_count_by_hand(tool):
    """Every weight is used once a token, but for those of the embedding; and the recurrence."""
    tokens, width, hidden, blocks = 14 * 14, 192, 512, 12
    stem = 28 * 28 * 81 * 3 * (width // 2) + tokens * 9 * (width // 2) * width
    mixer = 9 * width + 2 * width**2 + 16 * width + 16 * width + 2 * width**2
    recurrence = 4 * width * 32  # over all heads: two directions, k v^T and q S, K = 32
    mlp = 3 * width * hidden
    total = stem + blocks * tokens * (mixer + recurrence + mlp) + 1000 * width
    counts = tool.count(Config.fromfile(CONFIGS / VIG_T))
    assert counts == dict(parameters=5834536, flops=total, input=[224, 224])


@pytest.mark.parametrize(
    ("name", "flops", "parameters"),
    [(CASCADE, 745e9, 86e6), (UPERNET, 945e9, 60e6)],
    ids=("cascade-mask-rcnn", "upernet"),
)
def test_swin_t_has_the_counts_of_its_paper(tool, name, flops, parameters):
    """Liu et al., arXiv 2103.14030, tables 2 and 3: the convention is the field's."""
    cfg = Config.fromfile(CONFIGS / name)
    cfg.model.backbone = dict(
        type="mmpretrain.SwinTransformer", arch="tiny", out_indices=(0, 1, 2, 3)
    )
    if cfg.default_scope == "mmdet":
        cfg.model.backbone.pad_small_map = True
    counts = tool.count(cfg)
    assert counts["flops"] == pytest.approx(flops, rel=0.01)
    assert counts["parameters"] == pytest.approx(parameters, rel=0.01)


def test_one_stage_detectors_are_counted(tool):
    """RetinaNet with ResNet-50: 239.32 G in mmdet's documentation of its own counter."""
    counts = tool.count(get_config("mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"))
    assert counts["flops"] == pytest.approx(239.32e9, rel=0.01)


SIZES = {
    MASK_RCNN: (800, 1280),
    "mmdet/mask-rcnn_vig-t_simple-pyramid_lsj-100e_coco.py": (1024, 1024),
    "mmdet/peers/mask-rcnn_maxvit-t_fpn_1x_coco.py": (1024, 1280),  # multiples of 256
    UPERNET: (512, 2048),
    "mmseg/peers/gcvit-t_upernet_8xb2-160k_ade20k-512x512.py": (512, 512),  # takes no other
    "mmpretrain/vig-t_in1k-384px_test.py": (384, 384),
}


@pytest.mark.parametrize("name", SIZES, ids=lambda name: Path(name).stem)
def test_image_sizes(tool, name):
    count_flops = importlib.import_module("count_flops")
    assert count_flops.input_size(Config.fromfile(CONFIGS / name)) == SIZES[name]


@pytest.mark.parametrize("name", [VIG_T, MASK_RCNN, UPERNET], ids=lambda name: Path(name).stem)
def test_models_json_is_what_the_command_counts(tool, listed, name):
    assert tool.entry(CONFIGS / name) == listed[f"configs/{name}"]


def test_models_json_lists_every_config(tool, listed):
    assert list(listed) == [path.relative_to(ROOT).as_posix() for path in tool.config_files()]
    everything = {path for path in CONFIGS.glob("mm*/**/*.py") if "-mini_" not in path.name}
    assert set(tool.config_files()) == everything


def test_page_and_metafiles_are_made_from_models_json(tool, listed):
    models = list(listed.values())
    text = (ROOT / "docs/models.md").read_text()
    assert tool.page(text, models) == text
    for scope in tool.TITLES:
        chosen = [model for model in models if model["scope"] == scope]
        assert (CONFIGS / scope / "metafile.yml").read_text() == tool.metafile(chosen)


def test_accuracies_are_the_reported_ones_and_nothing_else(tool, listed):
    assert {c for c, model in listed.items() if "top1_reported" in model} == {
        f"configs/mmpretrain/{name}.py" for name in tool.REPORTED_TOP1
    }
    for scope in tool.TITLES:
        for entry in yaml.safe_load((CONFIGS / scope / "metafile.yml").read_text())["Models"]:
            if "Results" in entry:
                (result,) = entry["Results"]
                top1 = result["Metrics"]["Top 1 Accuracy"]
                assert top1 == tool.REPORTED_TOP1[entry["Name"]]
                assert entry["Metadata"]["Accuracy Source"].startswith("reported by the paper")


def test_main_writes_a_new_config_everywhere(tool, tmp_path, monkeypatch):
    shutil.copytree(CONFIGS / "_base_", tmp_path / "configs/_base_")
    (tmp_path / "docs").mkdir()
    page = "before\n<!-- archs:begin --><!-- archs:end -->\n<!-- models:begin -->\nold\n"
    (tmp_path / "docs/models.md").write_text(page + "<!-- models:end -->\nafter\n")
    for scope in tool.TITLES:
        (tmp_path / "configs" / scope).mkdir()
    shutil.copy(CONFIGS / VIG_T, tmp_path / "configs/mmpretrain/vig-t_new.py")
    (tmp_path / "configs/mmpretrain/peers").mkdir()
    rival = tmp_path / "configs/mmpretrain/peers/rival.py"
    rival.write_text("_base_ = '../vig-t_new.py'\n")
    shutil.copy(CONFIGS / VIG_T, tmp_path / "configs/mmpretrain/vig-mini_digits.py")
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["model_table.py"])
    tool.main()

    rival, new = json.loads((tmp_path / "docs/models.json").read_text())["models"]
    assert (rival["config"], new["config"]) == (
        "configs/mmpretrain/peers/rival.py",
        "configs/mmpretrain/vig-t_new.py",
    )
    text = (tmp_path / "docs/models.md").read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| [vig-t_new](../configs/mmpretrain/vig-t_new.py) | 5.83 | 1.17 | 224x224 |" in text
    assert text.index("vig-t_new") < text.index("ImageNet-1K: peers") < text.index("[rival]")
    metafile = yaml.safe_load((tmp_path / "configs/mmpretrain/metafile.yml").read_text())
    (entry,) = metafile["Models"]
    assert entry["Name"] == "vig-t_new" and "Results" not in entry
    assert entry["Metadata"]["Parameters"] == 5834536
    assert entry["In Collection"] == metafile["Collections"][0]["Name"]


def test_page_without_markers_is_one_clear_error(tool):
    with pytest.raises(ValueError, match="docs/models.md lacks the lines '<!-- models:begin -->'"):
        tool.fill("<!-- models:begin -->", "models", "table")


def test_what_cannot_be_counted_is_one_clear_error(tool):
    with pytest.raises(UsageError, match="DETR is neither a one-stage nor a two-stage detector"):
        tool.count(get_config("mmdet::detr/detr_r50_8xb2-150e_coco.py"))
    cfg = Config.fromfile(CONFIGS / VIG_T)
    steps = [step for step in cfg.test_pipeline if step.type != "CenterCrop"]
    cfg.test_dataloader.dataset.pipeline = steps
    with pytest.raises(UsageError, match="0 CenterCrop steps"):
        tool.count(cfg)


def test_count_flops_as_a_command(tmp_path):
    command = [sys.executable, "-W", "ignore", str(ROOT / "tools/analysis/count_flops.py")]
    done = subprocess.run([*command, str(CONFIGS / VIG_T)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "5,834,536" in done.stdout and "1,167,762,432  at 224x224" in done.stdout
    done = subprocess.run([*command, "nowhere.py"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and "config 'nowhere.py' is not a file" in done.stderr
