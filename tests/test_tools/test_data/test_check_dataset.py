"""Every fault planted in a clean little data set is found, counted and named, and no other."""

import importlib
import json
import multiprocessing
import os
import shutil
import signal
import sys

import numpy as np
import pytest

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
pytest.importorskip("mmpretrain")

from known_cases import CLASSES, write_classification, write_detection, write_segmentation
from PIL import Image

from vig_mm.errors import UsageError


@pytest.fixture
def check(load_tool, monkeypatch, tmp_path, capsys, default_scope):
    """`check(*args)`: exit status, findings (by kind if each is of its own), what was printed."""

    def call(*args):
        out = tmp_path / "out.json"
        command = ["check_dataset.py", "--workers", "1", "--out", str(out), *map(str, args)]
        monkeypatch.setattr(sys, "argv", command)
        status = 0
        try:
            load_tool("data/check_dataset").main()
        except SystemExit as error:
            status = error.code
        found = json.loads(out.read_text())["findings"]
        kinds = {one["kind"]: one for one in found}
        printed = capsys.readouterr().out
        return status, kinds if len(kinds) == len(found) else found, printed

    return call


def counts(kinds):
    return {kind: one["count"] for kind, one in kinds.items()}


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def turned(path, orientation=6):
    tags = Image.Exif()
    tags[0x0112] = orientation
    Image.open(path).save(path, exif=tags)


# COCO ------------------------------------------------------------------------------------------


@pytest.fixture
def coco(tmp_path):
    """Folder of `truth.json` and `val/{0,1}.png`, with three annotations of ids 1 to 3."""
    write_detection(tmp_path / "data")
    return tmp_path / "data"


def edit(root, change):
    content = json.loads((root / "truth.json").read_text())
    change(content)
    (root / "truth.json").write_text(json.dumps(content))


def coco_args(root):
    return "--coco", root / "truth.json", root / "val"


def test_clean_coco(coco, check):
    status, kinds, printed = check(*coco_args(coco))
    assert status == 0 and kinds == {}
    assert "0 errors, 0 warnings, 0 notes" in printed


def test_broken_pictures(coco, check):
    half(coco / "val/0.png")
    (coco / "val/1.png").write_bytes(b"")
    status, kinds, printed = check(*coco_args(coco))
    assert status == 1 and counts(kinds) == {"empty": 1, "truncated": 1}
    assert kinds["truncated"]["names"] == ["0.png"] and kinds["empty"]["names"] == ["1.png"]
    assert "copy or download it again" in printed and str(coco / "val") in printed


def test_pictures_that_are_none(coco, check):
    (coco / "val/0.png").write_text("<html>404</html>")
    (coco / "val/1.png").unlink()
    status, kinds, _ = check(*coco_args(coco))
    assert status == 1 and counts(kinds) == {"not-an-image": 1, "missing": 1}
    assert "0.png (it begins with b'<html>404" in kinds["not-an-image"]["names"][0]
    assert kinds["missing"]["names"] == ["1.png"]


def test_kinds_of_pictures(coco, check):
    for name, mode in (("0.png", "LA"), ("1.png", "P")):
        Image.open(coco / "val" / name).convert(mode).save(coco / "val" / name)
    faint = Image.open(coco / "val/0.png")
    faint.putalpha(100)
    faint.save(coco / "val/0.png")
    status, kinds, _ = check(*coco_args(coco))
    assert status == 0 and counts(kinds) == {"transparent": 1, "grey": 1, "palette": 1}
    assert kinds["transparent"]["severity"] == "warning"


def test_depth_and_ink(coco, check):
    deep = np.full((120, 200), 4000, np.uint16)
    Image.fromarray(deep).save(coco / "val/0.png")
    Image.new("CMYK", (120, 200)).save(coco / "val/1.png", "JPEG")
    status, kinds, _ = check(*coco_args(coco))
    assert status == 0 and counts(kinds) == {"deep": 1, "cmyk": 1, "grey": 1, "other-ending": 1}
    assert kinds["cmyk"]["names"] == kinds["other-ending"]["names"] == ["1.png"]


def test_turned_pictures(coco, check):
    turned(coco / "val/0.png")
    turned(coco / "val/1.png", 3)
    status, kinds, _ = check(*coco_args(coco))
    assert status == 1
    assert counts(kinds) == {"turned-size": 1, "turned-unclear": 1}
    assert "0.png (200x120 in the file, the picture is 120x200)" in kinds["turned-size"]["names"]


