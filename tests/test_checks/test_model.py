"""Options that a part does not know and channels that do not fit give one error, before training;
what fits, or cannot be judged, passes."""

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
from mmengine.hub import get_config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope

from vig_mm.checks.model import check_channels, check_options
from vig_mm.datasets import make_digits
from vig_mm.errors import ModelError

ROOT = Path(__file__).resolve().parents[2]
DETECTOR = "mmdet/mask-rcnn_vig-h-mini_fpn_digits.py"
SEGMENTOR = "mmseg/vig-h-mini_upernet_digits.py"
CLASSIFIER = "mmpretrain/vig-h-mini_digits.py"
MASK2FORMER = "mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py"
PLAIN = dict(type="vig_mm.ViG", embed_dims=32, depth=2, num_heads=2)
SMALL = dict(type="vig_mm.HierViG", embed_dims=16, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 4))


def config(name: str, **changes) -> Config:
    """One of ours or of a library (`mmdet::...`), with entries of its model changed (`a__b`)."""
    cfg = get_config(name) if "::" in name else Config.fromfile(ROOT / "configs" / name)
    for key, value in changes.items():
        *path, last = key.split("__")
        part = cfg.model
        for step in path:
            part = part[step]
        part[last] = value
    return cfg


def complaint(check, *args) -> str:
    with pytest.raises(ModelError) as error:
        check(*args)
    return str(error.value)


# Options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [DETECTOR, SEGMENTOR, CLASSIFIER])
def test_option_that_the_backbone_does_not_know(name):
    check_options(config(name))
    message = complaint(check_options, config(name, backbone__drop_path=0.1))
    assert "model.backbone.drop_path: HierViG has no option 'drop_path'" in message
    assert "did you mean 'drop_path_rate'?" in message
    assert "it has arch, embed_dims, depths, num_heads, in_channels, out_indices" in message


def test_all_unknown_options_are_one_message():
    neck = [dict(type="FPN", in_channel=[1], out_channels=64), dict(type="BFP", level=2)]
    message = complaint(check_options, config(DETECTOR, neck=neck, data_preprocessor__mena=[0]))
    assert message.count("\n  - ") == 3
    assert "model.neck.0.in_channel: FPN has no option" in message
    assert "model.neck.1.level: BFP has no option" in message
    assert "model.data_preprocessor.mena: DetDataPreprocessor has no option 'mena'" in message
    assert all(f"did you mean {x!r}?" in message for x in ("in_channels", "num_levels", "mean"))


def test_any_option_for_a_part_that_takes_any():
    timm = dict(type="TIMMBackbone", model_name="resnet18", features_only=True, whatever=1)
    check_options(config(CLASSIFIER, backbone=timm))


def test_type_without_its_package():
    message = complaint(check_options, config(DETECTOR, backbone__type="HierViG"))
    assert "model.backbone.type: 'HierViG' must be 'vig_mm.HierViG'" in message


def test_weights_of_the_backbone_that_was_there():
    swapped = config("mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py", backbone=SMALL)
    message = complaint(check_options, swapped)
    assert "mmseg hands it to the backbone, and HierViG has no such option" in message
    assert "set model.pretrained=None" in message
    swapped.model.pretrained = None
    check_options(swapped)


# Channels --------------------------------------------------------------------------------------


def built(cfg: Config) -> tuple[torch.nn.Module, dict]:
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(dict(cfg.model, _scope_=cfg.default_scope)), cfg.model


