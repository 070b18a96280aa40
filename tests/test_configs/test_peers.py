"""Other backbones in our recipes differ in nothing else. That they learn: test_learning.py."""

import re
from pathlib import Path

import config_files
import numpy as np
import pytest
from config_files import differences, load, stem
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import MODELS, DefaultScope

PEERS = [name for name in config_files.PEERS if "px_test" not in name]  # a peer at another size
OURS = {
    "mmdet": "mmdet/mask-rcnn_vig-h-t_fpn_1x_coco.py",
    "mmseg": "mmseg/vig-h-t_upernet_8xb2-160k_ade20k-512x512.py",
    "mmpretrain": "mmpretrain/vig-h-t_8xb128_in1k.py",
}
PLAIN = "mmpretrain/vig-t_8xb128_in1k.py"  # DeiT has its recipe
FAMILIES = ("convnext", "swin-", "swinv2", "hornet", "gcvit", "maxvit", "volo")
# entries in which a peer may differ from ours, and those of the fixed image size
ALLOWED = ("model.", "optim_wrapper.paramwise_cfg.custom_keys.", "sync_bn")
FIXED_SIZE = ("train_pipeline", "test_pipeline", "tta_pipeline", "model.data_preprocessor.")
FIXED_SIZE += tuple(f"{split}_dataloader.dataset.pipeline" for split in ("train", "val", "test"))


@pytest.mark.parametrize("task", OURS)
def test_every_family_is_there(task):
    names = [Path(name).name for name in PEERS if name.startswith(task)]
    for family in FAMILIES:
        assert sum(family in name for name in names) == 1, family


@pytest.mark.parametrize("name", PEERS, ids=stem)
def test_only_the_backbone_differs(name):
    found = differences(PLAIN if "deit" in name else OURS[name.partition("/")[0]], name)
    of_ours = "vig-h-t" in name  # at a fixed size
    allowed = ("model.backbone.",) if of_ours else ALLOWED
    if "1024x1024" in name:
        allowed += FIXED_SIZE
    assert found and all(key.startswith(allowed) for key in found), found
    heads = {key for key in found if key.startswith("model.") and "_head." in key}
    assert all(key.endswith(".in_channels") for key in heads)
    if not of_ours and not re.search("volo-d1_8xb128|deit", name):  # whole classifiers of timm's
        assert "model.backbone.drop_path_rate" not in found


@pytest.mark.parametrize("name", [n for n in PEERS if "1024x1024" in n], ids=stem)
def test_every_image_is_1024x1024(name):
    cfg = load(name)
    with DefaultScope.overwrite_default_scope("mmdet"):
        preprocess = MODELS.build(cfg.model.data_preprocessor)
        for image in ((300, 500), (700, 400)):
            for pipeline in (cfg.train_pipeline, cfg.test_pipeline):
                steps = Compose([step for step in pipeline if not step.type.startswith("Load")])
                given = dict(img=np.zeros((*image, 3), np.uint8), img_shape=image, ori_shape=image)
                data = preprocess(pseudo_collate([steps(dict(given, img_id=0, img_path=""))]))
                assert data["inputs"].shape == (1, 3, 1024, 1024)
    assert all(max(resize["scale"]) <= 1024 for resize in cfg.tta_pipeline[1].transforms[0])
