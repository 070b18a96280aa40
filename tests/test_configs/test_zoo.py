"""Every published config: its model learns and predicts, and its recipe is the one it claims.

One config a model goes through all of it; those that share its model (mixed precision, longer
schedule, larger test images) are only compared with it. The small `-mini_` configs and the peers
have tests of their own.
"""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("mmcv")
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
pytest.importorskip("mmpretrain")

from batches import classification_batch, detection_batch, segmentation_batch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

CONFIG_ROOT = Path(__file__).resolve().parents[2] / "configs"
CONFIGS = sorted(
    path.relative_to(CONFIG_ROOT).as_posix()
    for path in CONFIG_ROOT.glob("mm*/*.py")
    if "-mini_" not in path.name
)
# How a batch is made, for how many classes, and of how many pixels (H, W)
TASKS = {
    "mmpretrain": (classification_batch, 1000, (64, 64)),
    "mmdet": (detection_batch, 80, (128, 160)),
    "mmseg": (segmentation_batch, 150, (128, 128)),
}
NO_DECAY = dict(norm_decay_mult=0, bias_decay_mult=0, flat_decay_mult=0)
NO_DECAY["custom_keys"] = dict(pos_embed=dict(decay_mult=0))

# What a config's name has more than another's -> the entries in which the two may differ.
AMP = {"optim_wrapper.type", "optim_wrapper.dtype", "optim_wrapper.loss_scale"}
MS_CROP_3X = {
    "scales", "train_pipeline", "train_dataloader.dataset.pipeline",
    "param_scheduler", "max_epochs", "train_cfg.max_epochs",
}  # fmt: skip
LARGE_TEST = {
    "test_pipeline", "tta_pipeline",
    "test_dataloader.batch_size", "test_dataloader.dataset.pipeline",
}  # fmt: skip
# FlexibleRunner shards the model; its EMAHook would have to copy the shards.
FSDP = {"runner_type", "strategy", "custom_hooks"}


def base_of(name: str) -> tuple[str, set[str]] | None:
    """The config that has the same model, and the entries in which ``name`` differs from it."""
    for pattern, base, entries in (
        (r"_amp-", "_", AMP),
        (r"_ms-crop-3x_", "_1x_", MS_CROP_3X),
        (r"_in1k-\d+px_test", "_8xb128_in1k", LARGE_TEST),
        (r"-fsdp_in1k", "_in1k", FSDP),
    ):
        renamed = re.sub(pattern, base, name)
        if renamed != name and renamed in CONFIGS:
            return renamed, entries
    return None


VARIANTS = {name: base for name in CONFIGS if (base := base_of(name))}

# What the small and base sizes change in the tiny one's recipe, besides the size of the backbone.
PYRAMID = {"model.neck.in_channels"}
UPERNET = {"model.decode_head.in_channels", "model.auxiliary_head.in_channels"}
RATE = {"optim_wrapper.optimizer.lr"}
RATES = RATE | {"lr_per_512", "param_scheduler"}  # the first and the last rate stay as they are
DECAY = {"optim_wrapper.optimizer.weight_decay"}
LAYER_DECAY = {"optim_wrapper.paramwise_cfg.decay_rate"}
SIZES = (  # names, what changes there; the first that fits
    (r"vig-h-s_.*coco|vig-h-s_upernet", set()),
    (r"vig-h-b_.*coco", PYRAMID),
    (r"vig-h-b_upernet", UPERNET),
    (r"vig-[sb]-adapter_fpn", PYRAMID | RATE | DECAY),
    (r"vig-[sb]_simple-pyramid", PYRAMID),
    (r"vig-[sb]-adapter_upernet", UPERNET | RATE | LAYER_DECAY),
    (r"vig-[sb]_upernet", UPERNET | RATE | LAYER_DECAY | {"model.neck.embed_dim"}),
    (r"vig-h-s_.*in1k", RATES),
    (r"vig-h-b_.*in1k", RATES | {"model.head.in_channels"}),
    (r"vig-s_.*in1k", RATES | DECAY | {"model.head.in_channels"}),
    (r"vig-b_.*in1k", {"model.head.in_channels"}),
)
LARGER = [
    name
    for name in CONFIGS
    if re.search(r"vig-(h-)?[sb][-_]", name) and "-fsdp_" not in name  # the tiny one has none
]
REPRESENTATIVES = [name for name in CONFIGS if name not in VARIANTS]