def test_turned_pictures_that_were_annotated_so(coco, check):
    turned(coco / "val/1.png")
    third = dict(bbox=[10, 10, 90, 100], segmentation=[[10, 10, 100, 10, 100, 110, 10, 110]])

    def change(content):
        content["images"][1].update(width=200, height=120)
        content["annotations"][2].update(third)

    edit(coco, change)
    assert check(*coco_args(coco))[:2] == (0, {})


def test_picture_of_another_size(coco, check):
    Image.open(coco / "val/0.png").resize((100, 60)).save(coco / "val/0.png")
    status, kinds, _ = check(*coco_args(coco))
    assert status == 1 and counts(kinds) == {"size": 1}
    assert "200x120 in the file, the picture is 100x60" in kinds["size"]["text"]


def test_shapes_of_annotations(coco, check):
    def change(content):
        first, second, third = content["annotations"]
        x, y, width, height = first["bbox"]
        first["bbox"] = [x, y, x + width, y + height]
        second["segmentation"] = [[120, 10, 190, 60, 155, 35]]
        x1, y1, x2, y2 = 10, 100, 110, 190
        third["segmentation"] = [[x1, y1, x2, y2, x2, y1, x1, y2]]
        third["bbox"] = [x1, y1, 150, y2 - y1]

    edit(coco, change)
    status, kinds, _ = check(*coco_args(coco))
    assert status == 1
    assert counts(kinds) == {"corner-box": 1, "no-mask-area": 1, "crossing": 1, "beyond": 2}
    names = {kind: one["names"] for kind, one in kinds.items()}
    assert names["corner-box"] == ["id 1 of '0.png'"] and names["crossing"] == ["id 3 of '1.png'"]
    assert kinds["crossing"]["severity"] == "warning" and kinds["beyond"]["severity"] == "note"


def test_box_and_mask_apart(coco, check):
    edit(coco, lambda content: content["annotations"][0].update(bbox=[150, 80, 30, 30]))
    status, kinds, _ = check(*coco_args(coco))
    assert status == 0 and counts(kinds) == {"box-mask": 1}


def test_ids_and_categories(coco, check):
    def change(content):
        content["annotations"][0]["id"] = 0
        content["annotations"][1]["category_id"] = 9
        content["annotations"][2]["image_id"] = 9

    edit(coco, change)
    status, kinds, printed = check(*coco_args(coco))
    assert status == 1
    of_images = {"no-annotation": 1, "unused-class": 2}
    assert counts(kinds) == {"id-0": 1, "unlisted-category": 1, "no-image": 1, **of_images}
    assert "number the annotations from 1" in printed


def test_part_of_the_classes(coco, check):
    status, kinds, _ = check(*coco_args(coco), "--classes", "leaf", "brick")
    assert status == 1 and "class-order" in kinds
    status, kinds, _ = check(*coco_args(coco), "--classes", "brick", "leaf")
    assert status == 0 and counts(kinds) == {"other-class": 1, "no-annotation": 1}
    status, kinds, _ = check(*coco_args(coco), "--classes", "brick", "tree")
    assert status == 1 and kinds["absent-class"]["names"] == ["tree"]


def test_not_coco(coco, check):
    (coco / "truth.json").write_text("[]")
    status, kinds, _ = check(*coco_args(coco))
    assert status == 1 and counts(kinds) == {"not-coco": 1}


def test_pictures_twice_and_not_listed(coco, check):
    shutil.copy(coco / "val/0.png", coco / "val/2.png")

    def change(content):
        content["images"].append({**content["images"][0], "id": 7, "file_name": "2.png"})

    edit(coco, change)
    shutil.copy(coco / "val/0.png", coco / "val/3.PNG")
    status, kinds, _ = check(*coco_args(coco))
    assert status == 0 and counts(kinds) == {"no-annotation": 1, "unlisted-image": 1, "twice": 1}
    assert kinds["twice"]["names"] == ["0.png = 2.png"]
    assert kinds["unlisted-image"]["names"] == ["3.PNG"]


# ADE20K ----------------------------------------------------------------------------------------


@pytest.fixture
def ade(tmp_path):
    """Folder of `images/{0,1}.jpg` and `labels/{0,1}.png`: 0 is no label, 1 to 4 occur."""
    write_segmentation(tmp_path / "data")
    return tmp_path / "data"


def ade_args(root, count=4):
    folders = root / "images", root / "labels"
    return "--ade", *folders, "--num-classes", count, "--reduce-zero-label"


def labels(path):
    return np.array(Image.open(path))


def test_clean_ade(ade, check):
    assert check(*ade_args(ade))[:2] == (0, {})


