"""What the libraries' own data sets take, the checks take: every registered type."""

import inspect
import json

import numpy as np
import pytest

pytest.importorskip("mmcv")
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
pytest.importorskip("mmpretrain")

import mmdet.datasets  # noqa: F401
import mmpretrain.datasets  # noqa: F401
import mmseg.datasets  # noqa: F401
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image
from tiny_data import PREFIX

from vig_mm.checks.data import DataCheck
from vig_mm.checks.data.check import check_of

SIDE = 16
WRAPPERS = {
    "mmdet": ("ConcatDataset", "RepeatDataset", "ClassBalancedDataset", "MultiImageMixDataset"),
    "mmseg": ("ConcatDataset", "RepeatDataset", "MultiImageMixDataset"),
    "mmpretrain": ("ConcatDataset", "RepeatDataset", "ClassBalancedDataset", "KFoldDataset"),
}


def kinds(checked):
    """(scope, name) of the registered data sets whose files the checks read, or do not."""
    return [
        (scope, name)
        for scope in WRAPPERS
        for name, kind in sorted(DATASETS.children[scope].module_dict.items())
        if inspect.isclass(kind) and (check_of(kind) is not None) == checked
    ]


def picture(path, values=None):
    if values is None:
        values = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values) if path.suffix == ".npy" else Image.fromarray(values).save(path)


def coco(root, kind, classes):
    """One picture with an object of each of some classes."""
    if kind.__name__ == "V3DetDataset":  # reads its classes from a file, too
        (root / "annotations").mkdir()
        names = root / "annotations/category_name_13204_v3det_2023_v1.txt"
        names.write_text("\n".join(classes))
    picture(root / "train/a.jpg")
    some = list(classes[:3]) + list(classes[-1:])
    box = dict(bbox=[1, 1, 8, 8], area=64, segmentation=[[1, 1, 9, 1, 9, 9, 1, 9]], iscrowd=0)
    content = dict(
        images=[dict(id=1, file_name="a.jpg", height=SIDE, width=SIDE)],
        categories=[dict(id=i, name=name) for i, name in enumerate(classes, 1)],
        annotations=[
            dict(box, id=i, image_id=1, category_id=1 + classes.index(name))
            for i, name in enumerate(some, 1)
        ],
    )
    (root / "train.json").write_text(json.dumps(content))
    return dict(ann_file="train.json", data_prefix=dict(img="train/"))


def label_maps(root, kind, classes):
    """Three pictures, whose label maps have every class and what counts for none."""
    options = {k: p.default for k, p in inspect.signature(kind.__init__).parameters.items()}
    fixed = {"REFUGEDataset": (".png", ".png")}.get(kind.__name__, (".jpg", ".png"))
    image, label = options.get("img_suffix", fixed[0]), options.get("seg_map_suffix", fixed[1])
    first = 1 if options.get("reduce_zero_label", False) else 0
    values = np.full(SIDE * SIDE, 255, np.uint8)
    values[: first + len(classes)] = np.arange(first + len(classes))
    for name in "abc":
        picture(root / f"images/{name}{image}")
        picture(root / f"labels/{name}{label}", values.reshape(SIDE, SIDE))
    (root / "list.txt").write_text("a\nb\nc\n")
    listed = options.get("ann_file") is inspect.Parameter.empty
    return dict(data_prefix=PREFIX) | (dict(ann_file="list.txt") if listed else {})


def folders(root, kind, classes):
    """Three pictures, in a list or, where there are few classes, in folders."""
    names = [f"{i:05d}/a.jpg" for i in range(3)]
    for name in names:
        picture(root / "train" / name)
    (root / "train.txt").write_text("".join(f"{name} {i}\n" for i, name in enumerate(names)))
    listed = dict(ann_file="train.txt") if len(classes) > 3 else {}
    return dict(data_prefix="train", **listed)


