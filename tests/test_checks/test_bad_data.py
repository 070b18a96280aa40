"""What training does with bad data: refused by name, or handled and counted, as the docs say.

Every file is real and goes through the libraries' own data sets and the pipelines of our configs.
"""

import copy
import functools
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
pytest.importorskip("mmpretrain")

from golden import CONFIGS
from mmengine.config import Config
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from PIL import Image
from pycocotools import mask as mask_utils
from tool_runs import ROOT, small_config
from torch.utils.data import DataLoader

from vig_mm.checks.data import DataCheck, check_data
from vig_mm.checks.data import guard as guard_module
from vig_mm.checks.data.coco import is_whole, shape_faults
from vig_mm.checks.data.guard import guard
from vig_mm.checks.data.images import FAULTS, file_fault
from vig_mm.checks.data.repair import repair
from vig_mm.errors import DataError, SampleError

SIZE = (60, 48)  # (width, height) of the pictures, in pixels
UPPER_LEFT_TURNED = 6  # EXIF orientation: the picture lies on its left side


def picture(size=SIZE, seed=0):
    """Squares of random colours."""
    colours = np.random.default_rng(seed).integers(0, 256, (size[1] // 6, size[0] // 6, 3))
    return Image.fromarray(np.kron(colours, np.ones((6, 6, 1))).astype(np.uint8))


def encoded(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


JPG, PNG = encoded(picture(), quality=95), encoded(picture(), "PNG")
CUT = len(JPG) * 6 // 10


@functools.cache
def read(name):
    return Config.fromfile(CONFIGS / name)


def config_of(name):
    return copy.deepcopy(read(name))


def dataset_of(config, scope, **changes):
    """The guarded training data set of a config."""
    cfg = config_of(config).train_dataloader.dataset
    cfg.update(changes)
    with DATASETS.switch_scope_and_registry(scope) as registry:
        dataset = registry.build(cfg)
    guard(dataset)
    return dataset


# Pictures --------------------------------------------------------------------------------------


@pytest.fixture
def classification(tmp_path):
    """`classification(name=bytes)`: a data set of the files, without augmentation."""

    def make(pipeline=(dict(type="LoadImageFromFile"), dict(type="PackInputs")), **files):
        for name, content in files.items():
            path = tmp_path / "train" / "a" / name.replace("__", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        changes = dict(data_root=str(tmp_path), pipeline=list(pipeline), serialize_data=False)
        return dataset_of("mmpretrain/vig-h-mini_digits.py", "mmpretrain", **changes)

    return make


def pixels(dataset):
    """The only picture of a data set, as the network's input (BGR): uint8 [3, h, w]."""
    return dataset[0]["inputs"].numpy()


BROKEN = {
    "empty": (b"", "is empty (0 bytes)"),
    "cut jpg": (JPG[:CUT], "is cut off"),
    "jpg with zeros for the rest": (JPG[:CUT] + bytes(len(JPG) - CUT), "is cut off"),
    "cut progressive jpg": (encoded(picture(), progressive=True)[:-300], "is cut off"),
    "jpg cut in its header": (JPG[:100], "is cut off"),
    "cut png": (PNG[:-200], "is cut off"),
    "cut webp": (encoded(picture(), "WEBP")[:-200], "is cut off"),
    "page for a picture": (b"<!DOCTYPE html><html>404</html>", "failed to load image"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_picture_is_refused_by_name(what, classification, tmp_path):
    content, message = BROKEN[what]
    dataset = classification(bad__jpg=content)
    with pytest.raises(SampleError, match=re.escape(message)) as error:
        dataset[0]
    assert str(tmp_path / "train/a/bad.jpg") in str(error.value)
    assert "check_dataset.py" in str(error.value)


def test_missing_picture_is_refused_by_name(classification, tmp_path):
    dataset = classification(gone__jpg=JPG)
    (tmp_path / "train/a/gone.jpg").unlink()
    with pytest.raises(SampleError, match="gone.jpg' is not there"):
        dataset[0]


def test_whole_files_are_not_suspected(tmp_path):
    """Bytes behind the end (films, zeros), and a preview in the header with an end of its own."""
    preview = b"\xff\xe1" + (len(JPG) + 2).to_bytes(2, "big") + JPG
    files = {
        "plain": JPG,
        "progressive": encoded(picture(), progressive=True),
        "zeros": JPG + bytes(90),
        "film": JPG + b"\xff\xda film",
        "preview": JPG[:2] + preview + JPG[2:],
        "png": PNG,
        "png and more": PNG + b"more",
        "gif": encoded(picture(), "GIF"),
        "bmp": encoded(picture(), "BMP"),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        assert file_fault(str(tmp_path / name)) is None, name
    cut = JPG[:2] + preview + JPG[2:CUT]
    (tmp_path / "cut").write_bytes(cut)
    assert file_fault(str(tmp_path / "cut")) == "truncated"


def test_error_of_a_worker_is_one_message(classification):
    dataset = classification(bad__jpg=b"")
    loader = DataLoader(dataset, num_workers=1, collate_fn=list)
    with pytest.raises(SampleError) as error:
        next(iter(loader))
    message = str(error.value)
    assert message.startswith("'") and "\n" not in message and FAULTS["empty"] in message


def test_wrapped_data_sets_are_guarded(tmp_path):
    (tmp_path / "bad.jpg").write_bytes(JPG[:CUT])
    leaf = dict(
        type="mmpretrain.CustomDataset",
        data_root=str(tmp_path),
        with_label=False,
        pipeline=[dict(type="LoadImageFromFile")],
    )
    both = dict(type="ConcatDataset", datasets=[leaf, leaf])
    runner = SimpleNamespace(build_dataloader=Runner.build_dataloader)
    guard_module.guard_loaders(runner)
    loader = runner.build_dataloader(
        dict(
            dataset=dict(type="RepeatDataset", times=2, dataset=both),
            sampler=dict(type="DefaultSampler", shuffle=False),
            batch_size=1,
            num_batch_per_epoch=3,
        )
    )
    for i in range(3):
        with pytest.raises(SampleError, match="bad.jpg' is cut off"):
            loader.dataset[i]


def test_ignore_empty_takes_another_and_says_so(classification, monkeypatch):
    load = dict(type="LoadImageFromFile", ignore_empty=True)
    good = encoded(Image.new("RGB", SIZE, "red"))
    dataset = classification([load, dict(type="PackInputs")], bad__jpg=JPG[:CUT], good__jpg=good)
    messages = []
    monkeypatch.setattr(guard_module, "print_log", lambda text, *_: messages.append(text))
    assert "good" in dataset[0]["data_samples"].img_path
    assert messages and "bad.jpg' is cut off" in messages[0]


def test_grey_becomes_three_equal_channels(classification):
    image = pixels(classification(grey__jpg=encoded(picture().convert("L"))))
    assert image.shape == (3, 48, 60)
    assert np.array_equal(image[0], image[1]) and np.array_equal(image[0], image[2])


def test_cmyk_becomes_rgb(classification):
    cyan = Image.new("CMYK", SIZE, (255, 0, 0, 0))
    blue, green, red = pixels(classification(cmyk__jpg=encoded(cyan)))[:, 20, 20].astype(int)
    assert red < 60 and green > 150 and blue > 200


def test_transparency_is_dropped(classification):
    image = picture()
    image.putalpha(0)
    shown = pixels(classification(alpha__png=encoded(image, "PNG")))
    assert np.array_equal(shown[::-1], np.asarray(picture()).transpose(2, 0, 1))


def test_palette_becomes_rgb(classification):
    image = picture().convert("P")
    shown = pixels(classification(palette__png=encoded(image, "PNG")))
    assert np.array_equal(shown[::-1], np.asarray(image.convert("RGB")).transpose(2, 0, 1))


def test_16_bits_lose_the_lower_8(classification):
    values = np.arange(48 * 60, dtype=np.uint16).reshape(48, 60) * 22
    shown = pixels(classification(deep__png=encoded(Image.fromarray(values), "PNG")))
    assert abs(shown.astype(int) - (values >> 8)).max() <= 1


def test_exif_orientation_turns_the_picture(classification):
    turned = encoded(picture(), exif=exif(UPPER_LEFT_TURNED))
    assert pixels(classification(turned__jpg=turned)).shape == (3, 60, 48)


# COCO ------------------------------------------------------------------------------------------

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def annotation(**changes):
    box = [6, 6, 24, 18]
    corners = [6, 6, 30, 6, 30, 24, 6, 24]
    whole = dict(image_id=1, category_id=1, bbox=box, area=24 * 18, segmentation=[corners])
    return {**whole, "iscrowd": 0, **changes}


@pytest.fixture
def coco(tmp_path):
    """`coco(annotations, images)`: config with the file as training data, and its content."""

    def make(annotations, images=({},), files=(), categories=CLASSES):
        (tmp_path / "train").mkdir()
        listed = []
        for number, image in enumerate(images, 1):
            named = dict(id=number, file_name=f"{number}.jpg", width=SIZE[0], height=SIZE[1])
            listed.append({**named, **image})
            (tmp_path / "train" / f"{number}.jpg").write_bytes(files[number - 1] if files else JPG)
        content = dict(
            images=listed,
            annotations=[{"id": i, **one} for i, one in enumerate(annotations, 1)],
            categories=[dict(id=i, name=name) for i, name in enumerate(categories, 1)],
        )
        (tmp_path / "train.json").write_text(json.dumps(content))
        cfg = config_of("mmdet/mask-rcnn_vig-h-mini_fpn_digits.py")
        data = dict(data_root=str(tmp_path), ann_file="train.json", serialize_data=False)
        cfg.train_dataloader.dataset.update(data)
        return cfg

    return make


def built(cfg):
    with DATASETS.switch_scope_and_registry("mmdet") as registry:
        dataset = registry.build(cfg.train_dataloader.dataset)
    guard(dataset)
    return dataset


def truth(dataset, index=0):
    """Boxes and masks that are learned from, before any resizing."""
    dataset.pipeline.transforms = [
        one for one in dataset.pipeline.transforms if type(one).__name__ != "Resize"
    ]
    return dataset[index]["data_samples"]


def counts(cfg):
    found = DataCheck(cfg, ("train",)).findings
    return {one.kind: one.count for one in found if one.kind not in ("unused-class",)}


RLE = mask_utils.encode(np.asfortranarray(np.eye(*SIZE[::-1], dtype=np.uint8)))["counts"].decode()
HALF = SIZE[0] * SIZE[1] // 2
# kind: an annotation of it, that mmdet's data set or its loading leaves out
LEFT_OUT = {
    "ignored": dict(ignore=1),
    "outside": dict(bbox=[80, 6, 10, 10]),
    "no-area": dict(bbox=[6, 6, 0.5, 18]),
    "other-class": dict(category_id=11),
    "no-image": dict(image_id=7),
    "short-polygons": dict(segmentation=[[1, 1, 2, 2], [1, 2, 3, 4, 5, 6, 7]]),
    "bad-rle": dict(segmentation=dict(counts=RLE)),
}
CROWDS = {
    "compressed": dict(size=SIZE[::-1], counts=RLE),
    "uncompressed": dict(size=SIZE[::-1], counts=[HALF, HALF]),
    "polygon": [[0, 0, 60, 0, 60, 24, 0, 24]],
}


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_what_mmdet_leaves_out_is_counted(kind, coco):
    bad = annotation(**LEFT_OUT[kind])
    cfg = coco([annotation(), bad, bad], categories=(*CLASSES, "ten"))
    assert counts(cfg) == {kind: 2}
    (line,) = check_data(cfg, ("train",))
    assert line.startswith("train_dataloader.dataset: mmdet leaves out 2 annotations ")
    assert len(truth(built(cfg)).gt_instances) == 1


def test_what_is_kept_is_not_counted(coco):
    cfg = coco([annotation(), annotation(bbox=[-5, -5, 30, 30]), annotation(area=0.5)])
    assert counts(cfg) == {} and check_data(cfg, ("train",)) == []
    assert len(truth(built(cfg)).gt_instances) == 3


@pytest.mark.parametrize("kind", CROWDS)
def test_crowds_are_put_aside(kind, coco):
    cfg = coco([annotation(), annotation(iscrowd=1, segmentation=CROWDS[kind])])
    assert counts(cfg) == {"crowd": 1}
    assert "leaves out 1 annotation marked iscrowd=1" in check_data(cfg, ("train",))[0]
    sample = truth(built(cfg))
    assert len(sample.gt_instances) == 1 and len(sample.ignored_instances) == 1
    area = {"compressed": 48, "uncompressed": HALF, "polygon": HALF}[kind]
    assert sample.ignored_instances.masks.masks.sum() == area


def test_images_that_mmdet_leaves_out_are_counted(coco):
    """Of five: one is small, one has no annotation, and one has none that is left."""
    of = dict(bbox=[80, 6, 10, 10])
    annotations = [annotation(), annotation(image_id=2), annotation(image_id=4, **of)]
    cfg = coco(annotations, images=({}, dict(height=30), {}, {}, {}))
    assert counts(cfg) == {"outside": 1, "no-annotation": 2, "nothing-left": 1, "min-size": 1}
    (line,) = check_data(cfg, ("train",))
    for part in ("2 images without annotations", "1 image with a side below 32 pixels"):
        assert part in line
    dataset = built(cfg)
    assert [info["img_id"] for info in dataset.data_list] == [1, 4]
    assert len(truth(dataset, 1).gt_instances) == 0


def test_data_set_that_no_image_is_left_of_is_refused(coco):
    """Of two images one is small, and the other has no annotation."""
    cfg = coco([annotation()], images=(dict(height=30), {}))
    with pytest.raises(
        DataError, match="2 of 2 images .* are left out .* 1 have no .* 1 have a side"
    ):
        check_data(cfg, ("train",))
    del cfg.train_dataloader.dataset.serialize_data
    with pytest.raises(ValueError, match="need at least one array to concatenate"):
        built(cfg)


def test_picture_that_is_listed_twice_is_two_images(coco):
    cfg = coco([annotation(), annotation(image_id=2)], images=({}, dict(file_name="1.jpg")))
    assert counts(cfg) == {"file-name-twice": 1}
    dataset = built(cfg)
    assert len({info["img_path"] for info in dataset.data_list}) == 1
    assert [len(info["instances"]) for info in dataset.data_list] == [1, 1]


REFUSED = {
    "incomplete": [annotation(area=None), annotation(bbox=None)],
    "bad-box": [annotation(bbox=[6, 6, 24]), annotation(bbox=[6, 6, float("nan"), 18])],
    "no-mask": [annotation(segmentation=[]), annotation(segmentation=None)],
    "bad-polygon": [annotation(segmentation=[6, 6, 30, 6, 30, 24]), annotation(segmentation="x")],
    "rle-size": [annotation(segmentation=dict(size=[8, 8], counts=[60, 4]))],
    "broken-rle": [
        annotation(segmentation=dict(size=SIZE[::-1], counts=RLE[:-1])),
        annotation(segmentation=dict(size=SIZE[::-1], counts=[5, 5])),
    ],
    "annotation-twice": [annotation(id=5), annotation(id=5)],
}


@pytest.mark.parametrize("kind", REFUSED)
def test_annotations_that_cannot_be_trained_on_are_refused(kind, coco):
    cfg = coco(REFUSED[kind])
    expected = 1 if kind.endswith("twice") else len(REFUSED[kind])
    found = [one for one in DataCheck(cfg, ("train",)).findings if one.severity == "error"]
    assert [(one.kind, one.count) for one in found] == [(kind, expected)]
    with pytest.raises(DataError, match="train.json'.* e.g. "):
        check_data(cfg, ("train",))


def test_annotations_without_masks_are_fine_for_boxes(coco):
    cfg = coco([annotation(segmentation=None)])
    for transform in cfg.train_dataloader.dataset.pipeline:
        if transform["type"] == "LoadAnnotations":
            transform["with_mask"] = False
    assert counts(cfg) == {}
    assert len(truth(built(cfg)).gt_instances) == 1


def test_images_that_share_an_id_are_refused(coco):
    cfg = coco([annotation()], images=({}, dict(id=1)))
    with pytest.raises(DataError, match="are ids of several images, .* all but one would be lost"):
        check_data(cfg, ("train",))
    assert len(built(cfg)) == 1


def test_polygon_that_encloses_nothing_keeps_an_empty_mask(coco):
    cfg = coco([annotation(segmentation=[[6, 6, 30, 24, 18, 15]])])
    assert truth(built(cfg)).gt_instances.masks.masks.sum() == 0


def test_polygon_that_crosses_itself_has_a_hole(coco):
    outer, inner = [0, 0, 40, 0, 40, 40, 0, 40], [10, 5, 30, 5, 30, 30, 10, 30]
    twice = [*outer, *inner]
    assert not crosses_itself(outer) and crosses_itself(twice)
    mask = truth(built(coco([annotation(segmentation=[twice])]))).gt_instances.masks.masks[0]
    assert mask[35, 20] and not mask[20, 20]


def crosses_itself(polygon):
    one = dict(bbox=[0, 0, 1, 1], area=1, segmentation=[list(polygon)])
    return "crossing" in shape_faults((one, (99, 99)), True)


def test_crossing_edges():
    bow, corner = [0, 0, 8, 8, 8, 0, 0, 8], [0, 0, 8, 0, 8, 8, 4, 8, 4, 4, 0, 4]
    touching = [0, 0, 4, 4, 8, 0, 8, 8, 4, 4, 0, 8]
    assert [crosses_itself(one) for one in (bow, corner, touching)] == [True, False, False]


def test_random_polygons():
    """Two edges pass through each other, by the sides that their ends lie on."""
    rng, seen = np.random.default_rng(0), []
    for count in rng.integers(3, 7, 200):
        start = rng.random((count, 2)) * 40
        edge = (np.roll(start, -1, axis=0) - start)[:, None]

        def side(points, start=start, edge=edge):
            to = points[None] - start[:, None]
            return np.sign(edge[..., 0] * to[..., 1] - edge[..., 1] * to[..., 0])

        parts = np.round(side(start) * side(np.roll(start, -1, axis=0))) < 0
        np.fill_diagonal(parts, False)
        for i in range(count):  # neighbours share a point
            parts[i, (i + 1) % count] = parts[i, i - 1] = False
        seen.append(bool((parts & parts.T).any()))
        assert crosses_itself(start.ravel()) == seen[-1], start
    assert 50 < sum(seen) < 150


def test_runs_of_random_masks_are_whole():
    rng = np.random.default_rng(0)
    for share in rng.random(100):
        mask = np.asfortranarray(rng.random(rng.integers(1, 70, 2)) < share**3, np.uint8)
        height, width = mask.shape
        counts = mask_utils.encode(mask)["counts"].decode()
        assert is_whole(dict(size=[height, width], counts=counts))
        assert not is_whole(dict(size=[height, width + 1], counts=counts))


@pytest.mark.parametrize("upright", [False, True], ids=["annotated unturned", "annotated turned"])
def test_exif_orientation_against_annotations(upright, coco, tmp_path):
    """mmcv turns the picture; boxes of the unturned one would be learned in wrong places."""
    turned = encoded(picture(), exif=exif(UPPER_LEFT_TURNED))
    image = dict(width=SIZE[1], height=SIZE[0]) if upright else {}
    cfg = coco([annotation()], images=(image,), files=(turned,))
    if upright:
        assert truth(built(cfg)).ori_shape == SIZE
        return
    with pytest.raises(SampleError, match="loaded as 48x60 .*EXIF.* annotations are for 60x48"):
        built(cfg)[0]
    cfg.train_dataloader.dataset.pipeline[0]["color_type"] = "color_ignore_orientation"
    assert truth(built(cfg)).ori_shape == SIZE[::-1]


def test_picture_of_another_size_than_its_annotations(coco):
    cfg = coco([annotation()], files=(encoded(picture((30, 24))),))
    with pytest.raises(SampleError, match="1.jpg' is loaded as 30x24 .* annotations are for 60x48"):
        built(cfg)[0]


def test_id_0_is_scored_in_a_copy(coco, tmp_path):
    """A perfect detector on two objects, one of them with id 0, which counts as a miss."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    cfg = coco([annotation(id=0), annotation(bbox=[36, 24, 20, 20])])
    path = cfg.train_dataloader.dataset.data_root + "/train.json"
    reference = COCO(path)
    perfect = [
        dict(image_id=1, category_id=1, bbox=one["bbox"], score=1)
        for one in reference.dataset["annotations"]
    ]
    evaluation = COCOeval(reference, reference.loadRes(perfect), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] < 0.6
    assert check_data(cfg, ("train",)) == []  # training does not mind
    cfg.val_dataloader.dataset = cfg.train_dataloader.dataset
    cfg.val_evaluator.ann_file = path
    assert check_data(cfg, ("val",)) == []
    (found,) = (one for one in DataCheck(cfg, ("val",)).findings if one.kind == "id-0")
    assert "cannot score, 0" in found.text and "number the annotations from 1" in found.text

    before = Path(path).read_bytes()
    cfg.work_dir = str(tmp_path / "work")
    (line,) = repair(cfg, ("val",))
    scored = cfg.val_evaluator.ann_file
    assert f"it reads {scored!r}, where the 2 annotations count from 1" in line
    assert Path(path).read_bytes() == before and (tmp_path / "work") in Path(scored).parents
    evaluation = COCOeval(COCO(scored), COCO(scored).loadRes(perfect), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)
    assert repair(cfg, ("val",)) == []  # of the copy there is nothing to repair


OTHER_FORMATS = {
    "it is a list of detections": [dict(image_id=1, bbox=[1, 2, 3, 4], score=0.5)],
    "it is a LabelMe file": dict(shapes=[], imagePath="1.jpg"),
    "it is a VIA": {"1.jpg123": dict(filename="1.jpg", regions=[])},
    "it is in OpenMMLab's own format": dict(metainfo={}, data_list=[]),
    "it is a str": "images",
    "images[0] has no 'file_name' and no 'width'": dict(
        images=[dict(id=1, height=9)], categories=[]
    ),
    "annotations[1] has no 'category_id'": dict(
        images=[], categories=[], annotations=[annotation(id=1), dict(id=2, image_id=1)]
    ),
    "images[0].width is None": dict(
        images=[dict(id=1, file_name="1.jpg", height=9, width=None)], categories=[]
    ),
    "categories[0] is 'cat'": dict(images=[], categories=["cat"]),
}


@pytest.mark.parametrize("what", OTHER_FORMATS)
def test_json_that_is_not_coco(what, coco, tmp_path):
    cfg = coco([])
    (tmp_path / "train.json").write_text(json.dumps(OTHER_FORMATS[what]))
    with pytest.raises(DataError) as error:
        check_data(cfg, ("train",))
    assert f"{tmp_path}/train.json' is not a COCO annotation file: {what}" in str(error.value)


# Segmentation ----------------------------------------------------------------------------------


@pytest.fixture
def segmentation(tmp_path):
    """`segmentation(label map's bytes)`: a data set of one picture."""

    def make(label, reduce_zero_label=True, image=JPG, **changes):
        for name, content in (("images/1.jpg", image), ("labels/1.png", label)):
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        prefix = dict(img_path="images", seg_map_path="labels")
        pipeline = [dict(type=f"Load{one}") for one in ("ImageFromFile", "Annotations")]
        changes = {"pipeline": [*pipeline, dict(type="PackSegInputs")], **changes}
        return dataset_of(
            "mmseg/vig-h-mini_upernet_digits.py",
            "mmseg",
            data_root=str(tmp_path),
            data_prefix=prefix,
            reduce_zero_label=reduce_zero_label,
            **changes,
        )

    return make


def label_map(*values, size=SIZE, dtype=np.uint8):
    """Stripes of the values."""
    return np.resize(np.array(values, dtype), size[0])[None].repeat(size[1], axis=0)


def loaded(dataset):
    return dataset[0]["data_samples"].gt_sem_seg.data.unique().tolist()


def test_labels_are_loaded_as_documented(segmentation):
    """0 and 255 are no label, and 1 to 11 become 0 to 10."""
    values = label_map(*range(12), 255)
    assert loaded(segmentation(encoded(Image.fromarray(values), "PNG"))) == [*range(11), 255]


def test_labels_with_a_palette_are_numbers(segmentation):
    image = Image.fromarray(label_map(1, 5, 11))
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    assert image.mode == "P"
    assert loaded(segmentation(encoded(image, "PNG"))) == [0, 4, 10]


def test_labels_of_16_bits_are_numbers(segmentation):
    image = Image.fromarray(label_map(1, 5, 255, dtype=np.uint16))
    assert loaded(segmentation(encoded(image, "PNG"))) == [0, 4, 255]


BAD_LABELS = {
    "no class": (Image.fromarray(label_map(1, 12)), "holds labels of no class: 11"),
    "no 8 bits": (Image.fromarray(label_map(1, 257, dtype=np.uint16)), "holds the value 257"),
    "colours": (picture(), "is a picture of 3 colour channels"),
    "another size": (Image.fromarray(label_map(1, size=(30, 24))), "is 30x24 pixels"),
}


@pytest.mark.parametrize("what", BAD_LABELS)
def test_bad_labels_are_refused_by_name(what, segmentation, tmp_path):
    image, message = BAD_LABELS[what]
    dataset = segmentation(encoded(image, "PNG"))
    with pytest.raises(SampleError, match=message) as error:
        dataset[0]
    assert str(tmp_path / "labels/1.png") in str(error.value)


@pytest.mark.parametrize("what", ["empty", "cut png", "page for a picture"])
def test_broken_labels_are_refused_by_name(what, segmentation, tmp_path):
    dataset = segmentation(BROKEN[what][0])
    with pytest.raises(SampleError) as error:
        dataset[0]
    assert str(tmp_path / "labels/1.png") in str(error.value)


def test_labels_of_an_unturned_picture_are_refused(segmentation):
    turned = encoded(picture(), exif=exif(UPPER_LEFT_TURNED))
    dataset = segmentation(encoded(Image.fromarray(label_map(1)), "PNG"), image=turned)
    with pytest.raises(SampleError, match="is 60x48 pixels, but its image is loaded as 48x60"):
        dataset[0]


def test_labels_of_a_part_of_the_classes(segmentation):
    """The others become "no label"; numbers of no class at all are still refused."""
    part = dict(type="ADE20KDataset", metainfo=dict(classes=("wall", "sky")))
    image = encoded(Image.fromarray(label_map(1, 2, 3)), "PNG")
    assert loaded(segmentation(image, **part)) == [0, 1, 255]
    dataset = segmentation(encoded(Image.fromarray(label_map(1, 151)), "PNG"), **part)
    with pytest.raises(SampleError, match="labels of no class: 150"):
        dataset[0]


# Files that a data set does not take -----------------------------------------------------------


def test_files_of_another_ending_are_counted(tmp_path):
    for name in ("train/a/1.jpg", "train/b/1.jpg", "train/b/2.webp", "train/b/.hidden.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(JPG)
    cfg = config_of("mmpretrain/vig-h-mini_digits.py")
    cfg.train_dataloader.dataset.data_root = str(tmp_path)
    cfg.model = {}
    (line,) = check_data(cfg, ("train",))
    assert "mmpretrain leaves out 1 file in" in line and "do not end in one of" in line
    dataset = dataset_of(
        "mmpretrain/vig-h-mini_digits.py", "mmpretrain", data_root=str(tmp_path), pipeline=[]
    )
    assert len(dataset) == 2


def test_train_ends_in_one_message(tmp_path):
    """What is left out is in the log, and a bad file ends the run by name."""
    for name in "ab":
        folder = tmp_path / "train" / name
        folder.mkdir(parents=True)
        for i in range(4):
            (folder / f"{i}.jpg").write_bytes(JPG)
    (folder / "4.webp").write_bytes(JPG)
    (folder / "2.jpg").write_bytes(JPG[:CUT])
    changes = {
        "model.head.num_classes": 2,
        "model.data_preprocessor.num_classes": 2,
        "val_dataloader": None, "val_cfg": None, "val_evaluator": None,
        "train_dataloader.dataset.data_root": str(tmp_path),
    }  # fmt: skip
    config = small_config("mmpretrain/vig-h-mini_digits.py", tmp_path, changes)
    command = [sys.executable, "-W", "ignore", ROOT / "tools/train.py", config]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "mmpretrain leaves out 1 file in" in done.stdout + done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "tools/train.py: error: " in last and f"{folder}/2.jpg' is cut off" in last
