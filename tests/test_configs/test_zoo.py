"""The recipe of each tiny model, and in what the other published configs differ from it.

That the models learn: test_learning.py. The recipes are those of the design's tables and of the
papers; a config that inherits one may change what is written here and nothing else. Other
libraries' backbones in our recipes, the peers, change the backbone and nothing else.
"""

import re

import numpy as np
import pytest
import torch
from config_files import MINI, PEERS, ROOT, ZOO, differences, entries, load, stem
from mmengine.dataset import Compose, pseudo_collate
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, DefaultScope

from vig_mm.checks.config import leaves

COCO = "mmdet/mask-rcnn_vig-h-t_fpn_1x_coco.py"
COCO_3X = "mmdet/mask-rcnn_vig-h-t_fpn_ms-crop-3x_coco.py"
COCO_ADAPTER = "mmdet/mask-rcnn_vig-t-adapter_fpn_1x_coco.py"
COCO_PYRAMID = "mmdet/mask-rcnn_vig-t_simple-pyramid_lsj-100e_coco.py"
ADE = "mmseg/vig-h-t_upernet_8xb2-160k_ade20k-512x512.py"
ADE_ADAPTER = "mmseg/vig-t-adapter_upernet_8xb2-160k_ade20k-512x512.py"
ADE_PLAIN = "mmseg/vig-t_upernet_8xb2-160k_ade20k-512x512.py"
VIG_T, VIG_H_T = (f"mmpretrain/{name}_8xb128_in1k.py" for name in ("vig-t", "vig-h-t"))

# What a config changes in the one it is derived from: entries and their values, `...` for any.

AMP = {
    "optim_wrapper.type": "AmpOptimWrapper",
    "optim_wrapper.dtype": "float16",
    "optim_wrapper.loss_scale": "dynamic",
}
MS_CROP_3X = {
    "scales": [(side, 1333) for side in range(480, 801, 32)],
    "train_pipeline": ...,
    "train_dataloader.dataset.pipeline": ...,
    "max_epochs": 36,
    "train_cfg.max_epochs": 36,
    "param_scheduler.1.end": 36,
    "param_scheduler.1.milestones": [27, 33],
}
# FlexibleRunner shards the model; its EMAHook would have to copy the shards
FSDP = {"runner_type": "FlexibleRunner", "strategy": ..., "custom_hooks": ...}


def large_test(side: int, batch: int) -> dict:
    """Images keep the proportion to the crop that they have at 224 pixels."""
    pipelines = ("test_pipeline", "tta_pipeline", "test_dataloader.dataset.pipeline")
    scales = {f"{pipeline}.1.scale": int(side * 256 / 224) for pipeline in pipelines}
    crops = {f"{pipeline}.2.crop_size": side for pipeline in pipelines}
    return scales | crops | {"test_dataloader.batch_size": batch}


BATCHES = {384: 64, 512: 32, 640: 24, 768: 16, 1024: 8}
VARIANTS = [  # what a name has more than that of its base
    (r"_amp-", "_", AMP),
    (r"_ms-crop-3x_", "_1x_", MS_CROP_3X),
    (r"-fsdp_in1k", "_in1k", FSDP),
    *((rf"_in1k-{x}px_test", "_8xb128_in1k", large_test(x, n)) for x, n in BATCHES.items()),
]


def rate(lr_per_512: float) -> dict:
    """The first and the last rate stay as they are."""
    return {
        "lr_per_512": lr_per_512,
        "optim_wrapper.optimizer.lr": lr_per_512 * 1024 / 512,
        "param_scheduler.0.start_factor": 5e-7 / lr_per_512,
        "param_scheduler.1.eta_min_ratio": 5e-6 / lr_per_512,
    }


# widths are right where the parts fit together, see test_learning.py
NECK, HEAD = {"model.neck.in_channels": ...}, {"model.head.in_channels": ...}
UPERNET = {"model.decode_head.in_channels": ..., "model.auxiliary_head.in_channels": ...}
MULTI_LEVEL = {"model.neck.embed_dim": ...}
ADAPTER = {"optim_wrapper.optimizer.lr": 1e-4, "optim_wrapper.optimizer.weight_decay": 0.05}


def plain_upernet(decay_rate: float) -> dict:
    paramwise = {"optim_wrapper.paramwise_cfg.decay_rate": decay_rate}
    return UPERNET | paramwise | {"optim_wrapper.optimizer.lr": 6e-5}