FPN = dict(type="FPN", in_channels=[32, 64, 128, 256], out_channels=64, num_outs=5)
WIDE = [96, 192, 384, 768]
HIER = "but model.backbone (HierViG) returns 4 maps of 32, 64, 128, 256 channels"
# config, changes of its model -> what the message says; None: it fits, or cannot be judged
CHANNELS = {
    "detector": (DETECTOR, {}, None),
    "segmentor": (SEGMENTOR, {}, None),
    "classifier": (CLASSIFIER, {}, None),
    "another size's FPN": (
        DETECTOR, dict(neck__in_channels=WIDE), f"model.neck.in_channels is {WIDE}, {HIER}: set "
        "model.neck.in_channels=[32, 64, 128, 256]"),
    "one map for an FPN": (
        DETECTOR, dict(backbone__out_indices=-1), "returns one map of 256 channels: set "
        "model.backbone.out_indices to 4 indices"),
    "neck and detection head": (
        DETECTOR, dict(rpn_head__in_channels=256), "model.rpn_head.in_channels is 256, but "
        "model.neck (FPN) returns 5 maps of 64, 64, 64, 64, 64 channels: set "
        "model.rpn_head.in_channels=64"),
    "second of two necks": (
        DETECTOR, dict(neck=[FPN, dict(FPN, in_channels=[96] * 5)]), "model.neck.1.in_channels is "
        "[96, 96, 96, 96, 96], but model.neck.0 (FPN) returns 5 maps"),
    "simple pyramid": (
        DETECTOR, dict(backbone=PLAIN, neck=dict(type="vig_mm.SimplePyramid", in_channels=192)),
        "model.neck.in_channels is 192, but model.backbone (ViG) returns one map of 32 channels: "
        "set model.neck.in_channels=32"),
    "segmentation heads": (
        SEGMENTOR, dict(decode_head__in_channels=WIDE, auxiliary_head__in_channels=384),
        f"model.decode_head.in_channels is {WIDE}, {HIER}: set "
        "model.decode_head.in_channels=[32, 64, 128, 256]\n  - model.auxiliary_head.in_channels is "
        f"384, {HIER} at in_index=2: set model.auxiliary_head.in_channels=128"),
    "index beyond the maps": (
        SEGMENTOR, dict(backbone__out_indices=(2, 3)), "model.decode_head takes the maps at "
        "in_index=[0, 1, 2, 3], but model.backbone (HierViG) returns 2 maps of 128, 256 channels"),
    "classification head": (
        CLASSIFIER, dict(head__in_channels=768), "model.head.in_channels is 768, but model.neck "
        "(GlobalAveragePooling) returns one map of 256 channels: set model.head.in_channels=256"),
    "a head that cannot run alone, fitting": (MASK2FORMER, {}, None),
    "a head that cannot run alone": (
        MASK2FORMER, dict(backbone=SMALL), "model.decode_head.in_channels is [256, 512, 1024, "
        "2048], but model.backbone (HierViG) returns 4 maps of 16, 32, 64, 128 channels"),
    "a neck that counts from the last map": (
        "mmdet::yolo/yolov3_mobilenetv2_8xb24-320-300e_coco.py", {}, None),
    "a backbone that takes no such image": (
        CLASSIFIER, dict(backbone=dict(type="TIMMBackbone", model_name="vit_tiny_patch16_384"),
                         head__in_channels=1), None),
}  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "words"), CHANNELS.values(), ids=CHANNELS)
def test_channels(name, changes, words):
    model, cfg = built(config(name, **changes))
    if words is None:
        check_channels(model, cfg)
    else:
        assert words in complaint(check_channels, model, cfg)


@pytest.mark.parametrize("mode", [True, False], ids=["training", "testing"])
def test_nothing_is_left_behind(mode):
    """Neither mode, nor running statistics, nor the state of the random numbers."""
    model, cfg = built(config(SEGMENTOR))
    model = revert_sync_batchnorm(model).train(mode)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    check_channels(model, cfg)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


# Tools -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tool", "option", "words"),
    [
        ("train.py", "model.backbone.depth=12", "HierViG has no option 'depth'"),
        ("test.py any.pth --tta", "model.head.in_channels=768", "returns one map of 256"),
    ],
)
def test_tools_stop_with_one_message(tool, option, words, tmp_path):
    make_digits(tmp_path / "data/digits", coco=(0, 0), ade=(0, 0), imagenet=(1, 1))
    torch.save(dict(state_dict=dict(weight=torch.zeros(1))), tmp_path / "any.pth")
    tool, *rest = tool.split()
    options = [option, "train_dataloader.num_workers=0", "test_dataloader.num_workers=0"]
    command = [ROOT / "tools" / tool, ROOT / "configs" / CLASSIFIER, *rest, "--cfg-options"]
    command = [sys.executable, "-W", "ignore", *command, *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"{tool}: error: the model's parts do not fit:" in done.stderr and words in done.stderr
