"""Test-time augmentation for instance segmentation. Needs mmdet."""

import torch
from mmcv.ops import batched_nms
from mmdet.models.test_time_augs import DetTTAModel
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor

from vig_mm.registry import MODELS

_FLIPPED_AXES = {"horizontal": (-1,), "vertical": (-2,), "diagonal": (-2, -1)}


@MODELS.register_module()
class InstanceTTAModel(DetTTAModel):
    """mmdet's TTA for boxes, extended to masks: each box that survives NMS keeps its own mask.

    Args:
        tta_cfg: `nms` (of mmcv's `batched_nms`) and `max_per_img`.
    """

    def _merge_single_sample(self, data_samples: list[DetDataSample]) -> DetDataSample:
        """Merge the views of one image; boxes and masks come in each view's flipped frame."""
        predictions = [sample.pred_instances for sample in data_samples]
        boxes, scores = self.merge_aug_bboxes(
            [prediction.bboxes for prediction in predictions],
            [prediction.scores for prediction in predictions],
            [sample.metainfo for sample in data_samples],
        )
        merged = data_samples[0]
        if boxes.numel() == 0:
            return merged
        labels = torch.cat([prediction.labels for prediction in predictions])
        detections, keep = batched_nms(boxes, scores, labels, self.tta_cfg.nms)
        detections = detections[: self.tta_cfg.max_per_img]
        keep = keep[: self.tta_cfg.max_per_img]
        result = InstanceData(
            bboxes=detections[:, :4], scores=detections[:, 4], labels=labels[keep]
        )
        if "masks" in predictions[0]:
            masks = torch.cat([_unflipped_masks(sample) for sample in data_samples])
            result.masks = masks[keep.to(masks.device)]
        merged.pred_instances = result
        return merged


def _unflipped_masks(sample: DetDataSample) -> Tensor:
    """The masks `[n, h, w]` of a view in the frame of the original image."""
    masks = sample.pred_instances.masks
    if not sample.flip:
        return masks
    return masks.flip(_FLIPPED_AXES[sample.flip_direction])
