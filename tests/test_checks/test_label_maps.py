"""Label maps as they come: void numbers, 0 and 255, from 1, gaps, colours, 16 bits, own transforms.

Files are real and go through mmseg's data set, with and without the guard's word.
"""

import numpy as np
import pytest

pytest.importorskip("mmseg")

from mmengine.config import Config
from mmengine.registry import TRANSFORMS
from PIL import Image
from tiny_data import (
    JPG,
    SIZE,
    TURNED,
    built,
    encoded,
    found,
    label_map,
    picture,
    refused,
    said,
    sample_refused,
    seg,
    write,
)

from vig_mm.checks.data import check_data, label_maps
from vig_mm.datasets.transforms import MapLabels

RED, GREEN, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 0)
TEN = [f"c{i}" for i in range(11)]
ADE = dict(type="ADE20KDataset", metainfo=dict(classes=("wall", "sky")), reduce_zero_label=True)


def mapped(mapping, others=None):
    return [dict(type="vig_mm.MapLabels", mapping=mapping, others=others)]


def loaded(cfg, split="val"):
    """The numbers as the model gets them, through the guarded pipeline."""
    return built(cfg, split)[0]["data_samples"].gt_sem_seg.data.unique().tolist()


PALETTE = Image.fromarray(np.resize(np.array([1, 5, 11], np.uint8), SIZE[::-1]))
PALETTE.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
# label map, config, numbers as they are loaded
TAKEN = {
    "plain": ([0, 1, 2, 255], {}, [0, 1, 2, 255]),
    "reduced": ([*range(12), 255], dict(classes=TEN, reduce_zero_label=True), [*range(11), 255]),
    "palette": (
        encoded(PALETTE, "PNG"), dict(classes=TEN, reduce_zero_label=True), [0, 4, 10]),
    "16 bits": (encoded(Image.fromarray(np.uint16([[1] * 60, [2] * 60] * 24)), "PNG"), {}, [1, 2]),
    "void of its own": ([0, 1, 11], dict(classes=TEN, heads=11, metric=11, ignore_index=11),
                        [0, 1, 11]),
    "part of the classes": ([1, 2, 3, 150], ADE | dict(classes=("wall", "sky")), [0, 1, 255]),
    "from 1, mapped": ([1, 2, 3], dict(steps=mapped({1: 0, 2: 1, 3: 2})), [0, 1, 2]),
    "gaps, mapped": ([0, 4, 9, 255], dict(steps=mapped({4: 1, 9: 2})), [0, 1, 2, 255]),
    "void, mapped": ([0, 1, 2, 11], dict(steps=mapped({11: 255})), [0, 1, 2, 255]),
    "0 and 255, mapped": ([0, 255], dict(classes="ab", steps=mapped({255: 1})), [0, 1]),
    "colours": ([BLACK, RED, GREEN], dict(steps=mapped({BLACK: 255, RED: 0, GREEN: 2})),
                [0, 2, 255]),
    "other colours": ([BLACK, RED, GREEN], dict(steps=mapped({RED: 1}, 255)), [1, 255]),
    "other numbers": ([0, 7, 8], dict(steps=mapped({7: 1}, 0)), [0, 1]),
}  # fmt: skip


@pytest.mark.parametrize("what", TAKEN)
def test_what_is_taken(what, tmp_path):
    label, changes, expected = TAKEN[what]
    cfg = seg(tmp_path, label, **changes)
    assert said(found(cfg, "train", "val")) == {} and loaded(cfg) == expected
    if "steps" in changes:  # numbers and colours as keys outlive the dump of a config
        cfg.dump(tmp_path / "dumped.py")
        assert loaded(Config.fromfile(tmp_path / "dumped.py")) == expected
        got = built(cfg)[0]["data_samples"].gt_sem_seg.data[0].numpy()
        (step,), first = changes["steps"], label[1]
        assert got[0, 1] == step["mapping"].get(first, step["others"] or first)


