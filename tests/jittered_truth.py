"""A detector that returns the annotations with mistakes: middling AP on any COCO data."""

import torch
from mmengine.model import BaseModel
from mmengine.structures import InstanceData

from vig_mm.registry import MODELS


@MODELS.register_module()
class JitteredTruth(BaseModel):
    """Moves each object by up to ``jitter`` (its one weight) of its size; one in six is missed,
    one in six gets another class. Scores are random. The same for every run."""

    def __init__(self, num_classes: int, data_preprocessor: dict) -> None:
        super().__init__(data_preprocessor)
        self.num_classes = num_classes
        self.register_buffer("jitter", torch.tensor(0.0))

    def forward(self, inputs: torch.Tensor, data_samples: list, mode: str) -> list:
        assert mode == "predict"
        for sample in data_samples:
            random = torch.Generator().manual_seed(sample.img_id)
            truth = sample.gt_instances  # in the frame of the original image
            boxes, labels = truth.bboxes.clone(), truth.labels.clone()
            masks = truth.masks.to_tensor(torch.bool, "cpu")
            sizes = boxes[:, 2:] - boxes[:, :2]
            shifts = self.jitter * sizes * (2 * torch.rand(len(boxes), 2, generator=random) - 1)
            for i, (right, down) in enumerate(shifts.round().int().tolist()):
                masks[i] = masks[i].roll((down, right), dims=(0, 1))
            wrong = torch.rand(len(boxes), generator=random) < 1 / 6
            labels[wrong] = (labels[wrong] + 1) % self.num_classes
            found = torch.rand(len(boxes), generator=random) > 1 / 6
            sample.pred_instances = InstanceData(
                bboxes=(boxes + shifts.repeat(1, 2))[found],
                scores=torch.rand(int(found.sum()), generator=random),
                labels=labels[found],
                masks=masks[found],
            )
        return data_samples