def test_numbers_of_labels(ade, check):
    status, kinds, _ = check(*ade_args(ade, 3))
    assert status == 1 and counts(kinds) == {"label-range": 1}
    assert kinds["label-range"]["names"] == ["1.png (4)"]
    status, kinds, _ = check(*ade_args(ade)[:-1])
    assert counts(kinds) == {"label-range": 1}
    status, kinds, _ = check(*ade_args(ade, 6))
    assert status == 0 and counts(kinds) == {"unused-class": 2}
    assert kinds["unused-class"]["names"] == ["5", "6"]


def test_kinds_of_label_maps(ade, check):
    first, second = ade / "labels/0.png", ade / "labels/1.png"
    Image.open(first).convert("RGB").save(first)
    Image.fromarray(labels(second).astype(np.uint16) + 256).save(second)
    status, kinds, _ = check(*ade_args(ade))
    assert status == 1
    assert counts(kinds) == {"label-colour": 1, "label-16-bit": 1, "unused-class": 4}


def test_palette_and_compression(ade, check):
    first, second = ade / "labels/0.png", ade / "labels/1.png"
    image = Image.open(first)
    image.putpalette(list(range(256)) * 3)
    image.save(first)
    Image.new("L", (120, 200), 1).save(second, "JPEG")
    status, kinds, _ = check(*ade_args(ade))
    assert status == 1
    assert counts(kinds) == {"label-lossy": 1, "label-palette": 1, "unused-class": 1}


def test_label_maps_that_do_not_fit(ade, check):
    first = ade / "labels/0.png"
    Image.open(first).resize((100, 60), Image.Resampling.NEAREST).save(first)
    empty = Image.fromarray(labels(ade / "labels/1.png") * 0)
    empty.save(ade / "labels/1.png")
    status, kinds, _ = check(*ade_args(ade))
    assert status == 1
    assert counts(kinds) == {"label-size": 1, "label-empty": 1, "unused-class": 1}
    assert kinds["label-size"]["names"] == ["0.png (100x60, the image is 200x120)"]


def test_turned_picture_with_labels(ade, check):
    turned(ade / "images/0.jpg")
    status, kinds, _ = check(*ade_args(ade))
    assert status == 1 and counts(kinds) == {"label-size": 1}


def test_files_without_their_pair(ade, check):
    shutil.copy(ade / "labels/0.png", ade / "labels/2.png")
    (ade / "images/0.jpg").rename(ade / "images/0.jpeg")
    (ade / "labels/1.png").unlink()
    status, found, _ = check(*ade_args(ade))
    assert status == 1
    assert [(one["kind"], one["names"]) for one in found] == [
        ("no-label", ["1.png"]),
        ("not-taken", ["0.jpeg"]),
        ("not-taken", ["0.png", "2.png"]),
        ("unused-class", ["1", "2", "3", "4"]),
    ]


def test_broken_label_map(ade, check):
    half(ade / "labels/0.png")
    status, kinds, _ = check(*ade_args(ade))
    assert status == 1 and counts(kinds) == {"label-unreadable": 1, "unused-class": 2}


# ImageNet --------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path):
    """Folder of `train/<class>/{0,1}.png` and `val/<class>/0.png` for three classes."""
    write_classification(tmp_path / "data")
    root = tmp_path / "data"
    shutil.move(root / "val", root / "train")
    for i, name in enumerate(CLASSES):
        (root / "val" / name).mkdir(parents=True)
        Image.new("RGB", (40, 30), (i, 9, 9)).save(root / "val" / name / "0.png")
    return root


def test_clean_imagenet(folders, check):
    assert check("--imagenet", folders / "train", folders / "val")[:2] == (0, {})
    assert check("--imagenet", folders / "train")[:2] == (0, {})


def test_faults_of_folders(folders, check):
    (folders / "train/leaf/0.png").rename(folders / "train/leaf/0.webp")
    (folders / "train/pond/0.png").unlink()
    (folders / "train/pond/1.png").unlink()
    (folders / "val/brick").rename(folders / "val/stone")
    status, kinds, _ = check("--imagenet", folders / "train", folders / "val")
    assert status == 1
    assert counts(kinds) == {"empty-class": 1, "not-taken": 1, "classes-differ": 1}
    assert kinds["not-taken"]["names"] == ["leaf/0.webp"]
    assert kinds["empty-class"]["names"] == ["pond"]