BAD_PNG = encoded(picture(), "PNG")[:-200]
NOISE = np.random.default_rng(0).integers(0, 256, (*SIZE[::-1], 3), np.uint8)
PHOTO = encoded(Image.fromarray(NOISE), "PNG")
# label map, config, words of the check, and of the guard (None: the same; "": it takes it)
REFUSED = {
    "from 1": ([1, 2, 3], {}, r"are numbered from 1 \(1 to 3\): set reduce_zero_label=True", "3"),
    "one too many": ([0, 1, 2, 3], {}, "0 to 3 are 4 numbers for 3 classes: if 0 is", "class: 3"),
    "gaps": ([0, 4, 9], {}, "gaps between them: put dict.*vig_mm.MapLabels', mapping={4:", "4, 9"),
    "colours": ([BLACK, RED, GREEN], {}, r"coloured pictures, e.g. 1.png .* a label map has one .*"
                r"{\(0, 0, 0\): 0, \(0, 255, 0\): 1, \(255, 0, 0\): 2}", "of 3 colour channels"),
    "void": ([0, 3, 11], dict(classes="abcdef"), r"1.png \(11\).*mapping={11: 255}.*=11", "11"),
    "255 is no void": ([0, 1, 255], dict(classes=TEN, heads=11), r"e.g. 1.png \(255\)", ""),
    "lacks a colour": (
        [BLACK, RED, GREEN], dict(steps=mapped({BLACK: 0, RED: 1})), "MapLabels has no entry for "
        r"\(0, 255, 0\): add them, or set others=255", r"MapLabels failed .*e.g. \[\(0, 255, 0\)"),
    "reduced": ([1, 12], dict(classes=TEN, reduce_zero_label=True), "with reduce_zero_label=True "
                r"the 11 classes are 1 to 11 \(0 and 255: no label\)", "labels of no class: 11"),
    "two": ([1, 200, 254], {}, r"1.png \(200, 254\)", "200, 254"),
    "large": ([1, 700], {}, r"values of 256 and more, e.g. 1.png \(700\)", "holds the value 700"),
    "beyond ADE20K": ([151], ADE | dict(classes=("wall", "sky")),
                      r"1.png \(151\).*150 classes are 1 to 150", "labels of no class: 150"),
    "empty": (b"", {}, r"cannot be read, e.g. 1.png \(empty\)", "is empty"),
    "cut off": (BAD_PNG, {}, r"cannot be read, e.g. 1.png \(.*: copy or download", "is cut off"),
    "a page": (b"<html>", {}, "cannot be read, e.g. 1.png", "LoadAnnotations failed"),
    "a photo": (PHOTO, {}, "of 28.. colours, as a photo or a jpg has", "of 3 colour channels"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(what, tmp_path):
    label, changes, words, sample = REFUSED[what]
    cfg = seg(tmp_path, label, **changes)
    assert refused(cfg, words).count("\n  - ") == 1
    if sample:
        sample_refused(cfg, f"{tmp_path}/labels/1.png'.*{sample}")


@pytest.mark.parametrize("label, image, words", [
    (label_map(1, size=(30, 24)), JPG, "is 30x24 pixels, but its image is loaded as 60x48"),
    (label_map(1), TURNED, "is 60x48 pixels, but its image is loaded as 48x60"),
])  # fmt: skip
def test_other_sizes_are_refused_at_the_sample(label, image, words, tmp_path):
    sample_refused(seg(tmp_path, label, image=image), words)


def test_where_parts_of_a_config_ignore_different_numbers(tmp_path):
    cfg = seg(tmp_path, [0, 1, 11], TEN, metric=255)
    cfg.model.decode_head.ignore_index = 11
    padding, line, _ = check_data(cfg)
    assert "seg_pad_val=255 fills label maps up" in padding
    assert "1.png (11)" in line and "where one part of the config ignores them and another" in line
    kinds = found(seg(tmp_path, [0, 1, 11], TEN, heads=11), "train", "val")  # metrics were not told
    assert [(one.severity, one.where) for one in kinds.values()] == [
        ("warning", "val_dataloader.dataset")
    ]


def test_masks_of_0_and_255(tmp_path):
    names = ("background", "crack")
    lines = check_data(seg(tmp_path, [0, 255], names))
    assert len(lines) == 2 and all("'crack' is never learned" in line for line in lines)
    assert all("mapping={255: 1}" in line for line in lines)
    reduced = check_data(seg(tmp_path, [0, 255], names, reduce_zero_label=True))
    assert all("nothing is learned at all" in line for line in reduced)


# steps of the pipeline, the preprocessor's number, what the heads ignore, what is said
PADS = {
    "class": (dict(type="RandomRotate", prob=1, degree=9, seg_pad_val=1), 255, 255, None),
    "ignored": (dict(type="RandomRotate", prob=1, degree=9), 255, 255, None),
    "not ignored": (dict(type="RandomRotate", prob=1, degree=9), 0, 0, "warning"),
    "rotation": (dict(type="RandomRotate", seg_pad_val=100), 255, 255, "seg_pad_val=100"),
    "padding": (dict(type="Pad", size=(9, 9), pad_val=dict(img=0, seg=77)), 255, 255, "seg=77"),
    "cut-out": (dict(type="RandomCutOut", seg_fill_in=12), 255, 255, "seg_fill_in=12"),
    "batches": (dict(type="Pad", size=(9, 9)), 200, 255, "data_preprocessor: seg_pad_val=200"),
}


@pytest.mark.parametrize("what", PADS)
def test_what_label_maps_are_filled_with(what, tmp_path):
    step, pad, heads, words = PADS[what]
    cfg = seg(tmp_path, [0, 1], steps=[step], heads=heads)
    cfg.model.data_preprocessor.seg_pad_val = pad
    if words in (None, "warning"):
        assert said(found(cfg)) == ({"seg-pad": "warning 1"} if words else {})
        return
    refused(cfg, f"{words} fills label maps up")


@TRANSFORMS.register_module()
class HalveLabels:
    """A user's transform: numbers 0, 2, 4 become 0, 1, 2."""

    def __call__(self, results):
        results["gt_seg_map"] = results["gt_seg_map"] // 2
        return results


def test_users_own_transform(tmp_path):
    """What it makes of the numbers the check cannot know; the guard looks behind it."""
    cfg = seg(tmp_path, [0, 2, 4], steps=[dict(type="HalveLabels")])
    assert all("nothing to do if a transform of yours maps them" in x for x in check_data(cfg))
    assert loaded(cfg) == [0, 1, 2]
    nine = seg(tmp_path, [9], steps=[dict(type="HalveLabels")])
    sample_refused(nine, "labels of no class: 4 as they are loaded")


@pytest.mark.parametrize("own", [True, False])
def test_transforms_of_a_wrapper(own, tmp_path):
    """Behind the data set's own pipeline numbers may still change."""
    cfg = seg(tmp_path, [0, 2, 4])
    steps = [dict(type="HalveLabels")] if own else [dict(type="RandomFlip", prob=0.5)]
    data = dict(type="MultiImageMixDataset", dataset=cfg.train_dataloader.dataset, pipeline=steps)
    data["dataset"].pipeline.pop()
    data["pipeline"] = [*steps, dict(type="PackSegInputs")]
    cfg.train_dataloader.dataset = data
    if own:
        assert loaded(cfg, "train") == [0, 1, 2]
    else:
        sample_refused(cfg, "labels of no class: 4")


@pytest.mark.parametrize(
    "mapping", [{}, [1, 2], {256: 1}, {1: 256}, {1: -1}, {(1, 2): 1}, {"a": 1}, {1: None}]
)
def test_mapping_that_is_none(mapping, tmp_path):
    with pytest.raises(ValueError, match="MapLabels"):
        MapLabels(mapping)
    cfg = seg(tmp_path, [0], steps=mapped(mapping))
    refused(cfg, "train_dataloader.dataset.pipeline: MapLabels")


# changes of files and config, words; an error unless they begin with a severity
CONFIGS = {
    "images": (dict(data_prefix=dict(img_path="x")), "data_prefix.img_path: no image folder"),
    "labels": (
        dict(data_prefix=dict(img_path="images", seg_map_path="x")),
        "data_prefix.seg_map_path: no label folder"),
    "suffix": (dict(img_suffix=".png"), "data_prefix.img_path: no .png image"),
    "no label": (dict(seg_map_suffix=".bmp"), "1 of 1 images have no label map .*'1.bmp'"),
    "no list": (dict(ann_file="x.txt"), "ann_file: no list of images"),
    "list": (dict(ann_file="list.txt"), "1 of the 2 images .*'7.jpg'"),
    "no classes": (dict(metainfo=...), "BaseSegDataset has no classes .*metainfo"),
    "classes of ADE20K": (
        dict(type="ADE20KDataset"), "ADE20KDataset has no a, b, c: .*type='BaseSegDataset'"),
    "palette": (
        dict(metainfo=dict(classes=tuple("abc"), palette=[[0, 0, 0]])),
        "metainfo.palette: 1 colours for 3 classes"),
}  # fmt: skip


@pytest.mark.parametrize("what", CONFIGS)
def test_configs_that_do_not_fit(what, tmp_path):
    changes, words = CONFIGS[what]
    write(tmp_path / "list.txt", "1\n7\n")
    cfg = seg(tmp_path, [0, 1], **changes)
    cfg.model = {}
    refused(cfg, words)
    if what == "list":
        write(tmp_path / "list.txt", "1\n")
        check_data(cfg, ("train",))


def test_heads(tmp_path):
    """More outputs than classes train all the same; fewer do not."""
    cfg = seg(tmp_path, [0, 1])
    cfg.model.auxiliary_head.num_classes = 150
    assert said(found(cfg)) == {"num-classes": "warning 1"}
    cfg.model.auxiliary_head.num_classes = 2
    refused(cfg, "model.auxiliary_head.num_classes is 2")


def test_some_label_maps_of_many_are_read(tmp_path, monkeypatch):
    for i in range(90):
        write(tmp_path / f"images/{i:02}.jpg", b"")
        write(tmp_path / f"labels/{i:02}.png", label_map(1))
    read, facts = [], label_maps.image_facts

    def count(*args, **how):
        read.append(args)
        return facts(*args, **how)

    monkeypatch.setattr(label_maps, "image_facts", count)
    check_data(seg(tmp_path, [0]), ("train",))
    assert 10 <= len(read) <= 20


def test_list_that_is_a_folder(tmp_path):
    """mmseg lists the images of the folder then."""
    (tmp_path / "lists").mkdir()
    cfg = seg(tmp_path, [0, 1], ann_file="lists")
    assert check_data(cfg) == [] and loaded(cfg) == [0, 1]
