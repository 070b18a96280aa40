"""Kinds of faults that were reported in public: each is named, or repaired with a word."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
pytest.importorskip("mmpretrain")

from golden import CONFIGS
from mmengine.config import Config
from mmengine.registry import DATASETS
from PIL import Image
from torch import nn

from vig_mm import HierViG
from vig_mm.checkpoints.conversion import prepare_checkpoint
from vig_mm.checkpoints.reading import read_checkpoint
from vig_mm.checks.data import DataCheck, check_data, prepare_data, repair
from vig_mm.checks.data.check import survey
from vig_mm.checks.data.guard import guard
from vig_mm.checks.weights import check_initial_weights, check_weights
from vig_mm.errors import CheckpointError, DataError, SampleError

SIZE = (60, 48)
BOX = dict(image_id=1, category_id=1, bbox=[6, 6, 24, 18], area=432, iscrowd=0)


@pytest.fixture
def coco(tmp_path):
    """`coco(annotations, **changes)`: config of one picture and its file, to train and to score."""

    def make(annotations=({},), image=None, content=None, classes=("a",), orientation=1):
        tags = Image.Exif()
        tags[0x0112] = orientation
        Image.new("RGB", SIZE).save(tmp_path / "1.jpg", exif=tags)
        whole = dict(
            images=[dict(id=1, file_name="1.jpg", width=SIZE[0], height=SIZE[1], **(image or {}))],
            categories=[dict(id=1, name="a"), dict(id=2, name="b")],
            annotations=[{**BOX, "id": i, **one} for i, one in enumerate(annotations, 1)],
        )
        whole = {k: v for k, v in {**whole, **(content or {})}.items() if v is not None}
        (tmp_path / "a.json").write_text(json.dumps(whole))
        data = dict(
            type="CocoDataset",
            data_root=str(tmp_path),
            ann_file="a.json",
            data_prefix=dict(img=""),
            metainfo=dict(classes=classes),
            pipeline=[dict(type="LoadImageFromFile"), dict(type="LoadAnnotations", with_bbox=True)],
        )
        evaluator = dict(type="CocoMetric", ann_file=str(tmp_path / "a.json"), metric="bbox")
        loaders = {f"{x}_dataloader": dict(dataset=copy.deepcopy(data)) for x in ("train", "val")}
        cfg = dict(default_scope="mmdet", work_dir=str(tmp_path / "work"), val_evaluator=evaluator)
        return Config({**cfg, **loaders})

    return make


def found(cfg, splits=("train",)):
    return {one.kind: one for one in DataCheck(cfg, splits).findings}


def read_all(cfg, splits=("val",)):
    listings = DataCheck(cfg, splits).listings
    return {one.kind: one for one in survey(listings, lambda _, f, items: map(f, items))}


def built(cfg, split="train"):
    with DATASETS.switch_scope_and_registry(cfg.default_scope) as registry:
        return registry.build(cfg[f"{split}_dataloader"].dataset)


def test_classes_without_a_comma(coco):
    """A repair makes a list of them, also without checks; a list written as text is refused."""
    cfg = coco(classes=("a"))
    assert "class-text" in found(cfg) and not isinstance(cfg.train_dataloader.dataset, tuple)
    before = cfg.train_dataloader.dataset.metainfo.classes
    check_data(cfg, ("train",))
    assert cfg.train_dataloader.dataset.metainfo.classes == before == "a"
    (line,) = prepare_data(cfg, ("train",), check=False)
    assert "its classes are text, 'a': read as ('a',), with a comma" in line
    assert built(cfg).metainfo["classes"] == ("a",)
    with pytest.raises(DataError, match=r"list of names is needed: write \('a', 'b'\)"):
        check_data(coco(classes="a, b"), ("train",))


def test_classes_in_a_file(coco, tmp_path):
    (tmp_path / "names.txt").write_text("a\n")
    cfg = coco(classes=str(tmp_path / "names.txt"))
    assert found(cfg) == {} and repair(cfg, ("train",)) == []


def test_names_of_categories_twice(coco):
    cfg = coco(content=dict(categories=[dict(id=1, name="a"), dict(id=2, name="a")]))
    assert "more labels than classes" in found(cfg)["category-twice"].text
    assert len(built(cfg).cat_ids) == 2  # of one class


@pytest.mark.parametrize("changes", [dict(image_id="1"), dict(category_id="1")])
def test_ids_of_two_types(changes, coco):
    cfg = coco([changes, {}])
    kinds = found(cfg)
    assert kinds["text-id"].severity == "error" and set(kinds) == {"text-id"}
    assert len(built(cfg).get_data_info(0)["instances"]) == 1
    everywhere = [dict(id="1", file_name="1.jpg", width=SIZE[0], height=SIZE[1])]
    if "image_id" in changes:
        assert found(coco([changes], content=dict(images=everywhere))) == {}


@pytest.mark.parametrize(
    "name, words", [("sub\\1.jpg", "1 have backslashes, as on Windows: write /"),
                    ("1.JPG", "there is '1.jpg': upper and lower case differ"),
                    ("2.jpg", "are not in '.*', e.g. '2.jpg'$")]
)  # fmt: skip
def test_names_that_are_not_there(name, words, coco):
    with pytest.raises(DataError, match=words):
        check_data(coco(content=dict(images=[dict(id=1, file_name=name, width=60, height=48)])))


def test_images_to_test_on_need_no_categories(coco):
    """mmdet asks for them, so a copy has those of the classes."""
    cfg = coco(content=dict(categories=None, annotations=None))
    assert set(found(cfg, ("val",))) == {"no-annotation"}
    lines = prepare_data(cfg, ("val",))
    assert len(lines) == 2 and all("has no categories, which mmdet asks for" in x for x in lines)
    assert len(built(cfg, "val")) == 1
    assert set(found(coco(content=dict(categories=[], annotations=[])), ("val",))) == {
        "no-annotation"
    }


AREAS = {
    "box": ({}, False),
    "mask of the box": (dict(area=100), False),
    "a twentieth": (dict(area=21), True),
    "twice the box": (dict(area=900), True),
    "polygon": (dict(segmentation=[[6, 6, 30, 6, 30, 24]], area=216), False),
    "polygon, a twentieth": (dict(segmentation=[[6, 6, 30, 6, 30, 24]], area=11), True),
    "runs": (dict(segmentation=dict(size=[48, 60], counts=[300, 432, 2148])), False),
    "runs, a twentieth": (
        dict(segmentation=dict(size=[48, 60], counts=[30, 800, 2050]), area=40), True,
    ),
    "crowd": (dict(area=5, iscrowd=1), False),
}  # fmt: skip


@pytest.mark.parametrize("what", AREAS)
def test_areas(what, coco):
    """Cheap before a run, and in full; both say the same."""
    cfg = coco([AREAS[what][0]])
    assert ("area" in found(cfg, ("val",))) == ("area" in read_all(cfg)) == AREAS[what][1]
    assert (
        any("have an area that does not" in x for x in check_data(cfg, ("val",))) == AREAS[what][1]
    )


def test_boxes_that_were_turned(coco):
    kinds = found(coco([dict(attributes=dict(rotation=30.0)), dict(attributes=dict(rotation=0.0))]))
    assert kinds["rotated"].count == 1 and "before it was turned" in kinds["rotated"].text


# bbox, kind, words; of a file of 60x48 that is loaded as 48x60
TURNED = {
    "annotated turned": ([6, 6, 24, 52], "turned-sides", "swap width and height"),
    "annotated turned, all below the file's height": ([6, 50, 24, 8], "turned-sides", "swap"),
    "annotated unturned": ([30, 6, 28, 18], "turned-size", "take the EXIF orientation out"),
    "unknown": ([6, 6, 24, 18], "turned-unknown", "is not to be told"),
}


@pytest.mark.parametrize("what", TURNED)
def test_what_to_do_about_exif_is_told_by_the_boxes(what, coco):
    box, kind, words = TURNED[what]
    cfg = coco([dict(bbox=box, area=box[2] * box[3])], orientation=6)
    kinds = read_all(cfg)
    assert words in kinds[kind].text and not kinds.keys() & {x[1] for x in TURNED.values()} - {kind}
    dataset = built(cfg, "val")
    guard(dataset)
    with pytest.raises(SampleError, match=words):
        dataset[0]


def test_unread_data_is_not_called_good(tmp_path):
    for kind, root in (("VOCDataset", str(tmp_path)), ("Unknown", ""), ("CocoDataset", "s3://b")):
        data = dict(type=kind, data_root=root, ann_file="a", backend_args=None)
        cfg = Config(dict(default_scope="mmdet", train_dataloader=dict(dataset=data)))
        assert set(found(cfg)) == {"not-checked"} and check_data(cfg) == []


@pytest.fixture
def seg(tmp_path):
    for name in ("images/1.jpg", "labels/1.png"):
        (tmp_path / name).parent.mkdir()
        Image.fromarray(np.zeros((48, 60), np.uint8)).save(tmp_path / name)
    cfg = Config.fromfile(CONFIGS / "mmseg/vig-h-mini_upernet_digits.py")
    for split in ("train", "val", "test"):
        prefix = dict(img_path="images", seg_map_path="labels")
        cfg[f"{split}_dataloader"].dataset.update(data_root=str(tmp_path), data_prefix=prefix)
    return cfg


PADS = {
    "class": (dict(type="RandomRotate", prob=1, degree=9, seg_pad_val=3), None),
    "ignored": (dict(type="RandomRotate", prob=1, degree=9), None),
    "rotation": (dict(type="RandomRotate", prob=1, degree=9, seg_pad_val=100), "seg_pad_val=100"),
    "padding": (dict(type="Pad", size=(9, 9), pad_val=dict(img=0, seg=77)), "seg=77"),
    "cut-out": (dict(type="RandomCutOut", prob=1, n_holes=1, seg_fill_in=12), "seg_fill_in=12"),
}


@pytest.mark.parametrize("what", PADS)
def test_what_label_maps_are_filled_with(what, seg):
    step, words = PADS[what]
    seg.train_dataloader.dataset.pipeline.insert(-1, step)
    if words is None:
        assert "seg-pad" not in found(seg)
        seg.model.decode_head.ignore_index = 0  # and now 255 is none of its labels
        assert found(seg)["seg-pad"].severity == "warning"
        seg.model.data_preprocessor.seg_pad_val = 200
        words = "model.data_preprocessor: seg_pad_val=200"
    with pytest.raises(DataError, match=f"{words} fills label maps up"):
        check_data(seg, ("train",))


LABELS = {"1": True, "+1": True, "01": True, "-100": True, "10": False, "-1": False, "x": False}


@pytest.mark.parametrize("label", LABELS)
def test_labels_in_lists(label, tmp_path):
    """What mmpretrain reads as a number is one."""
    (tmp_path / "train").mkdir()
    Image.new("RGB", SIZE).save(tmp_path / "train/1.jpg")
    (tmp_path / "list.txt").write_text(f"1.jpg {label}\n")
    cfg = Config.fromfile(CONFIGS / "mmpretrain/vig-h-mini_digits.py")
    names = [str(i) for i in range(10)]
    data = dict(data_root=str(tmp_path), ann_file="list.txt", metainfo=dict(classes=names))
    cfg.train_dataloader.dataset.update(data)
    assert (found(cfg) == {}) == LABELS[label]


# Weights -----------------------------------------------------------------------------------------


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.head = nn.Linear(3, 3), nn.Linear(3, 2)


def test_parts_of_which_nothing_is_loaded_are_named(tmp_path):
    model, path = Parts(), str(tmp_path / "a.pth")
    state = {k.replace("backbone", "body"): x for k, x in model.state_dict().items()}
    torch.save(dict(state_dict=state), path)
    (line,) = check_weights(model, path, partly=True)
    assert "none of the 2 weights of backbone is in" in line and "body.weight" in line
    torch.save(dict(state_dict=model.state_dict()), path)
    assert check_weights(model, path, partly=True) == []


def test_safetensors(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    model, path = Parts(), tmp_path / "a.safetensors"
    save_file(model.state_dict(), str(path))
    assert read_checkpoint(path).keys() == model.state_dict().keys()
    copied = prepare_checkpoint(str(path), str(tmp_path / "work"))
    assert torch.load(copied)["state_dict"].keys() == model.state_dict().keys()
    given = dict(init_cfg=dict(type="Pretrained", checkpoint=str(path)))
    own = type("OwnViG", (HierViG,), {})
    for kind in ("vig_mm.HierViG", HierViG, own):
        check_initial_weights(dict(backbone=dict(type=kind, **given)))
    with pytest.raises(CheckpointError, match="safetensors file, which mmengine does not read"):
        check_initial_weights(dict(backbone=dict(type="ResNet", **given)))
    renamed = path.rename(Path(tmp_path, "b.pth"))  # the bytes tell
    assert len(read_checkpoint(renamed)) == 4
    renamed.write_bytes(renamed.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        read_checkpoint(renamed)
