"""COCO files: what mmdet leaves out or stops at, and what pycocotools cannot score, is named.

Files are real and go through mmdet's data set and metric.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet")

from pycocotools import mask as mask_utils
from tiny_data import (
    CORNERS,
    JPG,
    SIZE,
    TURNED,
    built,
    coco,
    encoded,
    found,
    found_in_full,
    picture,
    refused,
    said,
    sample_refused,
    write,
)

from vig_mm.checks.data import check_data, prepare_data, repair
from vig_mm.checks.data.coco import is_whole, shape_faults

DIAGONAL = mask_utils.encode(np.asfortranarray(np.eye(*SIZE[::-1], dtype=np.uint8)))
RLE = dict(size=[48, 60], counts=DIAGONAL["counts"].decode())
HALF = SIZE[0] * SIZE[1] // 2
HUGE = 10**400  # json's whole numbers have no limit, and Python's floats have one
ONE_IMAGE = dict(id="1", file_name="1.jpg", width=60, height=48)


def truth(dataset, index=0):
    return dataset[index]["data_samples"]


# What mmdet does: annotations, what else is changed, findings, objects that are learned --------

LEARNED = {
    "whole": ([{}], {}, {}, 1),
    "over the edge, tiny area": ([{}, dict(bbox=[-5, -5, 30, 30]), dict(area=0.5)], {}, {}, 3),
    "ignored": ([{}, dict(ignore=1)], {}, {"ignored": "warning 1"}, 1),
    "outside": ([{}, dict(bbox=[80, 6, 9, 9])], {}, {"outside": "warning 1"}, 1),
    "thin": ([{}, dict(bbox=[6, 6, 0.5, 18])] * 2, {}, {"no-area": "warning 2"}, 2),
    "other class": ([{}, dict(category_id=2)], {}, {"other-class": "warning 1"}, 1),
    "other image": ([{}, dict(image_id=7)], {}, {"no-image": "warning 1"}, 1),
    "short polygons": (
        [{}, dict(segmentation=[[1, 1, 2, 2], [1, 2, 3, 4, 5, 6, 7]])], {},
        {"short-polygons": "warning 1"}, 1,
    ),
    "half an RLE": ([{}, dict(segmentation=dict(counts="1"))], {}, {"bad-rle": "warning 1"}, 1),
    "crowd, RLE": ([{}, dict(iscrowd=1, segmentation=RLE)], {}, {"crowd": "note 1"}, 1),
    "crowd, runs": (
        [{}, dict(iscrowd=1, segmentation=dict(RLE, counts=[HALF, HALF]))], {},
        {"crowd": "note 1"}, 1,
    ),
    "crowd, polygon": ([{}, dict(iscrowd=1)], {}, {"crowd": "note 1"}, 1),
    "no mask, for boxes": ([dict(segmentation=None)], dict(masks=False), {}, 1),
    "no crowd": ([dict(iscrowd=...)], {}, {}, 1),
    "turned box": (
        [dict(attributes=dict(rotation=30.0)), dict(attributes=dict(rotation=0.0))], {},
        {"rotated": "warning 1"}, 2,
    ),
    "images of each kind": (
        [{}, dict(image_id=2), dict(image_id=4, bbox=[80, 6, 9, 9])],
        dict(images=[{}, dict(height=30), {}, {}, {}]),
        {"outside": "warning 1", "no-annotation": "warning 2", "nothing-left": "warning 1",
         "min-size": "warning 1"}, 1,
    ),
    "listed twice": (
        [{}, dict(image_id=2)], dict(images=[{}, dict(file_name="./1.jpg")]),
        {"file-name-twice": "warning 1"}, 1,
    ),
    "last class unused": ([{}], dict(classes=("a", "c")), {"unused-class": "warning 1"}, 1),
    "text for every image": ([dict(image_id="1")], dict(images=[ONE_IMAGE]), {}, 1),
    "image_id as text": ([dict(image_id="1"), {}], {}, {"text-id": "error 1"}, 1),
    "category_id as text": ([dict(category_id="1"), {}], {}, {"text-id": "error 1"}, 1),
    "category twice": ([{}], dict(categories=("a", "a")), {"category-twice": "error 1"}, 1),
    "image id twice": ([{}], dict(images=[{}, dict(id=1)]), {"images-id-twice": "error 1"}, 1),
    "crossing": ([dict(segmentation=[[0, 0, 8, 8, 8, 0, 0, 8]])], {}, {}, 1),
}  # fmt: skip


@pytest.mark.parametrize("what", LEARNED)
def test_what_mmdet_learns(what, tmp_path):
    annotations, changes, expected, count = LEARNED[what]
    cfg = coco(tmp_path, *annotations, **changes)
    kinds = found(cfg)
    assert said(kinds) == expected
    if all(one.severity != "error" for one in kinds.values()):
        left_out = [one.left_out for one in kinds.values() if one.left_out]
        line = " ".join(check_data(cfg, ("train",)))
        assert all(one in line for one in left_out) and (left_out == [] or "leaves out" in line)
    assert what != "last class unused" or "and the last" in kinds["unused-class"].text
    sample = truth(built(cfg))
    assert len(sample.gt_instances) == count
    if what.startswith("crowd"):
        area = {"crowd, RLE": 48, "crowd, runs": HALF, "crowd, polygon": 432}[what]
        assert sample.ignored_instances.masks.masks.sum() == area


# What ends in an error before a run: annotations, changes, words ----------------------------------

REFUSED = {
    "incomplete": ([dict(area=None), dict(bbox=None)], {}, "2 of 2 .* have no bbox, or no area"),
    "bad box": ([dict(bbox=[6, 6, 2]), dict(bbox=[6, 6, float("nan"), 1]),
                 dict(bbox=[1, 1, HUGE, 6])], {}, "3 of 3 .*finite"),
    "no mask": ([dict(segmentation=[]), dict(segmentation=None)], {}, "2 of 2 .* no segmentation"),
    "bad polygon": (
        [dict(segmentation=[6, 6, 30, 6, 30, 24]), dict(segmentation="x"),
         dict(segmentation=[[*CORNERS[1:], HUGE]])], {}, "3 of 3 .*neither"),
    "size of RLE": ([dict(segmentation=dict(size=[8, 8], counts=[60, 4]))], {}, "of another size"),
    "runs": ([dict(segmentation=dict(RLE, counts=one)) for one in (
        RLE["counts"][:-1], [5, 5], [HUGE], "\ud800")], {}, "4 of 4 .*runs do not fill"),
    "twice": ([dict(id=5), dict(id=5)], {}, "more than once with all they say"),
    "category": ([{}, dict(category_id=77)], {}, "e.g. 77 .*silently leave them out; list"),
    "crowd": ([dict(iscrowd="0")], {}, "iscrowd that is neither 0 nor 1"),
    "no annotation": (
        [dict(image_id=7)], dict(images=[{}, {}]), "2 of 2 images .* nothing is left: 2 have no"),
    "small": ([{}], dict(images=[dict(height=31)]), "nothing is left: 0 .*1 have a side of fewer"),
    "both": ([{}], dict(images=[dict(height=30), {}]), "left: 1 have no .* 1 have a side"),
    "no image": ([], dict(images=[]), "lists no image"),
    "classes": ([], dict(classes=("x", "y")), r"classes: 2 of 2 classes.*\(a, b\)"),
    "order": ([], dict(classes=("b", "a")), "another order"),
    "list as text": ([], dict(classes="a, b"), r"list of names is needed: write \('a', 'b'\)"),
    "backslash": ([], dict(images=[dict(file_name="sub\\1.jpg")]), "1 have backslashes, as on Wi"),
    "case": ([], dict(images=[dict(file_name="1.JPG")]), "there is '1.jpg': upper and lower case"),
    "gone": ([], dict(images=[{}, dict(file_name="x.jpg"), dict(file_name="y/z.jpg")]),
             "2 of the 3 images in .* are not in '.*', e.g. 'x.jpg'$"),
    "no JSON": ([], dict(text="{"), "is not a JSON file"),
    "deep": ([], dict(text="[" * 200_000), "is nested too deeply"),
    "digits": ([], dict(text='{"images": [' + "9" * 5000 + "]}"), "is not a JSON file"),
    "list": ([], dict(text="[1]"), "is not a COCO annotation file: it is a list"),
    "no categories": ([], dict(text='{"images": []}'), "file: it has no 'categories'"),
    "detections": ([], dict(text='[{"image_id": 1, "score": 0.5}]'), "it is a list of detections"),
    "LabelMe": ([], dict(text='{"shapes": [], "imagePath": "1"}'), "it is a LabelMe file"),
    "VIA": ([], dict(text='{"1": {"filename": "1", "regions": []}}'), "it is a VIA"),
    "OpenMMLab": ([], dict(text='{"metainfo": {}, "data_list": []}'), "in OpenMMLab's own format"),
    "image": ([], dict(images=[dict(file_name=..., width=...)]), "no 'file_name' and no 'width'"),
    "annotation": ([{}, dict(category_id=...)], {}, r"annotations\[1\] has no 'category_id'"),
    "width": ([], dict(images=[dict(width=None)]), r"images\[0\].width is None"),
    "name": ([], dict(text='{"images": [], "categories": ["cat"]}'), "categories.0. is 'cat'"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(what, tmp_path):
    annotations, changes, words = REFUSED[what]
    cfg = coco(tmp_path, *annotations, **changes)
    assert refused(cfg, words).count("\n  - ") == 1
    if what in ("no annotation", "small"):
        cfg.train_dataloader.dataset.filter_cfg = None
        check_data(cfg, ("train",))


def test_file_that_cannot_be_read(tmp_path):
    cfg = coco(tmp_path)
    (tmp_path / "a.json").unlink()
    (tmp_path / "a.json").symlink_to("/proc/self/mem")  # opens and gives an error, to root as well
    refused(cfg, r"a.json' cannot be read \(Input/output error\)")


def test_classes_without_a_comma(tmp_path):
    """A repair makes a list of them, also without checks."""
    cfg = coco(tmp_path, classes="a")
    data = cfg.train_dataloader.dataset
    assert "class-text" in found(cfg) and data.metainfo.classes == "a"
    check_data(cfg, ("train",))
    assert data.metainfo.classes == "a"  # a check changes nothing
    (line,) = prepare_data(cfg, ("train",), check=False)
    assert "its classes are text, 'a': read as ('a',), with a comma" in line
    assert built(cfg).metainfo["classes"] == ("a",)
    names = write(tmp_path / "names.txt", "a\n")
    cfg = coco(tmp_path, classes=str(names))
    assert found(cfg) == {} and repair(cfg, ("train",)) == []


def test_classes_of_loaders_heads_and_the_library(tmp_path):
    cfg = coco(tmp_path, categories=("a", "b", "c"), classes=("a", "b", "c"))
    cfg.model.roi_head.bbox_head = [dict(num_classes=3), dict(num_classes=80)]
    refused(cfg, "bbox_head.1.num_classes is 80, .*: set it to 3$")
    cfg = coco(tmp_path, categories=("a", "b", "c"), classes=("a", "b", "c"))
    cfg.val_dataloader.dataset.metainfo = dict(classes=["a"])
    words = r"val_dataloader.dataset: its 1 classes differ from the 3 .*\(only there: b, c;"
    refused(cfg, words, "train", "val")
    del cfg.train_dataloader.dataset.metainfo  # COCO's 80 classes
    refused(cfg, "metainfo.classes: 80 of 80 .*\n.*differ from the 80", "train", "val")


def test_evaluator_of_other_data(tmp_path):
    cfg = coco(tmp_path)
    other = write(tmp_path / "b.json", (tmp_path / "a.json").read_bytes())
    for path, words in ((other, "is not the file of val_dataloader"), ("c.json", "no annotation")):
        cfg.val_evaluator.ann_file = str(path)
        refused(cfg, f"val_evaluator.ann_file: .*{words}", "val")


def test_images_to_test_on_need_no_categories(tmp_path):
    """mmdet asks for them, so a copy has those of the classes."""
    cfg = coco(tmp_path, categories=(), annotations=[])
    assert set(found(cfg, "val")) == {"no-annotation"}
    content = json.loads((tmp_path / "a.json").read_text())
    write(tmp_path / "a.json", json.dumps(dict(images=content["images"])))
    assert set(found(cfg, "val")) == {"no-annotation"}
    lines = prepare_data(cfg, ("val",))
    assert len(lines) == 2 and all("has no categories, which mmdet asks for" in x for x in lines)
    assert len(built(cfg, "val")) == 1


# Scoring: changes of one of two annotations, kind of the error, what pycocotools says -------------

UNSUPPORTED = "input type is not supported"
POINT, LINE = [[1, 2]], [[1, 2, 3, 4]]  # four numbers are a box to pycocotools
STOPS = {
    "point": (dict(segmentation=POINT), "unscorable-mask", UNSUPPORTED),
    "line first": (dict(segmentation=[*LINE, CORNERS]), "unscorable-mask", "incorrect type"),
    "no counts": (dict(segmentation=dict(size=[48, 60])), "unscorable-mask", "counts"),
    "counts null": (dict(segmentation=dict(RLE, counts=None)), "unscorable-mask", "None"),
    "no size": (dict(segmentation=dict(counts=RLE["counts"])), "unscorable-mask", "size"),
    "size a number": (dict(segmentation=dict(counts=[1, 2], size=5)), "rle-size", "int"),
    "no mask": (dict(segmentation=...), "no-mask", "segmentation"),
    "mask empty": (dict(segmentation=[]), "no-mask", "index"),
    "ignored, no mask": (dict(ignore=1, segmentation=...), "no-mask", "segmentation"),
    "outside, point": (
        dict(bbox=[80, 6, 9, 9], segmentation=POINT), "unscorable-mask", UNSUPPORTED),
    "ignored, no area": (dict(ignore=1, area=...), "incomplete", "area"),
    # scoring would not end
    "ignored, runs": (dict(ignore=1, segmentation=dict(RLE, counts=[5, 5])), "broken-rle", None),
}  # fmt: skip


def score(cfg):
    """AP of the boxes and masks of one detector, which finds the object that is not changed."""
    from mmdet.evaluation import CocoMetric

    metric = CocoMetric(ann_file=cfg.val_evaluator.ann_file, metric=list(cfg.val_evaluator.metric))
    metric.dataset_meta = dict(classes=("a",))
    mask = torch.zeros(1, *SIZE[::-1], dtype=torch.bool)
    mask[0, 6:24, 6:30] = True
    box, one = torch.tensor([[6.0, 6, 30, 24]]), torch.tensor([0.9])
    predicted = dict(bboxes=box, scores=one, labels=torch.tensor([0]), masks=mask)
    metric.process({}, [dict(img_id=1, ori_shape=SIZE[::-1], pred_instances=predicted)])
    return metric.evaluate(1)


@pytest.mark.parametrize("masks", [True, False], ids=["masks loaded", "masks not loaded"])
@pytest.mark.parametrize("what", STOPS)
def test_what_stops_scoring_is_an_error(what, masks, tmp_path):
    changes, kind, message = STOPS[what]
    cfg = coco(tmp_path, {}, changes, masks=masks)
    assert found(cfg, "val")[kind].severity == "error"
    if message:
        with pytest.raises(Exception, match=message):
            score(cfg)


# changes, findings, metrics
GOES_ON = {
    "three and a half": (dict(segmentation=[[*CORNERS, 5]]), {"short-polygons": "warning"}),
    "point behind": (dict(segmentation=[CORNERS, *POINT]), {"short-part": "note"}),
    "ignored": (dict(ignore=1), {"ignored": "warning"}),
    "outside": (dict(bbox=[80, 6, 9, 9]), {"outside": "warning"}),
    "iscrowd as true": (dict(iscrowd=True, segmentation=RLE), {"crowd": "note"}),
    "size in fractions": (dict(segmentation=dict(RLE, size=[48.0, 60.0]), area=48), {}),
    "other class": (
        dict(category_id=2, segmentation=POINT, iscrowd=...), {"other-class": "warning"}),
    "other image": (dict(image_id=7, segmentation=POINT, iscrowd=...), {"no-image": "warning"}),
    "boxes of points": (dict(segmentation=POINT), {"short-polygons": "warning"}, ["bbox"]),
    "boxes": (dict(segmentation=...), {}, ["bbox"], False),
}  # fmt: skip


@pytest.mark.parametrize("what", GOES_ON)
def test_what_is_scored_is_no_error(what, tmp_path):
    changes, expected, *how = GOES_ON[what]
    how = dict(zip(("metric", "masks"), how, strict=False))
    cfg = coco(tmp_path, {}, changes, **how)
    assert {kind: one.severity for kind, one in found(cfg, "val").items()} == expected
    assert "coco/bbox_mAP" in score(cfg)


def test_without_a_metric_what_is_loaded_is_scored(tmp_path):
    """As `tools/data/check_dataset.py --coco` has it."""
    cfg = coco(tmp_path, {}, dict(segmentation=POINT), metric=None)
    assert said(found(cfg, "val")) == {"unscorable-mask": "error 1"}


# changes, kind, words of the repair, what stops without it, APs before and after
COPIES = {
    "id 0": ([dict(id=0), dict(bbox=[36, 24, 20, 20])], "id-0", "0 or by text", None),
    "no crowd": ([{}, dict(iscrowd=...)], "no-crowd", "where it is 0 in 1 annotation", "iscrowd"),
    "crowd null": ([{}, dict(iscrowd=None)], "no-crowd", "leaves iscrowd out", "NoneType"),
    "one id": (
        [dict(id=1), dict(id=1, bbox=[6, 6, 12, 18])], "annotations-id-twice", "one id", None),
}  # fmt: skip


@pytest.mark.parametrize("what", COPIES)
def test_what_is_scored_in_a_copy(what, tmp_path):
    """The user's file stays, and the scores are those of a file without the fault."""
    annotations, kind, words, message = COPIES[what]
    whole = [{k: v for k, v in one.items() if k not in ("id", "iscrowd")} for one in annotations]
    expected = score(coco(tmp_path / "whole", *whole))
    cfg = coco(tmp_path, *annotations)
    path = Path(cfg.val_evaluator.ann_file)
    before = path.read_bytes()
    assert said(found(cfg, "val")) == {kind: "note 1"}
    assert found(cfg) == {} or what == "one id"  # training does not mind
    if message:
        with pytest.raises(Exception, match=message):
            score(cfg)
    elif what == "one id":
        with pytest.raises(AssertionError, match="not unique"):
            built(cfg, "val")
    else:
        assert score(cfg) != expected  # a match with id 0 counts as a miss
    lines = prepare_data(cfg, ("val",))
    assert all(words in line and "_repaired_" in line for line in lines) and lines
    assert path.read_bytes() == before and score(cfg) == expected
    assert tmp_path / "work" in Path(cfg.val_evaluator.ann_file).parents
    assert len(truth(built(cfg, "val")).gt_instances) == 2
    assert repair(cfg, ("val",)) == []  # of the copy there is nothing to repair


