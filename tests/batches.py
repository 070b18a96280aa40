"""Small random batches, as the data loaders of the three libraries give them."""

import numpy as np
import torch
from mmengine.config import Config
from mmengine.structures import InstanceData, PixelData


def detection_batch(num_classes: int, size: tuple[int, int] = (128, 160)) -> dict:
    """Two images (H, W) with two boxes and masks each, of the first and the last class."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    height, width = size
    boxes = torch.tensor([[0.1, 0.1, 0.5, 0.5], [0.4, 0.3, 0.9, 0.9]])
    boxes = (boxes * torch.tensor([width, height, width, height])).round()
    masks = np.zeros((2, height, width), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    samples = []
    for _ in range(2):
        sample = DetDataSample(
            metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0))
        )
        sample.gt_instances = InstanceData(
            bboxes=boxes,
            labels=torch.tensor([0, num_classes - 1]),
            masks=BitmapMasks(masks, height, width),
        )
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4))
        samples.append(sample)
    return dict(inputs=[_image(size) for _ in samples], data_samples=samples)


def segmentation_batch(num_classes: int, size: tuple[int, int] = (128, 128)) -> dict:
    """Two images (H, W) with a random class in every pixel."""
    from mmseg.structures import SegDataSample

    samples = []
    for _ in range(2):
        sample = SegDataSample(metainfo=dict(img_shape=size, ori_shape=size))
        sample.gt_sem_seg = PixelData(data=torch.randint(0, num_classes, (1, *size)))
        samples.append(sample)
    return dict(inputs=[_image(size) for _ in samples], data_samples=samples)


def classification_batch(num_classes: int, size: tuple[int, int] = (64, 64)) -> dict:
    """Two images (H, W), of the first and the last class."""
    from mmpretrain.structures import DataSample

    samples = [DataSample().set_gt_label(label) for label in (0, num_classes - 1)]
    return dict(inputs=torch.stack([_image(size) for _ in samples]), data_samples=samples)


def batch(cfg: Config, size: tuple[int, int]) -> dict:
    """Two images (H, W) for a whole config; its ``default_scope`` says which task."""
    model = cfg.model
    if cfg.default_scope == "mmdet":
        head = model.roi_head.bbox_head if "roi_head" in model else model.bbox_head
        head = head[0] if isinstance(head, list) else head  # of a cascade
        return detection_batch(head.num_classes, size)
    if cfg.default_scope == "mmseg":
        return segmentation_batch(model.decode_head.num_classes, size)
    made = classification_batch((model.get("head") or model).num_classes, size)
    channels = (model.get("backbone") or {}).get("in_channels", 3)
    made["inputs"] = made["inputs"][:, [i % 3 for i in range(channels)]]
    return made


def _image(size: tuple[int, int]) -> torch.Tensor:
    return torch.randint(0, 256, (3, *size), dtype=torch.uint8)
