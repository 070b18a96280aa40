"""Other backbones in our recipes: each builds, learns, predicts, and differs in nothing else."""

import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mmcv")
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
pytest.importorskip("mmpretrain")
pytest.importorskip("timm")

from iteration import train_and_predict
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope

ROOT = Path(__file__).resolve().parents[2] / "configs"
PEERS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("*/peers/*.py"))
PEERS = [name for name in PEERS if "px_test" not in name]  # of a peer at another size
OURS = {
    "mmdet": "mmdet/mask-rcnn_vig-h-t_fpn_1x_coco.py",
    "mmseg": "mmseg/vig-h-t_upernet_8xb2-160k_ade20k-512x512.py",
    "mmpretrain": "mmpretrain/vig-h-t_8xb128_in1k.py",
}
PLAIN = "mmpretrain/vig-t_8xb128_in1k.py"  # DeiT has its recipe
FIXED = "mmdet/peers/mask-rcnn_vig-h-t_fpn_1x_coco-1024x1024.py"
FAMILIES = ("convnext", "swin-", "swinv2", "hornet", "gcvit", "maxvit", "volo")
# entries in which a peer may differ from ours, and those of the fixed image size
ALLOWED = ("model.", "optim_wrapper.paramwise_cfg.custom_keys.", "sync_bn")
FIXED_SIZE = ("train_pipeline", "test_pipeline", "tta_pipeline", "model.data_preprocessor.")
FIXED_SIZE += tuple(f"{split}_dataloader.dataset.pipeline" for split in ("train", "val", "test"))


def load(name: str) -> Config:
    return Config.fromfile(ROOT / name)


def stem(name: str) -> str:
    return Path(name).stem


def shrink(cfg: Config, name: str) -> tuple[tuple[int, int], tuple[int, int] | None]:
    """The smallest images that the peer takes, to train and to test with (None: the same)."""
    if cfg.default_scope == "mmpretrain":
        any_size = re.search("convnext|hornet|deit", name)
        return (64, 64) if any_size else (224, 224), None
    size, test_size = (128, 128), None
    if "maxvit" in name:
        size, test_size = (256, 256), (200, 300)
    if "gcvit" in name or "volo" in name or name == FIXED:  # of one size only
        side = 256 if "gcvit" in name else 128
        size, test_size = (side, side), (side - 40, side - 90)
        if "img_size" in cfg.model.backbone:
            cfg.model.backbone.img_size = side
        if cfg.default_scope == "mmseg":  # window by window, or padded to one
            test_size = (side - 40, side + 60)
            cfg.model.data_preprocessor.test_cfg.size = size
            cfg.model.test_cfg.update(crop_size=size, stride=(side // 2, side // 2))
        else:
            cfg.model.data_preprocessor.pad_size_divisor = side
    if cfg.default_scope == "mmseg":
        cfg.model.data_preprocessor.size = size
    else:
        cfg.model.train_cfg.rpn_proposal.max_per_img = 50
        cfg.model.test_cfg.rpn.max_per_img = 20
    return size, test_size


@pytest.mark.parametrize("name", PEERS, ids=stem)
def test_trains_an_iteration_and_predicts(name, tmp_path):
    cfg = load(name)
    size, test_size = shrink(cfg, name)
    train_and_predict(cfg, size, tmp_path, test_size)


@pytest.mark.parametrize("task", OURS)
def test_every_family_is_there(task):
    names = [Path(name).name for name in PEERS if name.startswith(task)]
    for family in FAMILIES:
        assert sum(family in name for name in names) == 1, family


def flat(value: dict, prefix: str = "") -> dict:
    entries = {}
    for key, entry in value.items():
        inner = flat(entry, f"{prefix}{key}.") if isinstance(entry, dict) else {}
        entries |= inner or {f"{prefix}{key}": entry}
    return entries


@pytest.mark.parametrize("name", PEERS, ids=stem)
def test_only_the_backbone_differs(name):
    base = PLAIN if "deit" in name else OURS[name.partition("/")[0]]
    ours, theirs = flat(load(base).to_dict()), flat(load(name).to_dict())
    differing = {key for key in ours | theirs if ours.get(key) != theirs.get(key)}
    allowed = ("model.backbone.",) if name == FIXED else ALLOWED
    if "1024x1024" in name:
        allowed += FIXED_SIZE
    assert differing and all(key.startswith(allowed) for key in differing), differing
    heads = {k for k in differing if k.startswith("model.") and "_head." in k}
    assert all(key.endswith(".in_channels") for key in heads)
    if name != FIXED and not re.search("volo-d1_8xb128|deit", name):  # whole classifiers of timm's
        assert theirs["model.backbone.drop_path_rate"] == ours["model.backbone.drop_path_rate"]


@pytest.mark.parametrize("image", [(300, 500), (700, 400)], ids=["wide", "tall"])
@pytest.mark.parametrize("name", [n for n in PEERS if "1024x1024" in n], ids=stem)
def test_every_image_is_1024x1024(name, image):
    cfg = load(name)
    with DefaultScope.overwrite_default_scope("mmdet"):
        preprocess = MODELS.build(cfg.model.data_preprocessor)
        for pipeline, training in ((cfg.train_pipeline, True), (cfg.test_pipeline, False)):
            steps = [step for step in pipeline if not step.type.startswith("Load")]
            step = dict(img=np.zeros((*image, 3), np.uint8), img_shape=image, ori_shape=image)
            data = preprocess(pseudo_collate([Compose(steps)(dict(step, img_id=0, img_path=""))]))
            assert data["inputs"].shape == (1, 3, 1024, 1024), training
        for resize in cfg.tta_pipeline[1].transforms[0]:
            assert max(resize["scale"]) <= 1024


@pytest.mark.parametrize("name", [n for n in PEERS if n.startswith("mmpretrain")], ids=stem)
def test_position_biases_do_not_decay(name):
    """As the models' own recipes have it; what is 1-D is exempt everywhere."""
    cfg = load(name)
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        model = MODELS.build(dict(cfg.model, _scope_="mmpretrain"))
        wrapper = dict(type="OptimWrapper", optimizer=cfg.optim_wrapper.optimizer)
        wrapper["paramwise_cfg"] = cfg.optim_wrapper.paramwise_cfg
        groups = build_optim_wrapper(model, wrapper).optimizer.param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    position = ("pos_embed", "position_bias", "rel_pos.mlp", "cpb_mlp", "logit_scale", "cls_token")
    for parameter, value in model.named_parameters():
        exempt = value.ndim == 1 or any(word in parameter for word in position)
        assert decay[id(value)] == (0 if exempt else 0.05), parameter
