"""Every tool on configs as mmengine's pure-Python style has them, for each library.

Classes for types, imported lazily; no `default_scope`, no hooks and no visualizer.
"""

import os

import pytest
import torch

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
pytest.importorskip("mmpretrain")

from known_cases import CLASSES
from mmengine.registry import DefaultScope

from vig_mm.checks.config import read_config
from vig_mm.registry import type_name

pytestmark = pytest.mark.usefixtures("default_scope")

COMMON = """
from mmcv.transforms import LoadImageFromFile
from mmengine.dataset import DefaultSampler
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch.optim import AdamW
from vig_mm import HierViG

mean_std = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
backbone = dict(type=HierViG, arch='tiny', embed_dims=32, depths=(1, 1, 1, 1),
    num_heads=(1, 2, 4, 8))
optim_wrapper = dict(type=AmpOptimWrapper, optimizer=dict(type=AdamW, lr=1e-4))
train_cfg = dict(by_epoch=True, max_epochs=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=2)
param_scheduler = []
"""
LOADERS = """
loader = dict(batch_size=2, num_workers=0, sampler=dict(type=DefaultSampler, shuffle=False))
train_dataloader = dict(dataset=dict(**data, pipeline=train_pipe), **loader)
one = dict(loader, batch_size=1)
val_dataloader = dict(dataset=dict(**data, pipeline=test_pipe, test_mode=True), **one)
test_dataloader = val_dataloader
test_evaluator = val_evaluator
"""
CONFIGS = {
    "mmdet": """
from mmdet.datasets import CocoDataset
from mmdet.datasets.transforms import LoadAnnotations, PackDetInputs, Resize
from mmdet.evaluation import CocoMetric
from mmdet.models import FPN, DetDataPreprocessor, RetinaHead, RetinaNet
from mmdet.models.losses import FocalLoss, L1Loss
from mmdet.models.task_modules import (AnchorGenerator, DeltaXYWHBBoxCoder, MaxIoUAssigner,
    PseudoSampler)
model = dict(type=RetinaNet,
    data_preprocessor=dict(type=DetDataPreprocessor, bgr_to_rgb=True, pad_size_divisor=32,
        **mean_std),
    backbone=backbone,
    neck=dict(type=FPN, in_channels=[32, 64, 128, 256], out_channels=32, num_outs=4),
    bbox_head=dict(type=RetinaHead, num_classes=3, in_channels=32, feat_channels=32,
        stacked_convs=1,
        anchor_generator=dict(type=AnchorGenerator, octave_base_scale=4, scales_per_octave=1,
            ratios=[1.0], strides=[4, 8, 16, 32]),
        bbox_coder=dict(type=DeltaXYWHBBoxCoder),
        loss_cls=dict(type=FocalLoss, use_sigmoid=True), loss_bbox=dict(type=L1Loss)),
    train_cfg=dict(assigner=dict(type=MaxIoUAssigner, pos_iou_thr=0.5, neg_iou_thr=0.4,
        min_pos_iou=0, ignore_iof_thr=-1), sampler=dict(type=PseudoSampler), allowed_border=-1,
        pos_weight=-1, debug=False),
    test_cfg=dict(nms_pre=10, min_bbox_size=0, score_thr=0.0,
        nms=dict(type='nms', iou_threshold=0.5), max_per_img=5))
data = dict(type=CocoDataset, data_root=ROOT, ann_file='truth.json', data_prefix=dict(img='val'),
    metainfo=dict(classes=CLASSES))
load, resize = dict(type=LoadImageFromFile), dict(type=Resize, scale=(64, 64), keep_ratio=True)
pack = dict(type=PackDetInputs, meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape',
    'scale_factor'))
train_pipe = [load, dict(type=LoadAnnotations, with_bbox=True), resize, pack]
test_pipe = [load, resize, dict(type=LoadAnnotations, with_bbox=True), pack]
val_evaluator = dict(type=CocoMetric, ann_file=ROOT + '/truth.json', metric='bbox')
""",
    "mmseg": """
from mmseg.datasets import BaseSegDataset
from mmseg.datasets.transforms import LoadAnnotations, PackSegInputs, RandomCrop
from mmseg.evaluation import IoUMetric
from mmseg.models import EncoderDecoder, FCNHead, SegDataPreProcessor
from mmseg.models.losses import CrossEntropyLoss
model = dict(type=EncoderDecoder,
    data_preprocessor=dict(type=SegDataPreProcessor, bgr_to_rgb=True, pad_val=0, seg_pad_val=255,
        size=(64, 64), test_cfg=dict(size_divisor=32), **mean_std),
    backbone=backbone,
    decode_head=dict(type=FCNHead, in_channels=256, in_index=3, channels=16, num_convs=1,
        num_classes=4, norm_cfg=dict(type='BN'), loss_decode=dict(type=CrossEntropyLoss)),
    train_cfg=dict(), test_cfg=dict(mode='whole'))
data = dict(type=BaseSegDataset, data_root=ROOT, reduce_zero_label=True,
    data_prefix=dict(img_path='images', seg_map_path='labels'),
    metainfo=dict(classes=('soil', ) + CLASSES, palette=[[90, 90, 90], [9, 0, 0], [0, 9, 0],
        [0, 0, 9]]))
load = [dict(type=LoadImageFromFile), dict(type=LoadAnnotations)]
train_pipe = load + [dict(type=RandomCrop, crop_size=(64, 64)), dict(type=PackSegInputs)]
test_pipe = load + [dict(type=PackSegInputs)]
val_evaluator = dict(type=IoUMetric)
""",
    "mmpretrain": """
from mmcv.transforms import CenterCrop
from mmengine.dataset import default_collate
from mmpretrain.datasets import CustomDataset, PackInputs, RandomResizedCrop, ResizeEdge
from mmpretrain.evaluation import Accuracy
from mmpretrain.models import (ClsDataPreprocessor, GlobalAveragePooling, ImageClassifier,
    LinearClsHead)
from mmpretrain.models.losses import CrossEntropyLoss
model = dict(type=ImageClassifier,
    data_preprocessor=dict(type=ClsDataPreprocessor, num_classes=3, to_rgb=True, **mean_std),
    backbone=dict(**backbone, out_indices=(3, )), neck=dict(type=GlobalAveragePooling),
    head=dict(type=LinearClsHead, num_classes=3, in_channels=256,
        loss=dict(type=CrossEntropyLoss)))
data = dict(type=CustomDataset, data_root=ROOT, data_prefix='val')
crop = [dict(type=ResizeEdge, scale=64, edge='short'), dict(type=CenterCrop, crop_size=64)]
train_pipe = [dict(type=LoadImageFromFile), dict(type=RandomResizedCrop, scale=64),
    dict(type=PackInputs)]
test_pipe = [dict(type=LoadImageFromFile)] + crop + [dict(type=PackInputs)]
val_evaluator = dict(type=Accuracy, topk=(1, ))
""",
}


