"""Gradients of two processes through DDP are those of one process with the joint batch.

That holds where a loss is a mean over images, over equally many pixels of each, or over equally
many anchors. The box and mask heads of Mask R-CNN divide by the number of proposals that a process
has, as mmdet does not average that number over processes; there the mean over processes of what
each of them would get alone has to come out.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from batches import batch
from known_cases import CONFIGS, ROOT
from launches import free_port
from mmcv.ops import batched_nms
from mmdet.models.dense_heads import rpn_head
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from vig_mm import HierViG, ViG, ViGAdapter

PLAIN = dict(arch="tiny", embed_dims=64, depth=4, num_heads=2, img_size=64, drop_path_rate=0.0)
ADAPTER = dict(deform_heads=2, conv_inplane=16, norm_cfg=dict(type="BN"), out_indices=(0, 1, 2, 3))
PYRAMID = dict(embed_dims=32, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4), drop_path_rate=0.0)
BACKBONES = {
    "ViG": (ViG, PLAIN),
    "ViGAdapter": (ViGAdapter, PLAIN | ADAPTER),
    "HierViG": (HierViG, PYRAMID),
}
SWITCHES = {"plain": {}, "saving": dict(with_cp=True, frozen_stages=2)}
SCOPES = dict(classifier="mmpretrain", segmentor="mmseg", detector="mmdet", rpn="mmdet")
CASES = [f"{kind}-{switch}" for kind in BACKBONES for switch in SWITCHES] + [*SCOPES]


def nms_in_float32(boxes: Tensor, scores: Tensor, *args) -> tuple[Tensor, Tensor]:
    """mmcv's ``batched_nms`` for float64, which its operator does not take."""
    _, keep = batched_nms(boxes.float(), scores.float(), *args)
    return torch.cat([boxes[keep], scores[keep, None]], dim=1), keep


class MeanSquare(nn.Module):
    """A backbone with the mean of its squared outputs as its loss."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        return sum(out.square().mean() for out in self.backbone(images))


class TaskLoss(nn.Module):
    """A detector, segmentor or classifier with the sum of its losses.

    Args:
        only: part of the names of the losses that count.
    """

    def __init__(self, model: nn.Module, only: str) -> None:
        super().__init__()
        self.model, self.only = model, only

    def forward(self, data: dict) -> Tensor:
        losses = self.model(**data, mode="loss")
        chosen = {name: loss for name, loss in losses.items() if self.only in name}
        return self.model.parse_losses(chosen)[0]


def build(case: str) -> tuple[nn.Module, Callable[[slice], object]]:
    """A model that returns a loss, always of the same weights, and its input of some images.

    The joint batch is of four images, all of one size. Nothing is random in a step: no drop-out,
    and samplers of a detector take all there is. All is in float64, as a proposal that rounding
    lets in or keeps out shows in every gradient.
    """
    torch.manual_seed(0)
    kind, _, switch = case.partition("-")
    if kind in BACKBONES:
        backbone, options = BACKBONES[kind]
        model = MeanSquare(backbone(**options, **SWITCHES[switch]))
        model.backbone.init_weights()
        images = torch.randn(4, 3, 64, 64).double()
        return quiet(model.double()), lambda part: images[part]

    cfg = Config.fromfile(ROOT / "configs" / CONFIGS[SCOPES[kind]])
    if cfg.default_scope == "mmdet":
        cfg.model.train_cfg.rpn.sampler.num = cfg.model.train_cfg.rcnn.sampler.num = 10**6
    if cfg.default_scope == "mmseg":
        cfg.model.data_preprocessor.size = (64, 64)
    with MODELS.switch_scope_and_registry(cfg.default_scope) as registry:
        model = revert_sync_batchnorm(registry.build(cfg.model))  # DDP refuses it on CPUs
    batches = [batch(cfg, (64, 64)) for _ in range(2)]
    images = [image for one in batches for image in one["inputs"]]
    samples = [sample for one in batches for sample in one["data_samples"]]
    if kind == "rpn":  # the rest of the detector has no part in its losses
        model.roi_head.requires_grad_(False)

    def data(part: slice) -> dict:
        given = dict(inputs=images[part], data_samples=samples[part])
        if cfg.default_scope == "mmpretrain":
            given["inputs"] = torch.stack(given["inputs"])
        ready = model.data_preprocessor(given, training=True)
        return ready | dict(inputs=ready["inputs"].double())

    return quiet(TaskLoss(model.double(), "rpn" if kind == "rpn" else "loss")), data


def quiet(model: nn.Module) -> nn.Module:
    """Training mode without what is random or joins images: drop-out and batch statistics."""
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm | nn.modules.dropout._DropoutNd):
            module.eval()
    return model


def gradients(case: str, part: slice, wrap: Callable[[nn.Module], nn.Module]) -> dict[str, Tensor]:
    model, data = build(case)
    wrapped = wrap(model)  # has to live until the backward pass is over, or nothing is averaged
    with (
        DefaultScope.overwrite_default_scope(SCOPES.get(case, "mmdet")),
        mock.patch.object(rpn_head, "batched_nms", nms_in_float32),
    ):
        wrapped(data(part)).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def process(rank: int, port: str, folder: Path) -> None:
    """One of two: the gradients of its half of the batch, averaged by DDP, case by case."""
    os.environ |= dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, RANK=str(rank), WORLD_SIZE="2")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for case in CASES:
        found = gradients(case, slice(2 * rank, 2 * rank + 2), DistributedDataParallel)
        if rank == 0:
            torch.save(found, folder / f"{case}.pth")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def averaged(tmp_path_factory) -> Iterator[Callable[[str], dict[str, Tensor]]]:
    """`averaged(case)`: gradients by name, of two processes."""
    folder = tmp_path_factory.mktemp("gradients")
    mp.start_processes(process, (free_port(), folder), nprocs=2, start_method="spawn")
    return lambda case: torch.load(folder / f"{case}.pth")


@pytest.mark.parametrize("case", CASES)
def test_equal_those_of_the_joint_batch(case: str, averaged) -> None:
    found = averaged(case)
    if case == "detector":
        halves = [gradients(case, part, lambda x: x) for part in (slice(2), slice(2, 4))]
        expected = {name: (halves[0][name] + halves[1][name]) / 2 for name in halves[0]}
    else:
        expected = gradients(case, slice(4), lambda x: x)
    assert found.keys() == expected.keys()
    bound = 1e-12 if case.partition("-")[0] in BACKBONES else 1e-10
    for name, gradient in expected.items():
        scale = max(gradient.abs().max().item(), 1e-3)
        assert (found[name] - gradient).abs().max().item() <= bound * scale, name
    assert any(gradient.any() for gradient in expected.values())
