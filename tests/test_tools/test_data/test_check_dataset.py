"""Every fault planted in a clean little data set is found, counted and named, and no other."""

import importlib
import json
import multiprocessing
import os
import shutil
import signal
import sys

import pytest
from known_cases import CLASSES, CONFIGS, write_classification, write_detection, write_segmentation
from mmengine.config import Config
from PIL import Image
from tiny_data import CONFIGS as FOLDER
from tiny_data import exif

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


@pytest.fixture
def root(tmp_path):
    """`truth.json` and `val/{0,1}.png` with objects 1 to 3; `images/{0,1}.jpg` and `labels/` with
    0 for no label and 1 to 4; `train/<class>/{0,1}.png` and `test/<class>/0.png`."""
    data = tmp_path / "data"
    write_detection(data / "coco")
    write_segmentation(data)
    write_classification(data / "folders")
    shutil.move(data / "coco/val", data / "val")
    shutil.move(data / "coco/truth.json", data)
    shutil.move(data / "folders/val", data / "train")
    for i, name in enumerate(CLASSES):
        (data / "test" / name).mkdir(parents=True)
        Image.new("RGB", (40, 30), (i, 9, 9)).save(data / "test" / name / "0.png")
    return data


def counts(kinds):
    return {kind: one["count"] for kind, one in kinds.items()}


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# Faults: functions of the data's folder -----------------------------------------------------------


def edit(**changes):
    """Change annotations of the COCO file (`a0=dict(...)`)."""

    def do(root):
        content = json.loads((root / "truth.json").read_text())
        for key, values in changes.items():
            content["annotations"][int(key[1:])].update(values)
        (root / "truth.json").write_text(json.dumps(content))

    return do


def image(name, change, kind=None, **options):
    """Write a picture again as another."""

    def do(root):
        with Image.open(root / name) as picture:
            picture.load()
        change(picture).save(root / name, kind, **options)

    return do


def turned(name, orientation=6):
    return image(name, lambda picture: picture, exif=exif(orientation))


def copy(source, target):
    return lambda root: shutil.copy(root / source, root / target)


def text(name, content=""):
    return lambda root: (root / name).write_text(content)


def cut(name):
    return lambda root: half(root / name)


def listed_again(root):
    shutil.copy(root / "val/0.png", root / "val/2.png")
    content = json.loads((root / "truth.json").read_text())
    content["images"].append({**content["images"][0], "id": 7, "file_name": "2.png"})
    (root / "truth.json").write_text(json.dumps(content))


def coco(root, *more):
    return "--coco", root / "truth.json", root / "val", *more


def ade(root, count=4, *more):
    return "--ade", root / "images", root / "labels", "--num-classes", count, *more


REDUCE = "--reduce-zero-label"
ADE = (ade, 4, REDUCE)
FOLDERS = (lambda root: ("--imagenet", root / "train", root / "test"),)
TRAIN = (lambda root: ("--imagenet", root / "train"),)
# what is checked, faults, counts by kind, a name that occurs in the findings; an E: errors
FAULTS = {
    "coco": ((coco,), [], {}, "", ""),
    "pictures": ((coco,), [cut("val/0.png"), text("val/1.png")], dict(empty=1, truncated=1),
                 "0.png", "E"),
    "no pictures": (
        (coco,), [text("val/0.png", "<html>404"), lambda root: (root / "val/1.png").unlink()],
        {"not-an-image": 1, "missing": 1}, "0.png (it begins with b'<html>404')", "E"),
    "clear, palette": (
        (coco,), [image("val/0.png", lambda x: Image.new("LA", x.size, (9, 100))),
                  image("val/1.png", lambda x: x.convert("P"))],
        dict(transparent=1, grey=1, palette=1), "0.png", ""),
    "deep, CMYK": (
        (coco,), [image("val/0.png", lambda x: Image.new("I;16", x.size, 4000)),
                  image("val/1.png", lambda x: x.convert("CMYK"), "JPEG")],
        {"deep": 1, "cmyk": 1, "grey": 1, "other-ending": 1}, "1.png", ""),
    "turned": ((coco,), [turned("val/0.png"), turned("val/1.png", 3)],
               {"turned-size": 1, "turned-unclear": 1},
               "0.png (200x120 in the file, the picture is 120x200)", "E"),
    "shapes": (
        (coco,), [edit(a0=dict(bbox=[20, 30, 80, 100]),
                       a1=dict(segmentation=[[120, 10, 190, 60, 155, 35]]),
                       a2=dict(segmentation=[[10, 100, 110, 190, 110, 100, 10, 190]],
                               bbox=[10, 100, 150, 90]))],
        {"corner-box": 1, "no-mask-area": 1, "crossing": 1, "beyond": 2}, "id 3 of '1.png'", "E"),
    "box apart": ((coco,), [edit(a0=dict(bbox=[150, 80, 30, 30]))], {"box-mask": 1},
                  "id 1 of '0.png'", ""),
    "part": ((coco, "--classes", "brick", "leaf"), [], {"other-class": 1, "no-annotation": 1}, "",
             ""),
    "class": ((coco, "--classes", "brick", "tree"), [],
              {"absent-class": 1, "other-class": 2, "no-annotation": 1, "unused-class": 1}, "tree",
              "E"),
    "again": ((coco,), [listed_again, copy("val/0.png", "val/3.PNG")],
              {"no-annotation": 1, "unlisted-image": 1, "twice": 1}, "0.png = 2.png", ""),
    "ade": (ADE, [], {}, "", ""),
    "not reduced": ((ade, 4), [], {"label-range": 1}, "1.png (4)", "E"),
    "unused": ((ade, 6, REDUCE), [], {"unused-class": 2}, "6", ""),
    "palette, jpg": (
        ADE, [image("labels/0.png", lambda x: x.convert("P")),
              image("labels/1.png", lambda x: Image.new("L", x.size, 1), "JPEG")],
        {"label-lossy": 1, "label-palette": 1, "unused-class": 1}, "1.png", "E"),
    "size, nothing": (
        ADE, [image("labels/0.png", lambda x: x.resize((100, 60), 0)),
              image("labels/1.png", lambda x: Image.new("L", x.size))],
        {"label-size": 1, "label-empty": 1, "unused-class": 1},
        "0.png (100x60, the image is 200x120)", "E"),
    "imagenet": (FOLDERS, [], {}, "", ""),
    "two places": (
        FOLDERS, [copy("train/leaf/0.png", "train/leaf/2.png"),
                  copy("train/brick/0.png", "train/pond/3.png"),
                  copy("train/brick/1.png", "test/brick/1.png")],
        {"several-classes": 1, "twice": 1, "also-trained-on": 1}, "brick/0.png = pond/3.png", ""),
    "turned, noted": (TRAIN, [turned("train/leaf/0.png", 3)], dict(turned=1), "leaf/0.png", ""),
    "no text": (
        TRAIN, [copy("train/leaf/0.png", f"train/leaf/{os.fsdecode(bytes([98, 228]))}.png")],
        dict(twice=1), "leaf/0.png = leaf/b\udce4.png", ""),
}  # fmt: skip


