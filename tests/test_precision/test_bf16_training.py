"""Training in bf16 on any device: the optimizer wrapper, and its loss curve beside float32's."""

import numpy as np
import pytest
import torch

pytest.importorskip("mmcv")
pytest.importorskip("mmdet")
pytest.importorskip("mmpretrain")

from batches import batch
from golden import CONFIGS
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner, set_random_seed
from torch import nn

from vig_mm.datasets import make_digits

BF16 = "vig_mm.Bf16OptimWrapper"
ITERATIONS, WINDOW = 100, 40


def build(cfg: Config, wrapper: str, device: str) -> tuple[nn.Module, object]:
    init_default_scope(cfg.default_scope)
    set_random_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    model.to(device).train()
    return model, build_optim_wrapper(model, {**cfg.optim_wrapper, "type": wrapper})


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Config:
    """The digits classifier's config for 32x32 pixels, and some digits."""
    folder = tmp_path_factory.mktemp("work") / "digits"
    sizes = dict(coco_size=(64, 64), ade_size=(64, 64), imagenet_size=(40, 40))
    make_digits(folder, coco=(1, 1), ade=(1, 1), imagenet=(20, 1), **sizes)
    cfg = Config.fromfile(CONFIGS / "mmpretrain/vig-h-mini_digits.py")
    data = cfg.train_dataloader
    data.dataset.data_root = str(folder / "imagenet")
    data.dataset.pipeline[1].scale = 32
    data.update(batch_size=16, num_workers=0, persistent_workers=False)
    cfg.optim_wrapper.optimizer.lr = 5e-4  # as there is no warm-up
    return cfg


def curve(cfg: Config, wrapper: str, device: str) -> np.ndarray:
    """Means of the loss over every `WINDOW` steps in a row: same weights and batches each time."""
    model, optimizer = build(cfg, wrapper, device)
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    losses: list[float] = []
    while len(losses) < ITERATIONS:
        for data in loader:
            losses.append(model.train_step(data, optimizer)["loss"].item())
    sums = np.cumsum([0.0, *losses[:ITERATIONS]])
    return (sums[WINDOW:] - sums[:-WINDOW]) / WINDOW


def test_loss_follows_that_of_float32(digits, device):
    plain, bf16 = (curve(digits, wrapper, device) for wrapper in ("OptimWrapper", BF16))
    assert plain[-1] < 0.9 * plain[0]  # there is something to follow
    deviation = np.abs(bf16 / plain - 1)
    assert 0 < deviation.max() < 0.02, deviation[::WINDOW]


def test_detector(device):
    """Proposals and regions are float32, the convolutions around them are not; and validation after
    training is in float32 as if there had been none in bf16."""
    cfg = Config.fromfile(CONFIGS / "mmdet/mask-rcnn_vig-h-mini_fpn_digits.py")
    model, optimizer = build(cfg, BF16, device)
    seen = {"proposals": [], "regions": [], "convolutions": []}
    model.roi_head.bbox_roi_extractor.register_forward_hook(
        lambda module, args, out: seen["regions"].append(out)
    )
    model.roi_head.bbox_roi_extractor.roi_layers[0].register_forward_pre_hook(
        lambda module, args: seen["proposals"].append(args[1])
    )
    for module in (model.rpn_head.rpn_conv, model.roi_head.bbox_head.shared_convs[0].conv):
        module.register_forward_hook(lambda module, args, out: seen["convolutions"].append(out))
    before = [p.detach().clone() for p in model.parameters()]
    data = batch(cfg, (96, 128))
    losses = model.train_step(data, optimizer)
    assert all(x.isfinite().all() for x in losses.values())
    dtypes = {name: {x.dtype for x in found} for name, found in seen.items()}
    wide, half = {torch.float32}, {torch.bfloat16}
    assert dtypes == dict(proposals=wide, regions=wide, convolutions=half)
    proposals = torch.cat(seen["proposals"])
    assert not torch.equal(proposals, proposals.bfloat16().float())
    weights = zip(model.parameters(), before, strict=True)
    assert sum(torch.equal(p, x) for p, x in weights) < 0.1 * len(before)

    hooks = [len(module._forward_hooks) for module in model.modules()]
    with torch.no_grad():
        found = model.eval().test_step(data)
        with optimizer.optim_context(model):  # what was prepared for one step is not again
            pass
        plain, _ = build(cfg, BF16, device)
        plain.load_state_dict(model.state_dict())
        expected = plain.eval().test_step(data)
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    for x, y in zip(found, expected, strict=True):
        assert torch.equal(x.pred_instances.bboxes, y.pred_instances.bboxes)