def stem(name: str) -> str:
    return Path(name).stem


def load(name: str) -> Config:
    return Config.fromfile(CONFIG_ROOT / name)


def one_image(cfg: Config) -> dict:
    make, num_classes, size = TASKS[cfg.default_scope]
    return {key: images[:1] for key, images in make(num_classes, size).items()}


def shrink(cfg: Config) -> None:
    """Little padding, few proposals, and every prediction kept however low its score."""
    if cfg.default_scope == "mmseg":
        cfg.model.data_preprocessor.size = TASKS["mmseg"][2]
    if cfg.default_scope == "mmdet":
        cfg.model.data_preprocessor.pad_size_divisor = 32
        train, test = cfg.model.train_cfg, cfg.model.test_cfg
        train.rpn_proposal.max_per_img = 50
        for stage in train.rcnn if isinstance(train.rcnn, list) else [train.rcnn]:
            stage.sampler.num = 16
        test.rpn.max_per_img, test.rcnn.max_per_img, test.rcnn.score_thr = 20, 5, 0.0


@pytest.fixture(scope="module", params=REPRESENTATIVES, ids=stem)
def zoo(request) -> Iterator[tuple[str, Config, nn.Module]]:
    """Name, config and model with weights drawn, built once for all tests of this file."""
    cfg = load(request.param)
    shrink(cfg)
    torch.manual_seed(0)
    with MODELS.switch_scope_and_registry(cfg.default_scope) as registry:
        model = revert_sync_batchnorm(registry.build(cfg.model))
        model.init_weights()
        yield request.param, cfg, model


@cache
def metafile_parameters(folder: Path) -> dict[str, int]:
    entries = yaml.safe_load((folder / "metafile.yml").read_text())["Models"]
    return {entry["Name"]: entry["Metadata"]["Parameters"] for entry in entries}


def listed_parameters(name: str) -> int:
    """What the metafile says; the tool that writes it is tools/analysis_tools/model_table.py."""
    return metafile_parameters((CONFIG_ROOT / name).parent)[stem(name)]


def test_parameter_count_is_the_metafiles(zoo):
    name, _, model = zoo
    assert sum(parameter.numel() for parameter in model.parameters()) == listed_parameters(name)


def test_only_weights_of_two_and_more_dimensions_decay(zoo):
    _, cfg, model = zoo
    wrapper = dict(cfg.optim_wrapper, type="OptimWrapper")  # the AMP one needs a GPU
    for option in ("loss_scale", "dtype"):
        wrapper.pop(option, None)
    optimizer = build_optim_wrapper(model, wrapper).optimizer
    decay = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    for parameter, value in model.named_parameters():
        exempt = value.ndim == 1 or "pos_embed" in parameter
        assert decay[id(value)] == (0 if exempt else wrapper["optimizer"]["weight_decay"]), (
            parameter
        )


def test_every_part_learns(zoo):
    _, cfg, model = zoo
    model.train()
    for module in model.modules():
        # One image: stochastic depth would leave blocks out, and UperNet pools it to one pixel,
        # which has no variance.
        if isinstance(module, _BatchNorm) or type(module).__name__ == "DropPath":
            module.eval()
    data = model.data_preprocessor(one_image(cfg), training=True)
    loss, _ = model.parse_losses(model(**data, mode="loss"))
    assert torch.isfinite(loss) and loss > 0
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    # DDP fails on a parameter that takes no part
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    # from the stem to the last norms
    reached, depths = set(), set()
    for name, _ in model.backbone.named_parameters():
        depth, num_layers = model.backbone.get_layer_depth(name)
        depths.add(depth)
        if gradients[f"backbone.{name}"].any():
            reached.add(depth)
    assert reached == depths and {0, num_layers - 2} <= depths
    model.zero_grad()