@pytest.mark.parametrize("what", FAULTS)
def test_faults(what, root, check):
    (arguments, *more), faults, expected, name, errors = FAULTS[what]
    for do in faults:
        do(root)
    status, kinds, printed = check(*arguments(root, *more))
    assert counts(kinds) == expected and status == bool(errors)
    assert not name or name in [x for one in kinds.values() for x in one["names"]]
    assert any(one["severity"] == "error" for one in kinds.values()) == status
    assert "1 error" in printed or "0 errors" in printed or "2 errors" in printed
    assert r"b\udce4.png" in printed or what != "no text"


def test_files_without_their_pair(root, check):
    shutil.copy(root / "labels/0.png", root / "labels/2.png")
    (root / "images/0.jpg").rename(root / "images/0.jpeg")
    (root / "labels/1.png").unlink()
    status, found, _ = check(*ade(root, 4, REDUCE))
    assert status == 1
    assert [(one["kind"], one["names"]) for one in found] == [
        ("no-label", ["1.png"]),
        ("not-taken", ["0.jpeg"]),
        ("not-taken", ["0.png", "2.png"]),
        ("unused-class", ["1", "2", "3", "4"]),
    ]


def write_config(root, **changes):
    cfg = Config.fromfile(FOLDER / CONFIGS["mmpretrain"])
    for split in ("train", "val", "test"):
        cfg[f"{split}_dataloader"].dataset.data_root = str(root)
        cfg[f"{split}_dataloader"].dataset.data_prefix = "train" if split == "train" else "test"
    cfg.train_dataloader.dataset.update(changes)
    cfg.model.head.num_classes = cfg.model.data_preprocessor.num_classes = len(CLASSES)
    cfg.dump(root / "config.py")
    return root / "config.py"


def test_config(root, check):
    config = write_config(root)
    assert check(config)[:2] == (0, {})
    half(root / "test/pond/0.png")
    status, kinds, printed = check(config)
    # once, though the test loader is the validation loader
    assert status == 1 and counts(kinds) == {"truncated": 1}
    assert "val_dataloader.dataset: 1 of 3 images" in printed
    assert check(config, "--splits", "train")[:2] == (0, {})
    config = write_config(root, ann_file="list.txt")
    (root / "list.txt").write_text("leaf/0.png 1\npond/0.png 7\n")
    status, kinds, _ = check(config, "--splits", "train")
    assert status == 1 and counts(kinds) == {"list": 1}
    (root / "list.txt").write_text("leaf/0.png 1\nroof/0.png 2\n")
    status, kinds, _ = check(config, "--splits", "train")
    assert status == 1 and kinds["missing"]["names"] == ["roof/0.png"]


@pytest.fixture
def many(tmp_path):
    for i in range(80):
        path = tmp_path / "train/a" / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i, 0, 0)).save(path)
    return tmp_path / "train"


def test_many_files_in_other_processes(many, check):
    half(many / "a/33.png")
    half(many / "a/77.png")
    status, kinds, _ = check("--imagenet", many, "--workers", 2)
    assert status == 1 and kinds["truncated"]["names"] == ["a/33.png", "a/77.png"]


def killed(path, **_):
    assert multiprocessing.parent_process() is not None
    os.kill(os.getpid(), signal.SIGKILL)


def test_killed_process(many, check, monkeypatch):
    """As by Linux when memory runs out; the others must not be waited for."""
    # the package has a function of the module's name
    module = importlib.import_module("vig_mm.checks.data.check")
    monkeypatch.setattr(module, "image_facts", killed)
    with pytest.raises(UsageError, match="a process was killed, .* --workers 1"):
        check("--imagenet", many, "--workers", 2)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "one of the arguments"),
        (("--ade", ".", "."), "needs --num-classes"),
        (("--imagenet", "a", "b", "c"), "one folder or two"),
        (("--coco", "nothing.json", "."), "'nothing.json' is not there"),
        (("--imagenet", ".", "--out", "."), "--out cannot be written: [Errno 21] Is a directory"),
    ],
)
def test_wrong_command_lines(args, message, load_tool, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["check_dataset.py", *args])
    with pytest.raises(SystemExit) as error:
        load_tool("data/check_dataset").main()
    assert error.value.code == 2 and message in capsys.readouterr().err
