"""pycocotools reads annotation files itself: what it stops on is refused before the training.

Every file is scored for real, with one prediction.
"""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet")

from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from pycocotools import mask as mask_utils

from vig_mm.checks.data import DataCheck, check_data
from vig_mm.checks.data.repair import repair
from vig_mm.checks.environment import require

SIZE = (60, 48)  # (width, height) of the picture
GOOD = [10, 10, 50, 10, 50, 40]
DIAGONAL = mask_utils.encode(np.asfortranarray(np.eye(*SIZE[::-1], dtype=np.uint8)))
RLE = DIAGONAL["counts"].decode()
BOTH = ["bbox", "segm"]
ABSENT = object()


@pytest.fixture
def val(tmp_path):
    """`val(changes)`: config that scores an annotation so changed; a second one is good."""
    (tmp_path / "1.jpg").touch()

    def make(changes, metric=BOTH, with_mask=True):
        box = [10, 10, 40, 30]
        good = dict(image_id=1, category_id=1, bbox=box, area=600, segmentation=[GOOD], iscrowd=0)
        bad = {k: v for k, v in {**good, **changes}.items() if v is not ABSENT}
        content = dict(
            images=[dict(id=1, file_name="1.jpg", width=SIZE[0], height=SIZE[1])],
            categories=[dict(id=1, name="a"), dict(id=2, name="b")],
            annotations=[{**good, "id": 1}, {**bad, "id": 2}],
        )
        path = str(tmp_path / "val.json")
        with open(path, "w") as file:
            json.dump(content, file)
        dataset = dict(
            type="CocoDataset",
            ann_file=path,
            data_prefix=dict(img=str(tmp_path)),
            metainfo=dict(classes=("a",)),
            pipeline=[dict(type="LoadAnnotations", with_mask=with_mask)],
            test_mode=True,
        )
        evaluator = dict(type="CocoMetric", ann_file=path, metric=metric)
        loader = dict(dataset=dataset)
        require("mmdet")
        return Config(dict(default_scope="mmdet", val_dataloader=loader, val_evaluator=evaluator))

    return make


def severities(cfg):
    return {one.kind: one.severity for one in DataCheck(cfg, ("val",)).findings}


def built(dataset):
    with DefaultScope.overwrite_default_scope("mmdet"):
        return DATASETS.children["mmdet"].build(dataset)


def score(cfg):
    from mmdet.evaluation import CocoMetric

    metric = CocoMetric(ann_file=cfg.val_evaluator.ann_file, metric=list(cfg.val_evaluator.metric))
    metric.dataset_meta = dict(classes=("a",))
    mask = torch.zeros(1, *SIZE[::-1], dtype=torch.bool)
    mask[0, 10:40, 10:50] = True
    box, one = torch.tensor([[10.0, 10, 50, 40]]), torch.tensor([0.9])
    predicted = dict(bboxes=box, scores=one, labels=torch.tensor([0]), masks=mask)
    sample = dict(img_id=1, ori_shape=SIZE[::-1], pred_instances=predicted)
    metric.process({}, [sample])
    return metric.evaluate(1)


UNSUPPORTED = "input type is not supported"
BOX = "incorrect type"  # four numbers are a box to pycocotools, and it wants an array then
# changes of the annotation, kind of the finding, what pycocotools says
STOPS = {
    "empty polygon": (dict(segmentation=[[]]), "unscorable-mask", UNSUPPORTED),
    "point": (dict(segmentation=[[1, 2]]), "unscorable-mask", UNSUPPORTED),
    "line": (dict(segmentation=[[1, 2, 3, 4]]), "unscorable-mask", BOX),
    "point first": (dict(segmentation=[[1, 2], GOOD]), "unscorable-mask", UNSUPPORTED),
    "line first": (dict(segmentation=[[1, 2, 3, 4], GOOD]), "unscorable-mask", BOX),
    "no counts": (dict(segmentation=dict(size=[48, 60])), "unscorable-mask", "counts"),
    "counts null": (dict(segmentation=dict(size=[48, 60], counts=None)), "unscorable-mask", "None"),
    "counts a number": (dict(segmentation=dict(size=[48, 60], counts=5)), "unscorable-mask", "int"),
    "no size": (dict(segmentation=dict(counts=RLE)), "unscorable-mask", "size"),
    "size null": (dict(segmentation=dict(counts=RLE, size=None)), "unscorable-mask", "NoneType"),
    "size a number": (dict(segmentation=dict(counts=[1, 2], size=5)), "rle-size", "int"),
    "size of one": (dict(segmentation=dict(counts=[5], size=[5])), "rle-size", "index"),
    "no mask": (dict(segmentation=ABSENT), "no-mask", "segmentation"),
    "mask null": (dict(segmentation=None), "no-mask", "NoneType"),
    "mask empty": (dict(segmentation=[]), "no-mask", "index"),
    "ignored, no mask": (dict(ignore=1, segmentation=ABSENT), "no-mask", "segmentation"),
    "outside, point": (
        dict(bbox=[80, 6, 10, 10], segmentation=[[1, 2]]), "unscorable-mask", UNSUPPORTED,
    ),
    "no area, no mask": (dict(bbox=[10, 10, 0, 0], segmentation=[]), "no-mask", "index"),
    "ignored, no area": (dict(ignore=1, area=ABSENT), "incomplete", "area"),
    "ignored, no bbox": (dict(ignore=1, bbox=ABSENT), "incomplete", "bbox"),
}  # fmt: skip


@pytest.mark.parametrize("with_mask", [True, False], ids=["masks loaded", "masks not loaded"])
@pytest.mark.parametrize("what", STOPS)
def test_what_stops_scoring_is_an_error(what, with_mask, val):
    changes, kind, message = STOPS[what]
    cfg = val(changes, with_mask=with_mask)
    assert severities(cfg)[kind] == "error"
    with pytest.raises(Exception, match=message):
        score(cfg)


