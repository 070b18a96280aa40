"""TTA of instance segmentation: boxes and masks of flipped views land where the objects are."""

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

from vig_mm.models.test_time_augs.instance_tta import InstanceTTAModel

H, W = 20, 30
OBJECTS = {0: (2, 3, 10, 9), 1: (15, 4, 28, 18)}  # label -> x1, y1, x2, y2
FLIPS = {None: (), "horizontal": (-1,), "vertical": (-2,), "diagonal": (-2, -1)}


def view(direction, labels, scores):
    """What a perfect model predicts on a flipped view, in that view's frame."""
    boxes, masks = [], []
    for label in labels:
        x1, y1, x2, y2 = OBJECTS[label]
        mask = torch.zeros(H, W, dtype=torch.bool)
        mask[y1:y2, x1:x2] = True
        mask[y1, x1] = False  # not symmetric
        masks.append(mask.flip(FLIPS[direction]))
        if direction in ("horizontal", "diagonal"):
            x1, x2 = W - x2, W - x1
        if direction in ("vertical", "diagonal"):
            y1, y2 = H - y2, H - y1
        boxes.append([x1, y1, x2, y2])
    sample = DetDataSample(
        metainfo=dict(ori_shape=(H, W), flip=direction is not None, flip_direction=direction)
    )
    sample.pred_instances = InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float).reshape(-1, 4),
        scores=torch.tensor(scores),
        labels=torch.tensor(labels, dtype=torch.long),
        masks=torch.stack(masks) if masks else torch.zeros(0, H, W, dtype=torch.bool),
    )
    return sample


def merge(*views, max_per_img=100):
    model = InstanceTTAModel.__new__(InstanceTTAModel)
    torch.nn.Module.__init__(model)
    nms = dict(type="nms", iou_threshold=0.5)
    model.tta_cfg = ConfigDict(nms=nms, max_per_img=max_per_img)
    return model.merge_preds([list(views)])[0].pred_instances


@pytest.mark.parametrize("direction", ["horizontal", "vertical", "diagonal"])
def test_views_merge(direction):
    # each object is found best in another view; one is found in one view only
    merged = merge(view(None, [0], [0.6]), view(direction, [0, 1], [0.9, 0.8]))
    assert merged.labels.tolist() == [0, 1]
    assert merged.scores.tolist() == pytest.approx([0.9, 0.8])
    expected = view(None, [0, 1], [0.9, 0.8]).pred_instances
    assert torch.equal(merged.bboxes, expected.bboxes)
    assert torch.equal(merged.masks, expected.masks)


def test_max_per_img():
    merged = merge(view(None, [0, 1], [0.6, 0.7]), max_per_img=1)
    assert merged.labels.tolist() == [1] and merged.masks.shape == (1, H, W)


def test_nothing_found():
    merged = merge(view(None, [], []), view("horizontal", [], []))
    assert len(merged) == 0 and merged.masks.shape == (0, H, W)


def test_old_name_in_stored_configs():
    """Detection checkpoints hold their config, and older ones its old `custom_imports`."""
    from mmengine.utils import import_modules_from_strings

    assert import_modules_from_strings("vig_mm.engine.instance_tta").InstanceTTAModel is (
        InstanceTTAModel
    )
