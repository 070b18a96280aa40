"""Configs that would train badly without a word: optimizer, warm-up, maps, kinds of classes."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("mmcv")
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
pytest.importorskip("mmpretrain")

from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import MODELS

from vig_mm.checks.recipe import check_recipe, recipe_notes
from vig_mm.errors import UsageError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SMALL = {
    "mmdet": "mmdet/mask-rcnn_vig-h-mini_fpn_digits.py",
    "mmseg": "mmseg/vig-h-mini_upernet_digits.py",
    "mmpretrain": "mmpretrain/vig-h-mini_digits.py",
}


def notes(scope: str, **changes) -> list[str]:
    cfg = Config.fromfile(CONFIGS / SMALL[scope])
    cfg.merge_from_dict({key.replace("__", "."): value for key, value in changes.items()})
    with MODELS.switch_scope_and_registry(scope) as registry:
        model = registry.build(cfg.model).train()
    found = recipe_notes(cfg, model)
    assert model.training and all(p.grad is None for p in model.parameters())
    return found


@pytest.mark.parametrize("scope", SMALL)
def test_our_configs_have_nothing(scope):
    check_recipe(Config.fromfile(CONFIGS / SMALL[scope]))
    assert notes(scope) == []


def test_optimizer_and_warm_up():
    sgd, warm_up = notes(
        "mmdet",
        optim_wrapper__optimizer=dict(_delete_=True, type="SGD", lr=0.02),
        param_scheduler=[dict(type="MultiStepLR", milestones=[8], begin=0, end=12)],
    )
    assert "optimizer is SGD" in sgd and "AdamW, lr 1e-4 for 16 images" in sgd
    assert "no warm-up" in warm_up and "1000 iterations of warm-up" in warm_up
    (warm_up,) = notes("mmseg", param_scheduler=None)
    assert "lr 6e-5" in warm_up


def test_other_backbones_are_left_alone():
    assert recipe_notes(Config(dict(default_scope="mmdet")), torch.nn.Linear(1, 1)) == []


def test_unused_maps():
    (note,) = notes("mmdet", model__neck__start_level=1, model__neck__num_outs=4)
    assert "out_indices [0]" in note and "model.backbone.out_indices=[1, 2, 3]" in note
    (note,) = notes(
        "mmseg",
        model__decode_head=dict(
            _delete_=True, type="FCNHead", in_channels=128, in_index=2, channels=8, num_classes=11
        ),
    )
    assert "out_indices [0, 1, 3]" in note or "out_indices [0, 3]" in note
    (note,) = notes("mmpretrain", model__backbone__out_indices=(2, 3))
    assert "out_indices [2]" in note and "out_indices=[3]" in note


def test_schedules_that_end_before_they_begin():
    cfg = Config.fromfile(CONFIGS / SMALL["mmpretrain"])
    cfg.param_scheduler = [
        dict(type="LinearLR", start_factor=0.01, begin=0, end=5),
        dict(type="CosineAnnealingLR", begin=5, end=3, T_max=3),
    ]
    with pytest.raises(UsageError, match=r"param_scheduler.1 \(CosineAnnealingLR\) ends at 3"):
        check_recipe(cfg)


def test_kinds_of_classes():
    cfg = get_config("mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py")
    check_recipe(cfg)
    cfg.train_dataloader.dataset.metainfo = dict(classes=("apple", "pear"))
    with pytest.raises(UsageError) as error:
        check_recipe(cfg)
    said = str(error.value)
    assert "model.panoptic_head: num_things_classes=80" in said
    assert "model.panoptic_fusion_head: num_things_classes=80" in said
    assert "class_weight has 81 entries" in said and "[1.0] * 2 + [0.1]" in said


def test_spare_kinds_of_classes():
    """mmdet's metrics fail at an output without a class; elsewhere it trains, with its weights."""
    cfg = get_config("mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py")
    cfg.train_dataloader.dataset.metainfo = dict(classes=("apple", "pear"))
    cfg.train_dataloader.dataset["type"] = "mmdet.CocoDataset"
    cfg.default_scope = "mmseg"
    check_recipe(cfg)
    cfg.model.panoptic_head.loss_cls.class_weight = [1.0] * 2 + [0.1]
    with pytest.raises(UsageError, match="one for each of the 80 classes"):
        check_recipe(cfg)
    cfg.model.panoptic_head.num_things_classes = 1
    with pytest.raises(UsageError, match="num_things_classes=1 and num_stuff_classes=0"):
        check_recipe(cfg)


def test_schedules_by_optimizer():
    """mmengine takes a dict of lists, too."""
    warm_up = dict(type="LinearLR", start_factor=0.01, by_epoch=False, end=5)
    assert notes("mmpretrain", param_scheduler=dict(_delete_=True, first=[warm_up])) == []
    cfg = Config.fromfile(CONFIGS / SMALL["mmpretrain"])
    cfg.param_scheduler = dict(first=[warm_up, dict(type="PolyLR", begin=5, end=5)])
    with pytest.raises(UsageError, match=r"param_scheduler.first.1 \(PolyLR\) ends at 5"):
        check_recipe(cfg)