# Shapes, areas, sizes -----------------------------------------------------------------------------

TRIANGLE = [[6, 6, 30, 6, 30, 24]]
AREAS = {
    "box": (dict(segmentation=...), False),
    "a twentieth": (dict(segmentation=..., area=21), True),
    "twice the box": (dict(segmentation=..., area=900), True),
    "polygon": (dict(segmentation=TRIANGLE, area=216), False),
    "polygon, a twentieth": (dict(segmentation=TRIANGLE, area=11), True),
    "runs": (dict(segmentation=dict(RLE, counts=[300, 432, 2148])), False),
    "runs, a twentieth": (dict(segmentation=dict(RLE, counts=[30, 800, 2050]), area=40), True),
    "crowd": (dict(segmentation=..., area=5, iscrowd=1), False),
}


@pytest.mark.parametrize("what", AREAS)
def test_areas(what, tmp_path):
    """Cheap before a run, and in full; both say the same."""
    cfg = coco(tmp_path, AREAS[what][0], masks=False, metric=["bbox"])
    warned = any("have an area that does not" in x for x in check_data(cfg, ("val",)))
    in_full = "area" in found_in_full(cfg)
    assert warned == ("area" in found(cfg, "val")) == in_full == AREAS[what][1]


def crosses_itself(polygon):
    one = dict(bbox=[0, 0, 1, 1], area=1, segmentation=[polygon])
    return "crossing" in shape_faults((one, dict(width=99, height=99)), True)


