"""What the checks of all formats have in common: which loaders are read, and what is missing."""

import pytest

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
pytest.importorskip("mmpretrain")

from mmengine.config import Config
from tiny_data import coco, folders, found, refused, said, seg

from vig_mm.checks.data import check_data

LAYOUTS = dict(coco=coco, ade=lambda root: seg(root, [0, 1, 2, 255]), folders=folders)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_good_data_and_none(layout, tmp_path, monkeypatch):
    cfg = LAYOUTS[layout](tmp_path)
    assert check_data(cfg) == []
    monkeypatch.chdir(tmp_path.parent)
    loaders = ("train_dataloader", "val_dataloader")
    for loader in loaders:
        cfg[loader].dataset.data_root = tmp_path.name  # relative to the working directory
    assert check_data(cfg) == []
    for loader in loaders:
        cfg[loader].dataset.data_root = "nowhere"
    text = refused(cfg, "no folder 'nowhere' .*--cfg-options", "train", "val")
    assert all(f"{loader}.dataset.data_root: no folder" in text for loader in loaders)
    assert text.count("\n  - ") == 2 and "make_digits" not in text


def test_only_the_asked_splits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = coco(tmp_path)
    cfg.train_dataloader.dataset.data_root = "data/digits/coco"
    assert check_data(cfg, ("val", "test")) == []
    refused(cfg, "python tools/data/make_digits.py`$")  # the built-in data
    cfg.val_dataloader = cfg.val_evaluator = None
    assert check_data(cfg, ("val",)) == []


@pytest.mark.parametrize("changes, words", [
    (dict(data_prefix=dict(img="trian/")), "dataset.data_prefix.img: no image folder .*trian/'"),
    (dict(ann_file="vla.json"), "dataset.ann_file: '.*vla.json' is no annotation file"),
])  # fmt: skip
def test_paths(changes, words, tmp_path):
    cfg = coco(tmp_path)
    cfg.train_dataloader.dataset.update(changes)
    refused(cfg, words)


@pytest.mark.parametrize(
    "kind, root", [("VOCDataset", ""), ("None", ""), ("CocoDataset", "s3://b")]
)
def test_unread_data_is_not_called_good(kind, root):
    data = dict(type=kind, data_root=root, ann_file="a", backend_args=None)
    cfg = Config(dict(default_scope="mmdet", train_dataloader=dict(dataset=data)))
    assert said(found(cfg)) == {"not-checked": "note 1"} and check_data(cfg) == []