def test_predicts(zoo):
    _, cfg, model = zoo
    model.eval()
    _, num_classes, size = TASKS[cfg.default_scope]
    with torch.no_grad():
        (sample,) = model.test_step(one_image(cfg))
    if cfg.default_scope == "mmpretrain":
        assert sample.pred_score.shape == (num_classes,)
        assert sample.pred_score.sum().item() == pytest.approx(1, abs=1e-5)
    elif cfg.default_scope == "mmseg":
        assert sample.pred_sem_seg.data.shape == (1, *size)
        assert sample.seg_logits.data.shape == (num_classes, *size)
        assert torch.isfinite(sample.seg_logits.data).all()
    else:
        found = sample.pred_instances
        assert len(found) == 5 and torch.isfinite(found.scores).all()
        assert found.masks.shape == (5, *size)
        assert (found.bboxes >= 0).all() and (found.labels < num_classes).all()
        assert (found.bboxes <= torch.tensor([*size[::-1]] * 2)).all()


def differences(one: dict, other: dict, path: str = "") -> set[str]:
    """Dotted paths of the entries in which two configs differ."""
    found = set()
    for key in one.keys() | other.keys():
        here, a, b = f"{path}{key}", one.get(key), other.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found |= differences(a, b, f"{here}.")
        elif a != b or (key in one) != (key in other):
            found.add(here)
    return found


@pytest.mark.parametrize("name", VARIANTS, ids=stem)
def test_variant_differs_only_where_it_should(name):
    base, entries = VARIANTS[name]
    cfg = load(name)
    assert differences(load(base).to_dict(), cfg.to_dict()) == entries
    assert listed_parameters(base) == listed_parameters(name)
    if entries is AMP:
        wrapper = cfg.optim_wrapper
        assert (wrapper.type, wrapper.dtype, wrapper.loss_scale) == (
            "AmpOptimWrapper", "float16", "dynamic",
        )  # fmt: skip


@pytest.mark.parametrize("name", LARGER, ids=stem)
def test_size_is_the_tiny_ones_recipe(name):
    tiny = load(re.sub(r"vig-(h-)?[sb]", r"vig-\1t", name)).to_dict()
    entries = next(entries for pattern, entries in SIZES if re.search(pattern, name))
    size = {"model.backbone.arch", "model.backbone.drop_path_rate"}
    assert differences(tiny, load(name).to_dict()) == entries | size


LARGE_TESTS = [name for name, (_, entries) in VARIANTS.items() if entries is LARGE_TEST]
LARGE_TESTS += [
    f"mmpretrain/peers/deit-t_in1k-{side}px_test.py" for side in (384, 512, 640, 768, 1024)
]


@pytest.mark.parametrize("name", LARGE_TESTS, ids=stem)
def test_large_test_images_keep_the_proportion_of_the_crop(name):
    cfg = load(name)
    side = int(re.search(r"-(\d+)px_test", name)[1])
    pipelines = (cfg.test_pipeline, cfg.tta_pipeline, cfg.test_dataloader.dataset.pipeline)
    for pipeline in pipelines:
        resize, crop = pipeline[1:3]
        assert (resize.scale, resize.edge) == (int(side * 256 / 224), "short")
        assert (resize.backend, resize.interpolation) == ("pillow", "bicubic")
        assert crop.crop_size == side
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        transform = Compose(cfg.test_pipeline[1:])
    packed = transform(dict(img=np.zeros((300, 400, 3), np.uint8)))
    assert packed["inputs"].shape == (3, side, side)


# The recipes, from the design's tables and not from the configs ------------------------------

# Model -> learning rate per 512 images, weight decay, drop path, fp16, width of the head
IMAGENET = {
    "vig-t": (1e-3, 0.05, 0.0, False, 192),
    "vig-s": (5e-4, 0.1, 0.2, False, 384),
    "vig-b": (1e-3, 0.05, 0.5, False, 768),
    "vig-h-t": (8e-4, 0.05, 0.2, True, 768),
    "vig-h-s": (5e-4, 0.05, 0.3, True, 768),
    "vig-h-b": (5e-4, 0.05, 0.6, True, 1024),
}
PYRAMIDS = {
    "vig-h-t": ("tiny", 0.2, [96, 192, 384, 768]),
    "vig-h-s": ("small", 0.3, [96, 192, 384, 768]),
    "vig-h-b": ("base", 0.6, [128, 256, 512, 1024]),
}


