"""Models that read the class off an image's colours: known predictions from a real pipeline.

What they see went through a config's data loader, resizing, padding and normalisation; what they
return goes through its evaluator. So their scores tell whether both are right, without training.
"""

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn

from vig_mm.registry import MODELS


class ColourModel(BaseModel):
    """Base of the three. Its one weight: the RGB of every class ``[classes, 3]``, 0 to 255.

    Args:
        num_classes: number of classes.
        data_preprocessor: as of any model.
    """

    def __init__(self, num_classes: int, data_preprocessor: dict) -> None:
        super().__init__(data_preprocessor)
        # a parameter, as DDP refuses a model without one
        self.colours = nn.Parameter(torch.zeros(num_classes, 3))

    def distances(self, inputs: Tensor, colours: Tensor) -> Tensor:
        """``[B, 3, h, w]`` as the model gets it -> RGB distance to each colour ``[B, k, h, w]``."""
        inputs = inputs * self.data_preprocessor.std + self.data_preprocessor.mean
        return (inputs[:, None] - colours[:, :, None, None]).square().sum(2).sqrt()

    def forward(self, inputs: Tensor, data_samples: list, mode: str) -> list:
        assert mode == "predict"
        with torch.no_grad():
            return self.predict(inputs, data_samples)


@MODELS.register_module()
class ColourDetector(ColourModel):
    """Finds at most one object of each class, on black; the larger, the surer."""

    def predict(self, inputs: Tensor, data_samples: list) -> list:
        black = torch.zeros(1, 3)
        nearest = self.distances(inputs, torch.cat((self.colours, black))).argmin(1)
        for seen, sample in zip(nearest, data_samples, strict=True):
            seen = seen[: sample.img_shape[0], : sample.img_shape[1]]
            labels = [k for k in range(len(self.colours)) if (seen == k).any()]
            found = [self.outline(seen == k, sample) for k in labels]
            masks = torch.cat([torch.zeros(0, *sample.ori_shape).bool(), *(x[1] for x in found)])
            sample.pred_instances = InstanceData(
                bboxes=torch.tensor([x[0] for x in found]).reshape(-1, 4),
                scores=masks.float().mean((1, 2)),
                labels=torch.tensor(labels, dtype=torch.long),
                masks=masks,
            )
        return data_samples

    def outline(self, mask: Tensor, sample) -> tuple[list[float], Tensor]:
        """Box (x1, y1, x2, y2) and mask ``[1, H, W]`` in the original image."""
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        horizontal, vertical = sample.scale_factor
        box = [
            int(columns[0]) / horizontal,
            int(rows[0]) / vertical,
            (int(columns[-1]) + 1) / horizontal,
            (int(rows[-1]) + 1) / vertical,
        ]
        mask = F.interpolate(mask[None, None].float(), sample.ori_shape, mode="bilinear")
        return box, mask[0] > 0.5


@MODELS.register_module()
class ColourSegmentor(ColourModel):
    """The class of the nearest colour, pixel by pixel."""

    def predict(self, inputs: Tensor, data_samples: list) -> list:
        distances = self.distances(inputs, self.colours)
        for distance, sample in zip(distances, data_samples, strict=True):
            distance = distance[None, :, : sample.img_shape[0], : sample.img_shape[1]]
            distance = F.interpolate(distance, sample.ori_shape, mode="bilinear")[0]
            sample.pred_sem_seg = PixelData(data=distance.argmin(0, keepdim=True))
        return data_samples


@MODELS.register_module()
class ColourClassifier(ColourModel):
    """The nearer the mean colour, the higher the score."""

    def predict(self, inputs: Tensor, data_samples: list) -> list:
        distances = self.distances(inputs.mean((2, 3), keepdim=True), self.colours)[..., 0, 0]
        for score, sample in zip((-distances / 50).softmax(1), data_samples, strict=True):
            sample.set_pred_score(score).set_pred_label(score.argmax(keepdim=True))
        return data_samples