def write(scope, case, folder):
    text = f"{CONFIGS[scope]}\nROOT = {str(case.data)!r}\nCLASSES = {CLASSES!r}\n"
    head, body = text.split("model = dict(", 1)
    assigned = f"ROOT, CLASSES = {str(case.data)!r}, {CLASSES!r}\n"
    loaders = LOADERS
    if scope == "mmpretrain":
        loaders = loaders.replace(
            "num_workers=0", "num_workers=0, collate_fn=dict(type=default_collate)"
        )
        loaders = loaders.replace(", test_mode=True", "")
    path = folder / f"{scope}.py"
    path.write_text(head + COMMON + assigned + "model = dict(" + body + loaders)
    return path


@pytest.mark.parametrize("scope", CONFIGS)
def test_every_tool(scope, known, run_tool, tmp_path, capsys):
    config = write(scope, known[scope], tmp_path)
    cfg = read_config(str(config))
    assert cfg.default_scope == scope and not isinstance(cfg.model.type, str)
    assert type_name(cfg.model) == cfg.model.type.__name__ and "visualizer" not in cfg

    def call(tool, *args):
        DefaultScope._instance_dict.clear()
        return run_tool(tool, *args, cwd=tmp_path)

    call("train", config, "--amp", "bf16", "--auto-scale-lr")
    checkpoint = tmp_path / "work_dirs" / scope / "epoch_1.pth"
    assert "optimizer" in torch.load(checkpoint, weights_only=False)
    count = 6 if scope == "mmpretrain" else 2

    def drawn(folder):
        return len(list((tmp_path / folder).rglob("*.jpg")))

    call("test", config, checkpoint, "--show-dir", "shown", "--out", "out.pkl")
    assert drawn("shown") == count and os.path.getsize(tmp_path / "out.pkl")
    call("visualize", config, checkpoint, "--dataset", "--out-dir", "seen", "--device", "cpu")
    call("visualize", known[scope].data, config, checkpoint, "--out-dir", "files")
    call("browse_dataset", config, "--out-dir", "fed")
    assert drawn("seen") == drawn("fed") == count and drawn("files") >= count
    assert "0 errors" in call("data/check_dataset", config, "--workers", "1")
    call("publish_model", checkpoint, "published.pth")
    (published,) = tmp_path.glob("published-*.pth")
    call("test", config, published, "--work-dir", "published")
    part = ("--backbone-only",) if scope == "mmdet" else ()
    assert "onnxruntime" in call(
        "export_onnx", config, checkpoint, "m.onnx", "--size", 64, 64, *part
    )
    assert "FLOPs" in call("analysis_tools/get_flops", config)
    plan = ("--gpus", 1, "--images", 4, "--size", 64, 64, "--threads", 1)
    assert scope in call("analysis_tools/plan_training", config, *plan)
    call("analysis_tools/get_flops", config, "--traffic")