@pytest.mark.parametrize("model", IMAGENET)
def test_imagenet_recipe(model):
    cfg = load(f"mmpretrain/{model}_8xb128_in1k.py")
    lr_per_512, weight_decay, drop_path, fp16, width = IMAGENET[model]
    assert cfg.model.backbone.drop_path_rate == drop_path
    assert cfg.model.head.in_channels == width
    optim = cfg.optim_wrapper
    assert optim.type == ("AmpOptimWrapper" if fp16 else "OptimWrapper")
    assert optim.optimizer == dict(
        type="AdamW",
        lr=pytest.approx(lr_per_512 * 1024 / 512),
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=weight_decay,
    )
    assert optim.clip_grad == dict(max_norm=5.0) and optim.paramwise_cfg == NO_DECAY
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size == 1024

    warmup, cosine = cfg.param_scheduler
    lr = optim.optimizer.lr
    assert lr * warmup.start_factor == pytest.approx(5e-7 * 1024 / 512)
    assert lr * cosine.eta_min_ratio == pytest.approx(5e-6 * 1024 / 512)
    assert (warmup.end, cosine.begin, cosine.end, cfg.train_cfg.max_epochs) == (20, 20, 300, 300)

    (ema,) = cfg.custom_hooks
    assert ema.ema_type == "ExponentialMovingAverage" and 1 - ema.momentum == 0.9999
    mixes = [(a.type, a.alpha) for a in cfg.model.train_cfg.augments]
    assert mixes == [("Mixup", 0.8), ("CutMix", 1.0)]
    assert cfg.model.train_cfg.probs == [0.5, 0.5]
    assert cfg.model.head.loss.label_smooth_val == 0.1

    steps = {step.type: step for step in cfg.train_pipeline}
    assert steps["RandomResizedCrop"].scale == 224
    assert steps["RandomResizedCrop"].interpolation == "bicubic"
    randaugment = steps["RandAugment"]  # rand-m9-mstd0.5-inc1
    assert (randaugment.policies, randaugment.num_policies) == ("timm_increasing", 2)
    assert (randaugment.magnitude_level, randaugment.magnitude_std) == (9, 0.5)
    assert steps["RandomErasing"].erase_prob == 0.25
    resize, crop = cfg.test_pipeline[1:3]
    assert (resize.scale, resize.edge, resize.interpolation) == (256, "short", "bicubic")
    assert crop.crop_size == 224


def check_coco(cfg: Config, pyramid: tuple, epochs: int, milestones: list[int]) -> None:
    arch, drop_path, channels = pyramid
    assert cfg.model.backbone == dict(
        type="vig_mm.HierViG", arch=arch, out_indices=(0, 1, 2, 3), drop_path_rate=drop_path
    )
    assert cfg.model.neck == dict(type="FPN", in_channels=channels, out_channels=256, num_outs=5)
    assert cfg.model.data_preprocessor.pad_size_divisor == 32
    assert "clip_grad" not in cfg.optim_wrapper
    assert cfg.optim_wrapper.paramwise_cfg == NO_DECAY
    assert cfg.optim_wrapper.optimizer == dict(
        type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05
    )
    warmup, steps = cfg.param_scheduler
    assert (warmup.start_factor, warmup.end, warmup.by_epoch) == (0.001, 1000, False)
    assert (steps.milestones, steps.gamma, steps.by_epoch) == (milestones, 0.1, True)
    assert steps.end == cfg.train_cfg.max_epochs == epochs
    (resize,) = [step for step in cfg.test_pipeline if step.type == "Resize"]
    assert (resize.scale, resize.keep_ratio) == ((1333, 800), True)
    assert cfg.train_dataloader.batch_size == 2 and cfg.val_dataloader.batch_size == 1
    assert cfg.auto_scale_lr.base_batch_size == 16


