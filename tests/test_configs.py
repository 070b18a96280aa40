"""Every config loads, builds, learns from every parameter, and states the recipe it claims."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mmcv")
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
pytest.importorskip("mmpretrain")

from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData, PixelData

from vig_mm.engine.data_check import leaves

ROOT = Path(__file__).resolve().parents[1] / "configs"
CONFIGS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("mm*/*.py"))
COCO = "mmdet/mask-rcnn_vig-h-t_fpn_1x_coco.py"
ADE = "mmseg/vig-h-t_upernet_8xb2-160k_ade20k-512x512.py"
VIG_T = "mmpretrain/vig-t_8xb128_in1k.py"
VIG_H_T = "mmpretrain/vig-h-t_8xb128_in1k.py"
NO_DECAY = dict(norm_decay_mult=0, bias_decay_mult=0, flat_decay_mult=0)


def load(name: str) -> Config:
    return Config.fromfile(ROOT / name)


def build(cfg: Config):
    with MODELS.switch_scope_and_registry(cfg.default_scope) as registry:
        return registry.build(cfg.model)


def images(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, *shape), dtype=torch.uint8)


def detection_batch(num_classes: int) -> dict:
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    samples = []
    for _ in range(2):
        masks = np.zeros((2, 128, 160), np.uint8)
        masks[0, 10:60, 20:80] = masks[1, 40:120, 60:150] = 1
        sample = DetDataSample(
            metainfo=dict(img_shape=(128, 160), ori_shape=(128, 160), scale_factor=(1.0, 1.0))
        )
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([[20.0, 10, 80, 60], [60, 40, 150, 120]]),
            labels=torch.tensor([0, num_classes - 1]),
            masks=BitmapMasks(masks, 128, 160),
        )
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4))
        samples.append(sample)
    return dict(inputs=[images(128, 160) for _ in samples], data_samples=samples)


def segmentation_batch(num_classes: int) -> dict:
    from mmseg.structures import SegDataSample

    samples = []
    for _ in range(2):
        sample = SegDataSample(metainfo=dict(img_shape=(128, 128), ori_shape=(128, 128)))
        sample.gt_sem_seg = PixelData(data=torch.randint(0, num_classes, (1, 128, 128)))
        samples.append(sample)
    return dict(inputs=[images(128, 128) for _ in samples], data_samples=samples)


def classification_batch(num_classes: int, side: int) -> dict:
    from mmpretrain.structures import DataSample

    samples = [DataSample().set_gt_label(label) for label in (0, num_classes - 1)]
    return dict(inputs=torch.stack([images(side, side) for _ in samples]), data_samples=samples)


def batch(cfg: Config) -> dict:
    if cfg.default_scope == "mmdet":
        return detection_batch(cfg.model.roi_head.bbox_head.num_classes)
    if cfg.default_scope == "mmseg":
        return segmentation_batch(cfg.model.decode_head.num_classes)
    return classification_batch(cfg.model.head.num_classes, cfg.test_pipeline[2].crop_size)


def test_basenames_are_unique():
    # mim finds a config by its basename alone
    doubled = [n for n, count in Counter(Path(c).name for c in CONFIGS).items() if count > 1]
    assert len(CONFIGS) >= 7 and not doubled


@pytest.mark.parametrize("name", CONFIGS)
def test_learns_from_every_parameter(name):
    torch.manual_seed(0)
    cfg = load(name)
    if cfg.default_scope == "mmseg":
        cfg.model.data_preprocessor.size = (160, 160)  # padded, as small images are, but quick
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = build(cfg)
        model.init_weights()
        model = model.train()
        # Stochastic depth may drop a whole block in a batch of two: here every path shall count.
        for module in model.modules():
            if type(module).__name__ == "DropPath":
                module.eval()
        if cfg.default_scope == "mmseg":
            from mmengine.model import revert_sync_batchnorm

            model = revert_sync_batchnorm(model)
        data = model.data_preprocessor(batch(cfg), training=True)
        loss, _ = model.parse_losses(model(**data, mode="loss"))
    assert torch.isfinite(loss)
    loss.backward()
    # DDP fails on a parameter that takes no part
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("name", [COCO, ADE])
def test_padding_does_not_blow_up_gradients(name):
    # Batches are padded with exact zeros; layer norms of zero vectors amplify gradients 300-fold
    # each, so a backbone that maps zeros to zeros (no biases at the start) ends in NaN.
    torch.manual_seed(0)
    cfg = load(name)
    cfg.model.backbone.drop_path_rate = 0.0
    backbone = build(cfg).backbone
    backbone.init_weights()
    padded = torch.zeros(1, 3, 256, 256, requires_grad=True)
    with torch.no_grad():
        padded[..., :128, :128].normal_()
    torch.cat([out.flatten() for out in backbone(padded)]).square().sum().backward()
    assert padded.grad.abs().max() < 1e4


@pytest.mark.parametrize("name", CONFIGS)
def test_pipelines_build_and_tta_is_there(name):
    cfg = load(name)
    assert cfg.tta_model.type in ("vig_mm.InstanceTTAModel", "SegTTAModel") or (
        cfg.tta_model.type == "mmpretrain.AverageClsScoreTTA"
    )
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        loaders = (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader)
        datasets = [d for loader in loaders for _, d in leaves("dataset", loader.dataset)]
        for pipeline in (*(dataset.pipeline for dataset in datasets), cfg.tta_pipeline):
            assert len(Compose(pipeline).transforms) == len(pipeline)


@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_flat_decays(name):
    cfg = load(name)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = build(cfg)
        wrapper = dict(cfg.optim_wrapper, type="OptimWrapper")  # the AMP one needs a GPU
        wrapper.pop("loss_scale", None)
        wrapper.pop("dtype", None)
        optimizer = build_optim_wrapper(model, wrapper).optimizer
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    full = cfg.optim_wrapper.optimizer.weight_decay
    for parameter, value in model.named_parameters():
        exempt = value.ndim == 1 or "pos_embed" in parameter
        assert decay[id(value)] == (0 if exempt else full), parameter


@pytest.mark.parametrize("name", [COCO, ADE])
def test_pretrained_weights_by_cfg_options(name, tmp_path):
    cfg = load(name)
    checkpoint = tmp_path / "vig_h_t.pth"
    backbone = build(cfg).backbone
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.fill_(0.125)
    torch.save(dict(state_dict=backbone.state_dict()), checkpoint)
    cfg.merge_from_dict(
        {
            "model.backbone.init_cfg.type": "Pretrained",
            "model.backbone.init_cfg.checkpoint": str(checkpoint),
        }
    )
    model = build(cfg)
    model.init_weights()
    assert all((p == 0.125).all() for p in model.backbone.parameters())


def test_coco_recipe():
    cfg = load(COCO)
    assert cfg.model.backbone == dict(
        type="vig_mm.HierViG", arch="tiny", out_indices=(0, 1, 2, 3), drop_path_rate=0.2
    )
    assert cfg.model.neck == dict(
        type="FPN", in_channels=[96, 192, 384, 768], out_channels=256, num_outs=5
    )
    assert cfg.model.data_preprocessor.pad_size_divisor == 32
    optim = cfg.optim_wrapper
    assert optim.optimizer == dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05)
    assert "clip_grad" not in optim
    assert optim.paramwise_cfg == dict(NO_DECAY, custom_keys=dict(pos_embed=dict(decay_mult=0)))
    warmup, steps = cfg.param_scheduler
    assert (warmup.start_factor, warmup.end, warmup.by_epoch) == (0.001, 1000, False)
    assert (steps.milestones, steps.gamma, cfg.train_cfg.max_epochs) == ([8, 11], 0.1, 12)
    for pipeline in (cfg.train_pipeline, cfg.test_pipeline):
        (resize,) = [step for step in pipeline if step.type == "Resize"]
        assert (resize.scale, resize.keep_ratio) == ((1333, 800), True)
    assert cfg.train_dataloader.batch_size == 2 and cfg.val_dataloader.batch_size == 1
    assert cfg.auto_scale_lr.base_batch_size == 16


def learning_rates(cfg: Config, epoch_length: int, iterations: int) -> list[float]:
    """The rate of every iteration, as mmengine's hook would set it."""
    from mmengine.optim import OptimWrapper
    from mmengine.registry import PARAM_SCHEDULERS

    optimizer = torch.optim.AdamW([torch.zeros(1)], lr=cfg.optim_wrapper.optimizer.lr)
    schedulers = []
    for scheduler in cfg.param_scheduler:
        kind = PARAM_SCHEDULERS.get(scheduler.type)
        options = {k: v for k, v in scheduler.items() if k != "type"}
        options["optimizer"] = OptimWrapper(optimizer)
        if options.pop("convert_to_iter_based", False):
            schedulers.append(kind.build_iter_from_epoch(**options, epoch_length=epoch_length))
        else:
            schedulers.append(kind(**options))
    rates = []
    for iteration in range(1, iterations + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        for scheduler in schedulers:
            if not scheduler.by_epoch or iteration % epoch_length == 0:
                scheduler.step()
    return rates


def test_learning_rates():
    coco = learning_rates(load(COCO), 7330, 12 * 7330)
    marks = [coco[i] for i in (0, 999, 1000, 8 * 7330 - 1, 8 * 7330, 11 * 7330)]
    assert marks == pytest.approx([1e-7, 1e-4, 1e-4, 1e-4, 1e-5, 1e-6], rel=2e-3)
    ade = learning_rates(load(ADE), 1, 160000)
    marks = [ade[i] for i in (0, 1500, 80750, 159999)]
    assert marks == pytest.approx([6e-11, 6e-5, 3e-5, 0], rel=2e-3, abs=1e-9)
    vig = learning_rates(load(VIG_T), 50, 300 * 50)
    marks = [vig[i] for i in (0, 20 * 50, 160 * 50, 300 * 50 - 1)]
    assert marks == pytest.approx([1e-6, 2e-3, 1.005e-3, 1e-5], rel=2e-3)


def test_ade20k_recipe():
    cfg = load(ADE)
    assert cfg.model.backbone.drop_path_rate == 0.2
    head, auxiliary = cfg.model.decode_head, cfg.model.auxiliary_head
    assert (head.type, head.channels, head.dropout_ratio) == ("UPerHead", 512, 0.1)
    assert head.pool_scales == (1, 2, 3, 6) and head.in_channels == [96, 192, 384, 768]
    assert head.norm_cfg.type == "SyncBN" and head.num_classes == 150
    assert (auxiliary.in_index, auxiliary.in_channels, auxiliary.channels) == (2, 384, 256)
    assert auxiliary.loss_decode.loss_weight == 0.4 and auxiliary.num_classes == 150
    optim = cfg.optim_wrapper
    assert optim.optimizer == dict(type="AdamW", lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01)
    warmup, poly = cfg.param_scheduler
    assert (warmup.start_factor, warmup.end, warmup.by_epoch) == (1e-6, 1500, False)
    assert (poly.power, poly.eta_min, poly.begin, poly.end) == (1.0, 0.0, 1500, 160000)
    assert (cfg.train_cfg.max_iters, cfg.train_cfg.val_interval) == (160000, 16000)
    resize, crop = cfg.train_pipeline[2:4]
    assert (resize.scale, resize.ratio_range) == ((2048, 512), (0.5, 2.0))
    assert (crop.crop_size, crop.cat_max_ratio) == ((512, 512), 0.75)
    assert cfg.model.test_cfg.mode == "whole" and cfg.train_dataloader.batch_size == 2
    assert all(cfg[f"{s}_dataloader"].dataset.reduce_zero_label for s in ("train", "val", "test"))
    scales = [step.scale for step in cfg.tta_pipeline[1].transforms[0]]
    assert [s[1] / 512 for s in scales] == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
    assert cfg.auto_scale_lr.base_batch_size == 16


@pytest.mark.parametrize(
    ("name", "lr_per_512", "drop_path", "wrapper"),
    [(VIG_T, 1e-3, 0.0, "OptimWrapper"), (VIG_H_T, 8e-4, 0.2, "AmpOptimWrapper")],
)
def test_imagenet_recipe(name, lr_per_512, drop_path, wrapper):
    cfg = load(name)
    assert cfg.model.backbone.drop_path_rate == drop_path
    optim = cfg.optim_wrapper
    assert optim.type == wrapper and optim.clip_grad == dict(max_norm=5.0)
    lr = optim.optimizer.lr
    assert lr == pytest.approx(lr_per_512 * 1024 / 512)
    assert optim.optimizer.weight_decay == 0.05 and optim.optimizer.eps == 1e-8
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size == 1024

    warmup, cosine = cfg.param_scheduler
    assert lr * warmup.start_factor == pytest.approx(5e-7 * 1024 / 512)
    assert lr * cosine.eta_min_ratio == pytest.approx(5e-6 * 1024 / 512)
    assert (warmup.end, cosine.begin, cosine.end, cfg.train_cfg.max_epochs) == (20, 20, 300, 300)

    (ema,) = cfg.custom_hooks
    assert ema.ema_type == "ExponentialMovingAverage" and 1 - ema.momentum == 0.9999
    assert [(a.type, a.alpha) for a in cfg.model.train_cfg.augments] == [
        ("Mixup", 0.8),
        ("CutMix", 1.0),
    ]
    assert cfg.model.train_cfg.probs == [0.5, 0.5]
    assert cfg.model.head.loss.label_smooth_val == 0.1

    steps = {step.type: step for step in cfg.train_pipeline}
    assert steps["RandomResizedCrop"].scale == 224
    assert steps["RandomResizedCrop"].interpolation == "bicubic"
    randaugment = steps["RandAugment"]
    assert (randaugment.policies, randaugment.num_policies) == ("timm_increasing", 2)
    assert (randaugment.magnitude_level, randaugment.magnitude_std) == (9, 0.5)
    assert steps["RandomErasing"].erase_prob == 0.25
    resize, crop = cfg.test_pipeline[1:3]
    assert (resize.scale, resize.edge, resize.interpolation) == (256, "short", "bicubic")
    assert crop.crop_size == 224
