"""The libraries' own configs with vig_mm's operators: one iteration trains, one predicts.

Where mmcv has compiled operators as well, losses, gradients and predictions are those of mmcv's.
"""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch

pytest.importorskip("mmcv")
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from batches import detection_batch, segmentation_batch
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import MODELS, DefaultScope

from vig_mm.ops import provider

# beside it the operators that only it reaches
STOCK = [
    "mmdet::dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py",  # ModulatedDeformConv2dPack
    "mmdet::dcnv2/faster-rcnn_r50_fpn_mdpool_1x_coco.py",  # ModulatedDeformRoIPoolPack
    "mmdet::carafe/mask-rcnn_r50_fpn-carafe_1x_coco.py",  # CARAFE
    "mmdet::guided_anchoring/ga-retinanet_r50-caffe_fpn_1x_coco.py",  # MaskedConv2d
    "mmdet::detectors/cascade-rcnn_r50-sac_1x_coco.py",  # SAConv2d, DeformConv2d
    "mmdet::pisa/faster-rcnn_r50_fpn_pisa_1x_coco.py",  # nms_match
    "mmdet::faster_rcnn/faster-rcnn_r50_fpn_soft-nms_1x_coco.py",  # soft_nms
    "mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py",
    "mmseg::psanet/psanet_r50-d8_4xb2-40k_cityscapes-512x1024.py",  # PSAMask
]
WITHOUT_MMCV = ("pool", "carafe", "guided")  # mmcv compiles their operators for CUDA only


def forget_pretrained(cfg: dict) -> None:
    """Random weights everywhere: nothing is downloaded."""
    for key, value in cfg.items():
        if key in ("pretrained", "init_cfg"):
            cfg[key] = None
        elif isinstance(value, dict):
            forget_pretrained(value)


def run(cfg: Config, size: tuple[int, int]) -> list[torch.Tensor]:
    """Loss, gradients and predictions, from the seed alone."""
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(deepcopy(cfg.model))
        model.init_weights()
        model.train()
        detects = cfg.default_scope == "mmdet"
        data = detection_batch(80, size) if detects else segmentation_batch(19, size)
        losses = model(**model.data_preprocessor(data, True), mode="loss")
        loss, values = model.parse_losses(losses)
        loss.backward()
        results = [value.detach() for value in values.values()]
        results += [p.grad for p in model.parameters() if p.grad is not None]
        with torch.no_grad():
            # one image: MaskedConv2d takes no more
            predictions = model.eval().test_step({key: x[:1] for key, x in data.items()})
    for sample in predictions:
        if detects:
            results += [sample.pred_instances.bboxes, sample.pred_instances.scores]
        else:
            results.append(sample.seg_logits.data)
    assert len(results) > len(values) + len(predictions)
    return results


@pytest.mark.parametrize("stock", STOCK, ids=lambda name: name.split("/")[1])
def test_trains_and_predicts(stock: str, serve: Callable[[], None]) -> None:
    cfg = get_config(stock)
    size = (96, 128) if cfg.default_scope == "mmdet" else (128, 128)
    forget_pretrained(cfg.model)
    if cfg.default_scope == "mmseg":
        cfg.model.data_preprocessor.size = size
    if "rpn" in cfg.model.get("test_cfg", {}):
        cfg.model.test_cfg.rpn.max_per_img = cfg.model.train_cfg.rpn_proposal.max_per_img = 100
    compiled = provider() == "compiled" and not any(word in stock for word in WITHOUT_MMCV)
    expected = run(cfg, size) if compiled else None
    serve()
    results = run(cfg, size)
    assert all(result.isfinite().all() for result in results)
    for result, value in zip(results, expected or results, strict=True):
        largest = value.abs().max().item() if value.numel() else 0
        torch.testing.assert_close(result, value, rtol=1e-4, atol=1e-5 * max(largest, 1e-3))
