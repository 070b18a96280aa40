"""Torchvision's Faster R-CNN on the maps that timm's models return."""

from collections import OrderedDict

import timm
import torch
from small_models import SMALL, bright_squares, train
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, masks_to_boxes


class Pyramid(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.body = timm.create_model(name, features_only=True, **SMALL[name])
        self.out_channels = 32
        self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), self.out_channels)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        return self.fpn(OrderedDict((str(i), y) for i, y in enumerate(self.body(x))))


def test_faster_rcnn_trains_and_detects() -> None:
    torch.manual_seed(0)
    anchors = AnchorGenerator(((8,), (16,), (32,), (64,)), ((0.5, 1.0, 2.0),) * 4)
    model = FasterRCNN(
        Pyramid("hier_vig_tiny"), num_classes=2, rpn_anchor_generator=anchors,
        min_size=64, max_size=64, image_mean=[0] * 3, image_std=[1] * 3,
    )  # fmt: skip
    images, masks = bright_squares()
    boxes = masks_to_boxes(masks)
    targets = [dict(boxes=box[None], labels=torch.ones(1, dtype=torch.long)) for box in boxes]
    first, last = train(model, lambda: sum(model(list(images), targets).values()), steps=15)
    assert last < 0.7 * first
    best = model.eval()(list(images))[0]
    assert best["boxes"].shape[1] == 4 and len(best["boxes"]) == len(best["scores"]) > 0