@pytest.mark.parametrize("model", PYRAMIDS)
def test_coco_1x_recipe(model):
    cfg = load(f"mmdet/mask-rcnn_{model}_fpn_1x_coco.py")
    check_coco(cfg, PYRAMIDS[model], 12, [8, 11])
    (resize,) = [step for step in cfg.train_pipeline if step.type.endswith("Resize")]
    assert (resize.type, resize.scale, resize.keep_ratio) == ("Resize", (1333, 800), True)


THREE_X = [f"mask-rcnn_{model}_fpn_ms-crop-3x_coco" for model in PYRAMIDS] + [
    f"cascade-mask-rcnn_{model}_fpn_4conv1fc-giou_ms-crop-3x_coco"
    for model in ("vig-h-t", "vig-h-s")
]


@pytest.mark.parametrize("name", THREE_X)
def test_coco_3x_recipe(name):
    cfg = load(f"mmdet/{name}.py")
    check_coco(cfg, PYRAMIDS[re.search(r"vig-h-\w", name)[0]], 36, [27, 33])
    (choice,) = [step for step in cfg.train_pipeline if step.type == "RandomChoice"]
    whole, cropped = choice.transforms
    sides = [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800]
    for step in (whole[-1], cropped[-1]):
        assert step.type == "RandomChoiceResize" and step.keep_ratio
        assert step.scales == [(side, 1333) for side in sides]
    assert [min(scale) for scale in cropped[0].scales] == [400, 500, 600]
    assert (cropped[1].crop_type, cropped[1].crop_size) == ("absolute_range", (384, 600))


@pytest.mark.parametrize("seed", range(6))
def test_coco_3x_image_sizes(seed, monkeypatch):
    """What the augmentation makes of a photograph of 480x640 pixels with two objects."""
    from mmdet.structures.bbox import HorizontalBoxes
    from mmdet.structures.mask import BitmapMasks

    cfg = load("mmdet/mask-rcnn_vig-h-t_fpn_ms-crop-3x_coco.py")
    masks = np.zeros((2, 480, 640), np.uint8)
    masks[0, 50:200, 60:300] = masks[1, 250:400, 200:600] = 1
    with DefaultScope.overwrite_default_scope("mmdet"):
        transform = Compose(cfg.train_pipeline[2:])
    np.random.seed(seed)
    packed = transform(
        dict(
            img=np.zeros((480, 640, 3), np.uint8),
            img_shape=(480, 640),
            ori_shape=(480, 640),
            gt_bboxes=HorizontalBoxes(torch.tensor([[60.0, 50, 300, 200], [200, 250, 600, 400]])),
            gt_bboxes_labels=np.array([0, 1]),
            gt_ignore_flags=np.array([False, False]),
            gt_masks=BitmapMasks(masks, 480, 640),
        )
    )
    short, long = sorted(packed["inputs"].shape[1:])
    assert (short in range(480, 801, 32) and long <= 1333) or (long == 1333 and short < 800)
    instances = packed["data_samples"].gt_instances
    assert instances.masks.masks.shape[1:] == packed["inputs"].shape[1:]


@pytest.mark.parametrize("model", PYRAMIDS)
def test_ade20k_recipe(model):
    cfg = load(f"mmseg/{model}_upernet_8xb2-160k_ade20k-512x512.py")
    arch, drop_path, channels = PYRAMIDS[model]
    assert cfg.model.backbone == dict(
        type="vig_mm.HierViG", arch=arch, out_indices=(0, 1, 2, 3), drop_path_rate=drop_path
    )
    head, auxiliary = cfg.model.decode_head, cfg.model.auxiliary_head
    assert (head.type, head.channels, head.dropout_ratio) == ("UPerHead", 512, 0.1)
    assert head.pool_scales == (1, 2, 3, 6) and head.in_channels == channels
    assert head.norm_cfg.type == "SyncBN" and head.num_classes == 150
    assert (auxiliary.in_index, auxiliary.in_channels) == (2, channels[2])
    assert (auxiliary.channels, auxiliary.loss_decode.loss_weight) == (256, 0.4)
    assert auxiliary.num_classes == 150
    assert cfg.optim_wrapper.type == "OptimWrapper"
    assert cfg.optim_wrapper.paramwise_cfg == NO_DECAY
    assert cfg.optim_wrapper.optimizer == dict(
        type="AdamW", lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01
    )
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


