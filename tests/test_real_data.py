"""The project's own pipelines and evaluators on small real data, where it is at hand.

The data belongs to others and is not part of the repository: these tests skip without it.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from by_hand import class_scores, coco_scores, seg_scores
from golden import CONFIGS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image
from tool_runs import agree, by_colour, scores, small_config, with_model

SHARED = Path(__file__).parents[2] / "shared" / "data"


def folder(name: str) -> Path:
    path = SHARED / name
    if not path.is_dir():
        pytest.skip(f"{name} is not at hand")
    return path


# AP, AP50, AP75, small, medium, large, AR1, AR10, AR100, small, medium, large; by COCO's authors
PUBLISHED = {
    "bbox": (0.5045806987, 0.6969727247, 0.5729816670, 0.5856257209, 0.5193996948, 0.5013978986,
             0.3868127796, 0.5936795763, 0.5953529829, 0.6398109626, 0.5664205979, 0.5642905983),
    "segm": (0.3195452759, 0.5622883973, 0.2989265341, 0.3873740316, 0.3101827240, 0.3269339071,
             0.2682297226, 0.4154486811, 0.4168394992, 0.4694498623, 0.3767592267, 0.3814715100),
}  # fmt: skip


@pytest.mark.parametrize("kind", PUBLISHED)
def test_evaluator_returns_the_published_scores(kind, monkeypatch):
    """The 1x config's own CocoMetric on the COCO authors' fake detections.

    It reports three digits; what it computed is read off its COCOeval.
    """
    from mmdet.evaluation.metrics import coco_metric
    from mmdet.registry import METRICS
    from pycocotools import mask as mask_utils
    from pycocotools.coco import COCO

    data = folder("coco_known_scores")
    init_default_scope("mmdet")
    cfg = Config.fromfile(CONFIGS / "mmdet" / "mask-rcnn_vig-h-t_fpn_1x_coco.py")
    ann_file = str(data / "instances_val2014_100.json")
    # published average recalls are at 1, 10 and 100 detections, mmdet's at 100, 300 and 1000
    changes = dict(ann_file=ann_file, metric=kind, proposal_nums=(1, 10, 100))
    metric = METRICS.build({**cfg.test_evaluator, **changes})
    evaluations = []

    class Recorded(coco_metric.COCOeval):
        def __init__(self, *args):
            super().__init__(*args)
            evaluations.append(self)

    monkeypatch.setattr(coco_metric, "COCOeval", Recorded)
    truth = COCO(ann_file)
    metric.dataset_meta = dict(classes=[c["name"] for c in truth.dataset["categories"]])
    category = {c["id"]: i for i, c in enumerate(truth.dataset["categories"])}
    fake = json.loads((data / f"instances_val2014_fake{kind}100_results.json").read_text())
    for image_id in truth.getImgIds():
        found = [x for x in fake if x["image_id"] == image_id]
        instances = dict(
            labels=torch.tensor([category[x["category_id"]] for x in found], dtype=torch.long),
            scores=torch.tensor([x["score"] for x in found], dtype=torch.float64),
        )
        if kind == "segm":
            instances["masks"] = [x["segmentation"] for x in found]
        boxes = [
            x["bbox"] if kind == "bbox" else mask_utils.toBbox(x["segmentation"]) for x in found
        ]
        boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]  # as a detector gives them: corners
        instances["bboxes"] = torch.from_numpy(boxes)
        size = (truth.imgs[image_id]["height"], truth.imgs[image_id]["width"])
        metric.process({}, [dict(img_id=image_id, ori_shape=size, pred_instances=instances)])
    reported = metric.evaluate(size=len(truth.imgs))
    assert len(evaluations) == 1
    np.testing.assert_allclose(evaluations[0].stats, PUBLISHED[kind], rtol=0, atol=1e-6)
    assert reported[f"coco/{kind}_mAP"] == round(PUBLISHED[kind][0], 3)


# Our own configs through tools/test.py, with models that are partly right and need no training:
# what it reports against a direct computation on what it dumps.


def test_coco_scores(tmp_path):
    """Crowds as RLE, images without objects, 80 classes of which half occur."""
    data = folder("tiny_coco")
    truth = data / "annotations/instances_val2017.json"
    changes = {
        "test_dataloader.dataset.data_root": str(data),
        "test_evaluator.ann_file": str(truth),
    }
    config = small_config("mmdet/mask-rcnn_vig-h-t_fpn_1x_coco.py", tmp_path, changes)
    weights = dict(jitter=torch.tensor(0.1))
    model = with_model(config, "jittered_truth", "JitteredTruth", weights, num_classes=80)
    reported, predictions = scores(*model)
    assert len(predictions) == 50
    assert 0.2 < reported["coco/bbox_mAP"] < 0.6 and 0.2 < reported["coco/segm_mAP"] < 0.6
    # COCO's own file has its categories in label order
    classes = [one["name"] for one in json.loads(truth.read_text())["categories"]]
    agree(reported, coco_scores(predictions, truth, classes), 3)


def test_ade20k_scores(tmp_path):
    """Each class by its mean colour in these photographs."""
    data = folder("ade_sample")
    changes = {
        "test_dataloader.dataset.data_root": str(data),
        "test_dataloader.dataset.data_prefix": dict(img_path="images", seg_map_path="annotations"),
    }
    base = "mmseg/vig-h-t_upernet_8xb2-160k_ade20k-512x512.py"
    config = small_config(base, tmp_path, changes)
    pixels, labels = [], []
    for path in sorted((data / "annotations").glob("*.png")):
        labels.append(np.asarray(Image.open(path)).ravel())
        image = Image.open(data / "images" / f"{path.stem}.jpg").convert("RGB")
        pixels.append(np.asarray(image).reshape(-1, 3))
    labels, pixels = np.concatenate(labels), np.concatenate(pixels)
    nowhere = np.full(3, 1000.0)  # the colour of classes that do not occur
    colours = [
        pixels[labels == k].mean(0) if (labels == k).any() else nowhere for k in range(1, 151)
    ]
    reported, predictions = scores(*by_colour(config, "ColourSegmentor", np.stack(colours)))
    assert 20 < reported["aAcc"] < 80 and 5 < reported["mIoU"] < 60
    agree(reported, seg_scores(predictions, data / "annotations", 150), 2)


def test_imagenet_scores(tmp_path):
    """Each flower by its mean colour."""
    data = folder("flowers12")
    changes = {"test_dataloader.dataset.data_root": str(data), "test_evaluator.topk": (1, 5)}
    config = small_config("mmpretrain/vig-h-mini_flowers12.py", tmp_path, changes)
    colours = [
        np.mean([np.asarray(Image.open(x)).mean((0, 1)) for x in kind.glob("*.jpg")], axis=0)
        for kind in sorted((data / "train").iterdir())
    ]
    reported, predictions = scores(*by_colour(config, "ColourClassifier", np.stack(colours)))
    assert len(predictions) == 240
    assert 10 < reported["accuracy/top1"] < 60 < reported["accuracy/top5"] < 99
    agree(reported, class_scores(predictions, (1, 5)), 4)