def test_crossing_edges(tmp_path):
    bow, corner = [0, 0, 8, 8, 8, 0, 0, 8], [0, 0, 8, 0, 8, 8, 4, 8, 4, 4, 0, 4]
    touching = [0, 0, 4, 4, 8, 0, 8, 8, 4, 4, 0, 8]
    assert [crosses_itself(one) for one in (bow, corner, touching)] == [True, False, False]
    twice = [0, 0, 40, 0, 40, 40, 0, 40, 10, 5, 30, 5, 30, 30, 10, 30]
    nothing = [6, 6, 30, 24, 18, 15]
    for polygon in (twice, nothing):  # as mmdet draws them
        masks = truth(built(coco(tmp_path, dict(segmentation=[polygon])))).gt_instances.masks.masks
        assert crosses_itself(polygon) == (polygon is twice) == bool(masks.sum())
    masks = truth(built(coco(tmp_path, dict(segmentation=[twice])))).gt_instances.masks.masks
    assert masks[0, 35, 20] and not masks[0, 20, 20]


def test_runs_of_random_masks_are_whole():
    rng = np.random.default_rng(0)
    for share in rng.random(100):
        mask = np.asfortranarray(rng.random(rng.integers(1, 70, 2)) < share**3, np.uint8)
        height, width = mask.shape
        counts = mask_utils.encode(mask)["counts"].decode()
        assert is_whole(dict(size=[height, width], counts=counts))
        assert not is_whole(dict(size=[height, width + 1], counts=counts))