# Plain ViG: learning rate, weight decay, layer decay, drop path
WIDTHS = {"vig-t": 192, "vig-s": 384, "vig-b": 768}
COCO_ADAPTER = {
    "vig-t": (2e-4, 0.01, 0.85, 0.1),
    "vig-s": (1e-4, 0.05, 0.85, 0.2),
    "vig-b": (1e-4, 0.05, 0.85, 0.3),
}
ADE20K_PLAIN = {
    "vig-t": (12e-5, 0.01, 0.95, 0.1),
    "vig-s": (6e-5, 0.01, 0.85, 0.2),
    "vig-b": (6e-5, 0.01, 0.80, 0.3),
}


def check_plain(cfg: Config, lr: float, weight_decay: float, decay_rate: float) -> None:
    optim = cfg.optim_wrapper
    assert optim.optimizer == dict(
        type="AdamW", lr=pytest.approx(lr), betas=(0.9, 0.999), weight_decay=weight_decay
    )
    assert optim.constructor == "vig_mm.LayerDecayOptimWrapperConstructor"
    assert optim.paramwise_cfg == dict(
        num_layers=12, decay_rate=decay_rate, decay_type="layer_wise"
    )
    assert "clip_grad" not in optim


@pytest.mark.parametrize("model", COCO_ADAPTER)
def test_coco_adapter_recipe(model):
    cfg = load(f"mmdet/mask-rcnn_{model}-adapter_fpn_1x_coco.py")
    *optim, drop_path = COCO_ADAPTER[model]
    check_plain(cfg, *optim)
    assert cfg.model.backbone.drop_path_rate == drop_path
    assert cfg.model.neck.in_channels == [WIDTHS[model]] * 4
    assert cfg.model.data_preprocessor.pad_size_divisor == 32
    warmup, steps = cfg.param_scheduler
    assert (warmup.end, warmup.by_epoch) == (500, False)
    assert (steps.milestones, cfg.train_cfg.max_epochs) == ([8, 11], 12)
    (resize,) = [step for step in cfg.train_pipeline if step.type.endswith("Resize")]
    assert (resize.type, resize.scale) == ("Resize", (1333, 800))
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size == 16


@pytest.mark.parametrize("model", WIDTHS)
def test_coco_simple_pyramid_recipe(model):
    cfg = load(f"mmdet/mask-rcnn_{model}_simple-pyramid_lsj-100e_coco.py")
    check_plain(cfg, 1e-4, 0.1, 0.7)
    assert cfg.model.backbone.out_indices == -1
    assert cfg.model.neck.in_channels == WIDTHS[model]
    steps = {step.type: step for step in cfg.train_pipeline}
    assert steps["RandomResize"].scale == (1024, 1024)
    assert steps["RandomResize"].ratio_range == (0.1, 2.0)
    assert steps["RandomCrop"].crop_size == (1024, 1024)
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size


@pytest.mark.parametrize("kind", ("-adapter", ""), ids=("adapter", "multi-level-neck"))
@pytest.mark.parametrize("model", ADE20K_PLAIN)
def test_ade20k_plain_recipe(model, kind):
    cfg = load(f"mmseg/{model}{kind}_upernet_8xb2-160k_ade20k-512x512.py")
    *optim, drop_path = ADE20K_PLAIN[model]
    check_plain(cfg, *optim)
    assert cfg.optim_wrapper.type == "AmpOptimWrapper"
    assert cfg.model.backbone.drop_path_rate == drop_path
    if not kind:
        assert cfg.model.backbone.out_indices == (2, 5, 8, 11)
        assert cfg.model.neck.rescales == [4, 2, 1, 0.5]
    assert cfg.model.decode_head.in_channels == [WIDTHS[model]] * 4
    assert cfg.model.auxiliary_head.in_channels == WIDTHS[model]
    assert cfg.model.test_cfg == dict(mode="slide", crop_size=(512, 512), stride=(341, 341))
    warmup, poly = cfg.param_scheduler
    assert (warmup.start_factor, warmup.end) == (1e-6, 1500)
    assert (poly.power, poly.eta_min, poly.end) == (1.0, 0.0, 160000)
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size == 16