FAMILIES = {"CocoDataset": coco, "BaseSegDataset": label_maps, "CustomDataset": folders}
PIPELINES = {
    "mmdet": [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations", with_bbox=True)],
    "mmseg": [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations")],
    "mmpretrain": [dict(type="LoadImageFromFile")],
}


def generated(root, scope, name):
    """A data set of this type with its data, and the number of its classes."""
    kind = DATASETS.children[scope].module_dict[name]
    classes, stated = tuple((kind.METAINFO or {}).get("classes") or ()), {}
    if not classes:
        classes = ("a", "b", "c")
        if scope != "mmpretrain":  # whose class folders name them
            stated = dict(metainfo=dict(classes=classes))
    family = next(FAMILIES[base.__name__] for base in kind.__mro__ if base.__name__ in FAMILIES)
    options = dict(family(root, kind, classes), **stated)
    pipeline = PIPELINES[scope]
    if any(root.rglob("*.npy")):  # HSIDrive20Dataset of the forks
        pipeline = [dict(type="LoadImageFromNpyFile"), *pipeline[1:]]
    options["pipeline"] = pipeline
    return dict(type=name, data_root=str(root), **options), classes


def config(scope, dataset, classes):
    head = dict(num_classes=len(classes))
    model = dict(roi_head=dict(bbox_head=head)) if scope == "mmdet" else dict(head=head)
    model = dict(decode_head=head) if scope == "mmseg" else model
    return Config(dict(default_scope=scope, model=model, train_dataloader=dict(dataset=dataset)))


def built(scope, dataset):
    with DefaultScope.overwrite_default_scope(scope):
        return DATASETS.children[scope].build(dataset)


def errors(scope, dataset, classes, in_full=False):
    check = DataCheck(config(scope, dataset, classes), ("train",))
    if in_full:
        assert len(check.listings) == 1, "its files were found"
        check.survey(lambda _, function, items: map(function, items))
    return [one.text for one in check.findings if one.severity == "error"]


@pytest.mark.parametrize("scope, name", kinds(checked=True), ids=str)
def test_small_data_of_every_type(scope, name, tmp_path):
    dataset, classes = generated(tmp_path, scope, name)
    samples = built(scope, dataset)
    assert len(samples) == (1 if (tmp_path / "train.json").exists() else 3)
    samples[0]  # the files are read
    assert not errors(scope, dataset, classes, in_full=True)


class ByTheTutorial(DATASETS.children["mmseg"].get("BaseSegDataset")):
    """As mmseg's page on own data sets has it: what it hands on is in no signature."""

    METAINFO = dict(classes=("a", "b", "c"))

    def __init__(self, **kwargs):
        super().__init__(
            img_suffix=".png", seg_map_suffix="_mask.png", reduce_zero_label=True, **kwargs
        )


def test_own_class_that_hands_on_options(tmp_path):
    values = np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE) % 4
    for name in "abc":
        picture(tmp_path / f"images/{name}.png")
        picture(tmp_path / f"labels/{name}_mask.png", values)
    dataset = dict(type=ByTheTutorial, data_root=str(tmp_path), data_prefix=PREFIX)
    assert len(ByTheTutorial(data_root=str(tmp_path), data_prefix=PREFIX, pipeline=[])) == 3
    dataset["pipeline"] = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations")]
    check = DataCheck(config("mmseg", dataset, "abc"), ("train",))
    assert not check.findings and len(check.listings) == 1
    picture(tmp_path / "labels/b_mask.png", values + 1)
    (text,) = errors("mmseg", dataset, "abc")
    assert "(4)" in text


@pytest.mark.parametrize("scope, name", kinds(checked=False), ids=str)
def test_types_left_to_the_library(scope, name, tmp_path):
    """Data sets that find their files in ways of their own: said to be not checked, no more."""
    dataset = dict(type=name, data_root=str(tmp_path), ann_file="nowhere.txt")
    (found,) = DataCheck(config(scope, dataset, ("a",)), ("train",)).findings
    assert (found.kind, found.severity) == ("not-checked", "note")


def wrap(wrapper, dataset):
    if wrapper == "ConcatDataset":
        return dict(type=wrapper, datasets=[dataset, dataset])
    options = dict(
        RepeatDataset=dict(times=2),
        ClassBalancedDataset=dict(oversample_thr=0.1),
        MultiImageMixDataset=dict(pipeline=[]),
        KFoldDataset=dict(num_splits=3, fold=0),
    )
    return dict(type=wrapper, dataset=dataset, **options[wrapper])


WRAPPED = {"mmdet": "CocoDataset", "mmseg": "ADE20KDataset", "mmpretrain": "CustomDataset"}


@pytest.mark.parametrize("scope, wrapper", [(x, y) for x in WRAPPERS for y in WRAPPERS[x]])
def test_wrappers(scope, wrapper, tmp_path):
    """Taken as they are, and seen through: what is wrong inside is found, by its key."""
    dataset, classes = generated(tmp_path, scope, WRAPPED[scope])
    wrapped = wrap(wrapper, dataset)
    assert len(built(scope, wrapped)) > 0 and not errors(scope, wrapped, classes)
    broken = wrap(wrapper, dict(dataset, data_root=str(tmp_path / "nowhere")))
    (text, *_) = errors(scope, broken, classes)
    key = "datasets.0" if wrapper == "ConcatDataset" else "dataset"
    assert text.startswith(f"train_dataloader.dataset.{key}.data_root: no folder")
