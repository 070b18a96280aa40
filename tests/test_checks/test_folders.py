"""Class folders and lists of images: what mmpretrain (and mmseg's lists) cannot take is named."""

import os

import pytest

pytest.importorskip("mmseg")
pytest.importorskip("mmpretrain")

from mmengine.registry import DATASETS
from tiny_data import folders, found, refused, said, seg, write

from vig_mm.checks.data import check_data, data_set

LIST = dict(ann_file="list.txt", metainfo=dict(classes=[str(i) for i in range(10)]))


def only(cfg, kind=None):
    """The text of the one finding of a config, an error."""
    ((name, one),) = found(cfg).items()
    assert one.severity == "error" and kind in (None, name)
    return one.text


def listed(root, content, **changes):
    write(root / "list.txt", content)
    return folders(root, "1/a b.jpg", **{**LIST, **changes})


def both(root, images, names):
    """Configs of mmpretrain and of mmseg with the lists."""
    write(root / "images/a b.jpg")
    write(root / "labels/a b.png")
    write(root / "names.txt", names)
    return listed(root, images), seg(root, [0], ann_file="names.txt")


# files, changes, words of the one error
REFUSED = {
    "no class folders": ([], dict(data_prefix="train/1"), "has no class folders"),
    "all empty": (["a.txt"], {}, "has no class folders"),
    "ImageNet": ([], dict(type="ImageNet", split="train", data_prefix=""),
                 "10 class folders.*1000 classes.*CustomDataset"),
    "head": ([], dict(outputs=9), "model.head.num_classes is 9, .*: set it to 10"),
    "no image": (["test/a.txt"], dict(data_prefix="train/test", with_label=False),
                 "test' has no file that ends in one of .bmp, .jpeg"),
    "no list": ([], dict(ann_file="x.txt", **{k: v for k, v in LIST.items() if k != "ann_file"}),
                "ann_file: no list of images"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(what, tmp_path):
    names, changes, words = REFUSED[what]
    refused(folders(tmp_path, *names, **changes), words)


def test_empty_class_folders_and_more_outputs(tmp_path):
    """mmpretrain warns, and trains without; of no image at all it can do nothing."""
    cfg = folders(tmp_path)
    (tmp_path / "train/6/1.JPG").unlink()
    (warning,) = check_data(cfg, ("train",))
    assert "1 of 10 class folders" in warning and "no image: 6" in warning
    write(tmp_path / "train/6/1.JPG")
    cfg.model.head.num_classes, preprocessor = 1000, cfg.model.data_preprocessor
    for count in (12, 9):  # for mixed labels alone, of which are none
        preprocessor.num_classes = count
        first, second = check_data(cfg, ("train",))
        texts = f"data_preprocessor.num_classes is {count}", "model.head.num_classes is 1000"
        assert any(texts[0] in x for x in (first, second)) and texts[1] in first + second
    cfg.model.train_cfg = dict(augments=[dict(type="Mixup", alpha=0.8)])
    refused(cfg, "data_preprocessor.num_classes is 9")
    for path in (tmp_path / "train").glob("*/*"):
        path.unlink()
    refused(cfg, "10 of 10 class folders")


def test_other_classes_in_validation(tmp_path):
    cfg = folders(tmp_path)
    (tmp_path / "val").mkdir()
    for name in [*range(9), "x"]:
        write(tmp_path / f"val/{name}/1.jpg")
    cfg.val_dataloader.dataset.data_prefix = "val"
    refused(cfg, "val_dataloader.dataset: .*only here: x", "train", "val")


def test_files_that_are_not_taken(tmp_path):
    names = ("1/1.jpg", "2/1.jpg", "2/2.webp", "2/.hidden.jpg", "a.jpg", "b.WEBP", "readme.txt")
    cfg = folders(tmp_path, *names, outputs=2)
    (line,) = check_data(cfg, ("train",))
    assert line.startswith("train_dataloader.dataset: mmpretrain leaves out 1 file in ")
    assert "do not end in one of" in line and "2 files in" in line and "in no class folder" in line
    with DATASETS.switch_scope_and_registry("mmpretrain") as registry:
        assert len(registry.build(cfg.train_dataloader.dataset)) == 2


LABELS = {"1": True, "+1": True, "01": True, "-100": True, "10": False, "-1": False, "x": False}


@pytest.mark.parametrize("label", LABELS)
def test_labels_in_lists(label, tmp_path):
    """What mmpretrain reads as a number is one."""
    cfg = listed(tmp_path, f"1/a b.jpg {label}\r\n")
    assert (found(cfg) == {}) == LABELS[label]
    if label == "10":
        refused(cfg, "line 1 of .* ends in '10', but with model.head.num_classes=10 .*from 0 to 9")


# lists of mmpretrain and mmseg, words of their errors; lines end at line feeds only
LISTS = {
    "good": (b"1/a b.jpg 1\r\n", b"a b\r\n", None, None),
    "empty": (b"", b"", "list.txt' is empty: list the images", "names.txt' is empty: list the ima"),
    "empty line": (b"1/a b.jpg 1\n\n", b"a b\n\n", "line 2 of", "line 2 of .* is empty: delete it"),
    "form feed": (b"1/\x0ca b.jpg 1\n", b"a\x0cb\n", "'1/\\x0ca b.jpg'", "'a\\x0cb.jpg'"),
    "no UTF-8": (b"b\xe4r.jpg 1\n", b"b\xe4r\n", "is not UTF-8", "save it as UTF-8"),
    "no label": (b"1/a.jpg\n", b"a b\n", "line 1 of .* is '1/a.jpg', but each line must be", None),
}


@pytest.mark.parametrize("what", LISTS)
def test_lists(what, tmp_path):
    images, names, *words = LISTS[what]
    for cfg, expected in zip(both(tmp_path, images, names), words, strict=True):
        kinds = {k: x for k, x in found(cfg).items() if k != "label-unreadable"}
        assert bool(kinds) == bool(expected)
        for one in kinds.values():
            assert one.severity == "error"
            assert all(word in one.text for word in (expected or "").split(" .* "))


def test_lists_without_labels(tmp_path):
    assert said(found(listed(tmp_path, "1/a b.jpg\n", with_label=False))) == {}
    assert "'1/a b.jpg '" in only(listed(tmp_path, "1/a b.jpg \n", with_label=False), "missing")


def test_list_without_permission(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(data_set, "list_from_file", refuse)
    for cfg in both(tmp_path, b"a", b"a"):
        assert ".txt' cannot be read (" in only(cfg) and "correct its permissions" in only(cfg)


@pytest.mark.parametrize("folder", ["train", "train/one", "train/one/more"])
def test_folder_without_permission(folder, tmp_path, monkeypatch):
    """What os.walk would pass over in silence."""
    cfg, scandir = folders(tmp_path, "one/more/1.jpg"), os.scandir

    def refuse(path):
        if path == str(tmp_path / folder):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    refused(cfg, f"{folder}' cannot be read: .* correct its permissions")