SIZES = [  # small and base models -> drop path, and what else they change in the tiny one
    (r"vig-h-s_(fpn|upernet)", 0.3, {}),
    (r"vig-h-b_fpn", 0.6, NECK),
    (r"vig-h-b_upernet", 0.6, UPERNET),
    (r"vig-s-adapter_fpn", 0.2, NECK | ADAPTER),
    (r"vig-b-adapter_fpn", 0.3, NECK | ADAPTER),
    (r"vig-s_simple-pyramid", 0.2, NECK),
    (r"vig-b_simple-pyramid", 0.3, NECK),
    (r"vig-s-adapter_upernet", 0.2, plain_upernet(0.85)),
    (r"vig-b-adapter_upernet", 0.3, plain_upernet(0.80)),
    (r"vig-s_upernet", 0.2, plain_upernet(0.85) | MULTI_LEVEL),
    (r"vig-b_upernet", 0.3, plain_upernet(0.80) | MULTI_LEVEL),
    (r"vig-h-s_.*in1k", 0.3, rate(5e-4)),
    (r"vig-h-b_.*in1k", 0.6, rate(5e-4) | HEAD),
    (r"vig-s_.*in1k", 0.2, rate(5e-4) | HEAD | {"optim_wrapper.optimizer.weight_decay": 0.1}),
    (r"vig-b_.*in1k", 0.5, HEAD),
]


def derived_from(name: str) -> tuple[str, dict] | None:
    """The config that one is compared with, and what it may change."""
    for pattern, base, changes in VARIANTS:
        renamed = re.sub(pattern, base, name)
        if renamed != name and (ROOT / renamed).exists():
            return renamed, changes
    if found := re.search(r"vig-(h-)?([sb])[-_]", name):
        drop, more = next(changes for pattern, *changes in SIZES if re.search(pattern, name))
        backbone = dict(arch={"s": "small", "b": "base"}[found[2]], drop_path_rate=drop)
        tiny = re.sub(r"vig-(h-)?[sb]", r"vig-\1t", name)
        return tiny, more | entries(backbone, "model.backbone")
    return None


NAMES = (*ZOO, *(name for name in PEERS if "px_test" in name))
DERIVED = {name: found for name in NAMES if (found := derived_from(name))}


@pytest.mark.parametrize("name", DERIVED, ids=stem)
def test_differs_only_where_it_should(name):
    base, changes = DERIVED[name]
    used = set()
    for entry, value in differences(base, name).items():
        (where,) = (x for x in changes if entry == x or entry.startswith(f"{x}."))
        assert changes[where] in (..., value), entry
        used.add(where)
    assert used == changes.keys()


# The recipes ---------------------------------------------------------------------------------

NO_DECAY = dict(norm_decay_mult=0, bias_decay_mult=0, flat_decay_mult=0)
NO_DECAY["custom_keys"] = dict(pos_embed=dict(decay_mult=0))
# rate, weight decay, layer decay, drop path, epochs or iterations, those of warm-up, images a step
RECIPES = {
    VIG_T: (2e-3, 0.05, None, 0.0, 300, 20, 1024),
    VIG_H_T: (1.6e-3, 0.05, None, 0.2, 300, 20, 1024),
    COCO: (1e-4, 0.05, None, 0.2, 12, 1000, 16),
    COCO_ADAPTER: (2e-4, 0.01, 0.85, 0.1, 12, 500, 16),
    COCO_PYRAMID: (1e-4, 0.1, 0.7, 0.1, 100, 250, 64),
    ADE: (6e-5, 0.01, None, 0.2, 160000, 1500, 16),
    ADE_ADAPTER: (12e-5, 0.01, 0.95, 0.1, 160000, 1500, 16),
    ADE_PLAIN: (12e-5, 0.01, 0.95, 0.1, 160000, 1500, 16),
}
IMAGENET = {  # rand-m9-mstd0.5-inc1, mixup, CutMix, label smoothing, averaged weights
    "train_pipeline.1.scale": 224,
    "train_pipeline.1.interpolation": "bicubic",
    "train_pipeline.3.policies": "timm_increasing",
    "train_pipeline.3.num_policies": 2,
    "train_pipeline.3.magnitude_level": 9,
    "train_pipeline.3.magnitude_std": 0.5,
    "train_pipeline.4.erase_prob": 0.25,
    "model.train_cfg.augments.0.alpha": 0.8,
    "model.train_cfg.augments.1.alpha": 1.0,
    "model.train_cfg.probs": [0.5, 0.5],
    "model.head.loss.label_smooth_val": 0.1,
    "custom_hooks.0.momentum": 1e-4,
    "optim_wrapper.clip_grad.max_norm": 5.0,
    "test_pipeline.1.scale": 256,
    "test_pipeline.1.interpolation": "bicubic",
    "test_pipeline.2.crop_size": 224,
}
WINDOWS = entries(dict(mode="slide", crop_size=(512, 512), stride=(341, 341)), "model.test_cfg")
SCALES = {"train_pipeline.2.scale": (2048, 512), "train_pipeline.2.ratio_range": (0.5, 2.0)}
ONE_SCALE = {
    "param_scheduler.1.milestones": [8, 11],
    "train_pipeline.2.scale": (1333, 800),
    "test_pipeline.1.scale": (1333, 800),
}
MORE = {
    VIG_T: IMAGENET,
    VIG_H_T: AMP | IMAGENET | rate(8e-4),
    COCO: ONE_SCALE,
    COCO_ADAPTER: ONE_SCALE,
    COCO_PYRAMID: {
        "param_scheduler.1.milestones": [89, 96],
        "train_pipeline.2.scale": (1024, 1024),
        "train_pipeline.2.ratio_range": (0.1, 2.0),
        "train_pipeline.3.crop_size": (1024, 1024),
    },
    ADE: {"model.test_cfg.mode": "whole", "model.auxiliary_head.in_index": 2} | SCALES,
    ADE_ADAPTER: AMP | WINDOWS | SCALES,
    ADE_PLAIN: {"model.backbone.out_indices": (2, 5, 8, 11)} | AMP | WINDOWS | SCALES,
}