# changes of the annotation, metrics, whether the pipeline loads masks, severities of the findings
GOES_ON = {
    "two and a half points": (
        dict(segmentation=[[1, 2, 3, 4, 5]]), BOTH, True, {"short-polygons": "warning"},
    ),
    "three and a half points": (
        dict(segmentation=[[*GOOD, 5]]), BOTH, True, {"short-polygons": "warning"},
    ),
    "point behind": (dict(segmentation=[GOOD, [1, 2]]), BOTH, True, {"short-part": "note"}),
    "ignored": (dict(ignore=1), BOTH, True, {"ignored": "warning"}),
    "outside": (dict(bbox=[80, 6, 10, 10]), BOTH, True, {"outside": "warning"}),
    "iscrowd as true": (
        dict(iscrowd=True, segmentation=dict(DIAGONAL, counts=RLE)), BOTH, True, {"crowd": "note"},
    ),
    "sizes with fractions": (
        dict(segmentation=dict(counts=RLE, size=[48.0, 60.0]), area=48), BOTH, True, {},
    ),
    "boxes of points": (
        dict(segmentation=[[1, 2]]), ["bbox"], True, {"short-polygons": "warning"},
    ),
    "boxes of half an RLE": (
        dict(segmentation=dict(counts=RLE)), ["bbox"], True, {"bad-rle": "warning"},
    ),
    "boxes": (dict(segmentation=ABSENT), ["bbox"], False, {}),
    "other class": (
        dict(category_id=2, segmentation=[[1, 2]], iscrowd=ABSENT), BOTH, True,
        {"other-class": "warning"},
    ),
    "other image": (
        dict(image_id=7, segmentation=[[1, 2]], iscrowd=ABSENT), BOTH, True,
        {"no-image": "warning"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", GOES_ON)
def test_what_is_scored_is_no_error(what, val):
    changes, metric, with_mask, expected = GOES_ON[what]
    cfg = val(changes, metric, with_mask)
    assert severities(cfg) == expected
    assert "coco/bbox_mAP" in score(cfg)


RUNS = dict(size=[48, 60], counts=[5, 5])


@pytest.mark.parametrize("changes", [dict(ignore=1), dict(bbox=[80, 6, 10, 10])])
def test_runs_that_do_not_fill_are_refused_whatever_the_box(changes, val):
    """Scoring such an RLE does not end."""
    assert severities(val(dict(changes, segmentation=RUNS)))["broken-rle"] == "error"


def test_crowd_as_text_is_refused(val):
    """`"0"` is true: mmdet and pycocotools would take every object for a crowd."""
    cfg = val(dict(iscrowd="0"))
    assert severities(cfg) == {"bad-crowd": "error"}
    cfg.train_dataloader = cfg.val_dataloader
    assert [one.kind for one in DataCheck(cfg, ("train",)).findings] == ["bad-crowd"]


@pytest.mark.parametrize("crowd, message", [(ABSENT, "iscrowd"), (None, "NoneType")])
def test_missing_crowd_is_0_in_a_copy(crowd, message, val, tmp_path):
    cfg = val(dict(iscrowd=crowd))
    assert severities(cfg) == {"no-crowd": "note"}
    with pytest.raises(Exception, match=message):
        score(cfg)
    cfg.work_dir = str(tmp_path / "work")
    (line,) = repair(cfg, ("val",))
    assert "leaves iscrowd out" in line and "where it is 0 in 1 annotation" in line
    assert cfg.val_dataloader.dataset.ann_file == str(tmp_path / "val.json")
    found = score(cfg)
    # two equal objects, of which one is found
    assert found == score(val(dict(iscrowd=0))) and 0.4 < found["coco/bbox_mAP"] < 0.6


def test_one_id_for_two_objects_is_two_ids_in_a_copy(val, tmp_path):
    """mmdet refuses them; of the same object twice it is not to be told whether it is one."""
    expected = score(val(dict(bbox=[10, 10, 20, 20])))
    cfg = val(dict(bbox=[10, 10, 20, 20]))
    path = tmp_path / "val.json"
    path.write_text(path.read_text().replace('"id": 2}]', '"id": 1}]'))
    assert severities(cfg) == {"annotations-id-twice": "note"}
    with pytest.raises(AssertionError, match="not unique"):
        built(cfg.val_dataloader.dataset)
    cfg.work_dir = str(tmp_path / "work")
    lines = check_data(cfg, ("val",)) + repair(cfg, ("val",))
    assert len(lines) == 2 and all("gives several annotations one id" in line for line in lines)
    assert score(cfg) == expected
    boxes = [one["bbox"] for one in built(cfg.val_dataloader.dataset).get_data_info(0)["instances"]]
    assert boxes == [[10, 10, 50, 40], [10, 10, 30, 30]]

    content = json.loads(path.read_text())
    content["annotations"][1] = content["annotations"][0]
    path.write_text(json.dumps(content))
    cfg = val({})
    path.write_text(json.dumps(content))
    assert severities(cfg)["annotation-twice"] == "error"


def test_training_needs_no_crowds(val):
    cfg = val(dict(iscrowd=ABSENT))
    cfg.train_dataloader = cfg.val_dataloader
    assert DataCheck(cfg, ("train",)).findings == []


def test_without_a_metric_what_is_loaded_is_scored(val):
    """As `tools/data/check_dataset.py --coco` has it."""
    cfg = val(dict(segmentation=[[1, 2]]))
    cfg.val_evaluator = None
    assert severities(cfg) == {"unscorable-mask": "error"}