# bbox, the picture's file, its sides in the annotation file, kind, words of checker and guard
SIZES = {
    "annotated turned": ([6, 6, 24, 52], TURNED, SIZE, "turned-sides", "swap width and height"),
    "unturned": ([30, 6, 28, 18], TURNED, SIZE, "turned-size", "take the EXIF orientation out"),
    "unknown": ([6, 6, 24, 18], TURNED, SIZE, "turned-unknown", "is not to be told"),
    "another": ([6, 6, 24, 18], encoded(picture((30, 24))), SIZE, "size", "that were annotated"),
    "right": ([6, 6, 24, 18], TURNED, SIZE[::-1], None, None),
    "upright": ([6, 6, 24, 18], JPG, SIZE, None, None),
}


@pytest.mark.parametrize("what", SIZES)
def test_sizes(what, tmp_path):
    """What to do about EXIF is told by the boxes, in full and at the sample."""
    box, file, (width, height), kind, words = SIZES[what]
    one = dict(bbox=box, area=box[2] * box[3], segmentation=...)
    images = [dict(width=width, height=height)]
    cfg = coco(tmp_path, one, images=images, files=[file], masks=False, metric=["bbox"])
    kinds = found_in_full(cfg)
    assert {x for x in kinds if "turned-" in x or x == "size"} == ({kind} if kind else set())
    if kind is None:
        assert truth(built(cfg)).ori_shape == (height, width)
        return
    text = sample_refused(cfg, "1.jpg' is loaded as .*annotations are for 60x48")
    assert words in text and words in kinds[kind].text
    if kind != "size":
        cfg.train_dataloader.dataset.pipeline[0]["color_type"] = "color_ignore_orientation"
        assert truth(built(cfg)).ori_shape == SIZE[::-1]