@pytest.mark.parametrize("name", RECIPES, ids=stem)
def test_recipe(name):
    cfg = load(name)
    lr, weight_decay, decay_rate, drop, length, warmup, images = RECIPES[name]
    adamw = dict(type="AdamW", lr=pytest.approx(lr), betas=(0.9, 0.999), weight_decay=weight_decay)
    if cfg.default_scope == "mmpretrain":
        adamw["eps"] = 1e-8
    assert cfg.optim_wrapper.optimizer == adamw
    rules = dict(num_layers=12, decay_rate=decay_rate, decay_type="layer_wise")
    assert cfg.optim_wrapper.paramwise_cfg == (rules if decay_rate else NO_DECAY)
    assert ("constructor" in cfg.optim_wrapper) is (decay_rate is not None)
    assert ("clip_grad" in cfg.optim_wrapper) is (cfg.default_scope == "mmpretrain")
    assert cfg.model.backbone.drop_path_rate == drop
    by_epoch = cfg.train_cfg.type == "EpochBasedTrainLoop"
    assert cfg.train_cfg["max_epochs" if by_epoch else "max_iters"] == length
    first, last = cfg.param_scheduler
    assert (first.end, last.end) == (warmup, length)
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size == images
    found = entries(cfg.to_dict())
    assert {entry: found[entry] for entry in MORE[name]} == MORE[name]


def test_every_config_is_compared():
    """With a recipe, or with one that is; the cascade adds heads to the 3x schedule."""
    (cascade,) = set(ZOO) - DERIVED.keys() - RECIPES.keys()
    changed = differences(COCO_3X, cascade)
    assert changed and all(entry.startswith("model.") for entry in changed)


def test_coco_3x_images():
    """What the augmentation makes of a photograph of 480x640 pixels with two objects."""
    from mmdet.structures.bbox import HorizontalBoxes

    cfg = load(COCO_3X)
    whole, cropped = cfg.train_pipeline[3].transforms
    assert [min(scale) for scale in cropped[0].scales] == [400, 500, 600]
    assert (cropped[1].crop_type, cropped[1].crop_size) == ("absolute_range", (384, 600))
    assert whole[-1].scales == cropped[-1].scales == cfg.scales
    with DefaultScope.overwrite_default_scope("mmdet"):
        transform = Compose(cfg.train_pipeline[2:])
    size = (480, 640)
    for seed in range(6):
        np.random.seed(seed)
        boxes = HorizontalBoxes(torch.tensor([[60.0, 50, 300, 200], [200, 250, 600, 400]]))
        image = dict(img=np.zeros((*size, 3), np.uint8), img_shape=size, ori_shape=size)
        truth = dict(gt_bboxes=boxes, gt_bboxes_labels=np.arange(2))
        packed = transform(image | truth | dict(gt_ignore_flags=np.zeros(2, bool)))
        short, long = sorted(packed["inputs"].shape[1:])
        assert (short in range(480, 801, 32) and long <= 1333) or (long == 1333 and short < 800)


LARGE_TESTS = [name for name in DERIVED if "px_test" in name]