def test_pictures_in_two_places(folders, check):
    shutil.copy(folders / "train/leaf/0.png", folders / "train/leaf/2.png")
    shutil.copy(folders / "train/brick/0.png", folders / "train/pond/3.png")
    shutil.copy(folders / "train/brick/1.png", folders / "val/brick/1.png")
    status, kinds, _ = check("--imagenet", folders / "train", folders / "val")
    assert status == 0
    assert counts(kinds) == {"several-classes": 1, "twice": 1, "also-trained-on": 1}
    assert kinds["several-classes"]["names"] == ["brick/0.png = pond/3.png"]
    assert kinds["also-trained-on"]["names"] == ["brick/1.png"]


def test_turned_pictures_are_only_noted(folders, check):
    turned(folders / "train/leaf/0.png", 3)
    status, kinds, _ = check("--imagenet", folders / "train")
    assert status == 0 and counts(kinds) == {"turned": 1}
    assert kinds["turned"]["severity"] == "note"


def test_lists(folders, check, tmp_path):
    config = write_config(folders, tmp_path, ann_file="list.txt")
    (folders / "list.txt").write_text("leaf/0.png 1\npond/0.png 7\n")
    status, kinds, _ = check(config, "--splits", "train")
    assert status == 1 and counts(kinds) == {"list": 1}
    (folders / "list.txt").write_text("leaf/0.png 1\nroof/0.png 2\n")
    status, kinds, _ = check(config, "--splits", "train")
    assert status == 1 and kinds["missing"]["names"] == ["roof/0.png"]


# Configs, processes, command line ---------------------------------------------------------------


def write_config(folders, tmp_path, **changes):
    from golden import CONFIGS
    from mmengine.config import Config

    cfg = Config.fromfile(CONFIGS / "mmpretrain/vig-h-mini_digits.py")
    for split in ("train", "val", "test"):
        cfg[f"{split}_dataloader"].dataset.data_root = str(folders)
    cfg.train_dataloader.dataset.update(changes)
    cfg.model.head.num_classes = cfg.model.data_preprocessor.num_classes = len(CLASSES)
    cfg.dump(tmp_path / "config.py")
    return tmp_path / "config.py"


def test_config(folders, check, tmp_path):
    config = write_config(folders, tmp_path)
    status, kinds, _ = check(config)
    assert status == 0 and kinds == {}
    half(folders / "val/pond/0.png")
    status, kinds, printed = check(config)
    # once, though the test loader is the validation loader
    assert status == 1 and counts(kinds) == {"truncated": 1}
    assert "val_dataloader.dataset: 1 of 3 images" in printed
    status, kinds, _ = check(config, "--splits", "train")
    assert status == 0 and kinds == {}


def test_many_files_in_other_processes(tmp_path, check, monkeypatch):
    folder = tmp_path / "train/a"
    folder.mkdir(parents=True)
    for i in range(80):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / f"{i:02}.png")
    half(folder / "33.png")
    half(folder / "77.png")
    status, kinds, _ = check("--imagenet", tmp_path / "train", "--workers", 2)
    assert status == 1 and kinds["truncated"]["names"] == ["a/33.png", "a/77.png"]


def killed(path, **_):
    assert multiprocessing.parent_process() is not None
    os.kill(os.getpid(), signal.SIGKILL)


def test_killed_process(tmp_path, check, monkeypatch):
    """As by Linux when memory runs out; the others must not be waited for."""
    for i in range(80):
        path = tmp_path / "train/a" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    # the package has a function of the module's name
    module = importlib.import_module("vig_mm.checks.data.check")
    monkeypatch.setattr(module, "image_facts", killed)
    with pytest.raises(UsageError, match="a process was killed, .* --workers 1"):
        check("--imagenet", tmp_path / "train", "--workers", 2)


def test_names_that_are_not_text(folders, check):
    name = os.fsdecode(b"b\xe4r.png")
    shutil.copy(folders / "train/leaf/0.png", folders / "train/leaf" / name)
    status, kinds, printed = check("--imagenet", folders / "train")
    assert status == 0 and kinds["twice"]["names"] == [f"leaf/0.png = leaf/{name}"]
    assert r"leaf/b\udce4r.png" in printed


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "one of the arguments"),
        (("--ade", ".", "."), "needs --num-classes"),
        (("--imagenet", "a", "b", "c"), "one folder or two"),
        (("--coco", "nothing.json", "."), "'nothing.json' is not there"),
        (
            ("--imagenet", ".", "--out", "."),
            "--out cannot be written: [Errno 21] Is a directory: '.'",
        ),
    ],
)
def test_wrong_command_lines(args, message, load_tool, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["check_dataset.py", *args])
    with pytest.raises(SystemExit) as error:
        load_tool("data/check_dataset").main()
    assert error.value.code == 2 and message in capsys.readouterr().err