@pytest.mark.parametrize("name", [*RECIPES, *MINI, COCO_3X, *LARGE_TESTS], ids=stem)
def test_pipelines_build_and_tta_is_there(name):
    cfg = load(name)
    kinds = ("vig_mm.InstanceTTAModel", "SegTTAModel", "mmpretrain.AverageClsScoreTTA")
    assert cfg.tta_model.type in kinds
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        loaders = (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader)
        datasets = [d for loader in loaders for _, d in leaves("dataset", loader.dataset)]
        for pipeline in (*(dataset.pipeline for dataset in datasets), cfg.tta_pipeline):
            assert len(Compose(pipeline).transforms) == len(pipeline)
        if name in LARGE_TESTS:
            packed = Compose(cfg.test_pipeline[1:])(dict(img=np.zeros((300, 400, 3), np.uint8)))
            assert packed["inputs"].shape == (3, *[cfg.test_pipeline[2].crop_size] * 2)
    if name == ADE:
        scales = [step.scale[1] / 512 for step in cfg.tta_pipeline[1].transforms[0]]
        assert scales == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]


BACKBONES = [name for name in PEERS if "px_test" not in name]
FIXED_SIZE = [name for name in BACKBONES if "1024x1024" in name]
PIPELINES = ("train_pipeline", "test_pipeline", "tta_pipeline", "model.data_preprocessor.")
PIPELINES += tuple(f"{split}_dataloader.dataset.pipeline" for split in ("train", "val", "test"))


@pytest.mark.parametrize("task", ["mmdet", "mmseg", "mmpretrain"])
def test_every_family_is_among_the_peers(task):
    for family in ("convnext", "swin-", "swinv2", "hornet", "gcvit", "maxvit", "volo"):
        (_,) = (name for name in BACKBONES if name.startswith(task) and family in name)


@pytest.mark.parametrize("name", BACKBONES, ids=stem)
def test_only_the_backbone_of_a_peer_differs(name):
    ours = dict(mmdet=COCO, mmseg=ADE, mmpretrain=VIG_T if "deit" in name else VIG_H_T)
    found = differences(ours[name.partition("/")[0]], name)
    of_ours = "vig-h-t" in name  # at a fixed size
    allowed = ("model.", "optim_wrapper.paramwise_cfg.custom_keys.", "sync_bn")
    allowed = ("model.backbone.",) if of_ours else allowed
    if name in FIXED_SIZE:
        allowed += PIPELINES
    assert found and all(key.startswith(allowed) for key in found), found
    heads = {key for key in found if key.startswith("model.") and "_head." in key}
    assert all(key.endswith(".in_channels") for key in heads)
    if not of_ours and not re.search("volo-d1_8xb128|deit", name):  # whole classifiers of timm's
        assert "model.backbone.drop_path_rate" not in found


@pytest.mark.parametrize("name", FIXED_SIZE, ids=stem)
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


def learning_rates(name: str, epoch_length: int) -> list[float]:
    """The rate of every iteration, as mmengine's hook would set it."""
    cfg = load(name)
    optimizer = torch.optim.AdamW([torch.zeros(1)], lr=cfg.optim_wrapper.optimizer.lr)
    wrapper, schedulers = OptimWrapper(optimizer), []
    for scheduler in cfg.param_scheduler:
        kind = PARAM_SCHEDULERS.get(scheduler.type)
        options = {k: v for k, v in scheduler.items() if k != "type"} | dict(optimizer=wrapper)
        if options.pop("convert_to_iter_based", False):
            schedulers.append(kind.build_iter_from_epoch(**options, epoch_length=epoch_length))
        else:
            schedulers.append(kind(**options))
    rates = []
    for iteration in range(1, cfg.train_cfg.max_epochs * epoch_length + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        wrapper.step()
        for scheduler in schedulers:
            if not scheduler.by_epoch or iteration % epoch_length == 0:
                scheduler.step()
    return rates


def test_learning_rates():
    coco = learning_rates(COCO, 1001)
    marks = [coco[i] for i in (0, 999, 1000, 8 * 1001 - 1, 8 * 1001, 11 * 1001)]
    assert marks == pytest.approx([1e-7, 1e-4, 1e-4, 1e-4, 1e-5, 1e-6], rel=2e-3)
    vig = learning_rates(VIG_T, 50)
    marks = [vig[i] for i in (0, 20 * 50, 160 * 50, 300 * 50 - 1)]
    assert marks == pytest.approx([1e-6, 2e-3, 1.005e-3, 1e-5], rel=2e-3)


def test_padding_does_not_blow_up_gradients():
    # Batches are padded with exact zeros; layer norms of zero vectors amplify gradients 300-fold
    # each, so a backbone that maps zeros to zeros (no biases at the start) ends in NaN.
    torch.manual_seed(0)
    backbone = MODELS.build(dict(load(COCO).model.backbone, drop_path_rate=0.0))
    backbone.init_weights()
    padded = torch.zeros(1, 3, 128, 128, requires_grad=True)
    with torch.no_grad():
        padded[..., :64, :64].normal_()
    torch.cat([out.flatten() for out in backbone(padded)]).square().sum().backward()
    assert padded.grad.abs().max() < 1e4
