"""Pictures: what cannot be loaded whole is refused by name; what a loader changes is as said."""

import struct
import subprocess
import sys
import zlib
from functools import partial
from types import SimpleNamespace

import mmcv
import numpy as np
import pytest

pytest.importorskip("mmseg")
pytest.importorskip("mmpretrain")

from mmengine.dataset import Compose
from mmengine.runner import Runner
from mmseg.datasets.transforms import LoadAnnotations
from PIL import Image
from tiny_data import (
    JPG,
    PNG,
    SIZE,
    TURNED,
    built,
    encoded,
    exif,
    folders,
    label_map,
    picture,
    write,
)
from tool_runs import ROOT, small_config
from torch.utils.data import DataLoader

from vig_mm.checks.data import guard as guard_module
from vig_mm.checks.data.guard import GuardedPipeline
from vig_mm.checks.data.images import file_fault, image_facts
from vig_mm.errors import SampleError

CUT = len(JPG) * 6 // 10
label_facts = partial(image_facts, flag="unchanged", labels=True)


def noise(kind, mode="RGB", **options):
    return encoded(Image.effect_noise(SIZE, 90).convert(mode), kind, **options)


def loaded(root, content, name="bad.jpg", **load):
    """The data set of a file in a class folder."""
    pipeline = [dict(type="LoadImageFromFile", **load), dict(type="PackInputs")]
    cfg = folders(root, f"a/{name}", pipeline=pipeline)
    write(root / "train/a" / name, content)
    return built(cfg)


BROKEN = {
    "empty": (b"", r"is empty \(0 bytes\)"),
    "cut jpg": (JPG[:CUT], "is cut off"),
    "jpg with zeros for the rest": (JPG[:CUT] + bytes(len(JPG) - CUT), "is cut off"),
    "jpg cut in its header": (JPG[:100], "is cut off"),
    "cut png": (PNG[:-200], "is cut off"),
    "cut webp": (encoded(picture(), "WEBP")[:-200], "is cut off"),
    "page for a picture": (b"<!DOCTYPE html><html>404</html>", "failed to load image"),
    "gone": (None, "is not there"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_picture_is_refused_by_name(what, tmp_path):
    content, words = BROKEN[what]
    path = write(tmp_path / "train/a/bad.jpg", JPG)
    dataset = built(folders(tmp_path, "a/bad.jpg"))
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(SampleError, match=f"^'{path}'.*{words}.*check_dataset.py"):
        dataset[0]


PREVIEW = JPG[:2] + b"\xff\xe1" + (len(JPG) + 2).to_bytes(2, "big") + JPG
WHOLE = {
    "plain": JPG,
    "zeros behind": JPG + bytes(90),
    "film behind": JPG + b"\xff\xda film",
    "preview with an end of its own": PREVIEW + JPG[2:],
    "png": PNG,
    "png and more": PNG + b"more",
    "gif": encoded(picture(), "GIF"),
}


@pytest.mark.parametrize("what", WHOLE)
def test_whole_files_are_not_suspected(what, tmp_path):
    assert file_fault(str(write(tmp_path / "a", WHOLE[what]))) is None
    assert file_fault(str(write(tmp_path / "a", PREVIEW + JPG[2:CUT]))) == "truncated"


def test_error_of_a_worker_is_one_message(tmp_path):
    dataset = built(folders(tmp_path, "a/bad.jpg"))
    write(tmp_path / "train/a/bad.jpg")
    with pytest.raises(SampleError) as error:
        next(iter(DataLoader(dataset, num_workers=1, collate_fn=list)))
    message = str(error.value)
    assert message.startswith("'") and "\n" not in message and "is empty (0 bytes)" in message


def test_wrapped_data_sets_are_guarded(tmp_path):
    cfg = folders(tmp_path, "a/bad.jpg")
    leaf = dict(cfg.train_dataloader.dataset, type="mmpretrain.CustomDataset", _scope_="mmpretrain")
    write(tmp_path / "train/a/bad.jpg", JPG[:CUT])
    both = dict(type="ConcatDataset", datasets=[leaf, leaf])
    runner = SimpleNamespace(build_dataloader=Runner.build_dataloader)
    guard_module.guard_loaders(runner)
    data = dict(type="RepeatDataset", times=2, dataset=both)
    sampler = dict(type="DefaultSampler", shuffle=False)
    loader = runner.build_dataloader(dict(dataset=data, sampler=sampler, batch_size=1))
    for i in range(3):
        with pytest.raises(SampleError, match="bad.jpg' is cut off"):
            loader.dataset[i]


def test_ignore_empty_takes_another_and_says_so(tmp_path, monkeypatch):
    write(tmp_path / "train/a/good.jpg", encoded(Image.new("RGB", SIZE, "red")))
    dataset = loaded(tmp_path, JPG[:CUT], ignore_empty=True)
    messages = []
    monkeypatch.setattr(guard_module, "print_log", lambda text, *_: messages.append(text))
    assert "good" in dataset[0]["data_samples"].img_path
    assert messages and "bad.jpg' is cut off" in messages[0]


CLEAR, PALETTE = picture(), picture().convert("P")
CLEAR.putalpha(0)
GREY = picture().convert("L")
DEEP = np.arange(48 * 60, dtype=np.uint16).reshape(48, 60) * 22
# file, its picture in RGB as the network gets it, how far it may be off on average
KINDS = {
    "grey": (encoded(GREY, "PNG"), GREY.convert("RGB"), 0),
    "CMYK": (encoded(Image.new("CMYK", SIZE, (255, 0, 0, 0))), Image.new("RGB", SIZE, "cyan"), 90),
    "transparent": (encoded(CLEAR, "PNG"), picture(), 0),
    "palette": (encoded(PALETTE, "PNG"), PALETTE.convert("RGB"), 0),
    "16 bits": (encoded(Image.fromarray(DEEP), "PNG"), Image.fromarray(np.uint8(DEEP >> 8)), 1),
    "turned": (TURNED, picture().transpose(Image.Transpose.ROTATE_270), 20),
}


@pytest.mark.parametrize("what", KINDS)
def test_what_the_loader_makes_of_pictures(what, tmp_path):
    content, expected, off = KINDS[what]
    got = loaded(tmp_path, content, "a.png")[0]["inputs"].numpy()[::-1].astype(int)
    assert np.abs(got - np.asarray(expected.convert("RGB")).transpose(2, 0, 1)).mean() <= off


# Pictures of more pixels than PIL opens, and what the system does not open ------------------------


@pytest.fixture
def limit(monkeypatch):
    """PIL opens nothing of more than 200 pixels, and the limit is the same afterwards."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    yield
    assert Image.MAX_IMAGE_PIXELS == 100


def test_large_pictures(limit, tmp_path):
    files = {"a.jpg": noise("JPEG", "L", exif=exif(6)), "b.png": noise("PNG", "LA"),
             "c.webp": noise("WEBP")}  # fmt: skip
    grey, clear, other = (image_facts(str(write(tmp_path / k, x))) for k, x in files.items())
    assert (grey.fault, grey.mode, grey.size, grey.loaded) == (None, "L", (48, 60), (60, 48))
    assert grey.orientation == 6
    assert (clear.fault, clear.format, clear.transparent) == (None, "PNG", False)
    assert (other.fault, other.format, other.loaded) == (None, "WEBP", (48, 60))
    assert file_fault(str(write(tmp_path / "a.png", noise("PNG")[:-300]))) == "truncated"


def test_picture_beyond_every_limit(tmp_path):
    """It is not decoded, which would fill the memory."""

    def chunk(kind, content):
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 6, 0, 0, 0))
    content = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(99)))
    facts = image_facts(str(write(tmp_path / "a.png", content + chunk(b"IEND", b""))))
    assert (facts.fault, facts.format, facts.size) == ("unreadable", "PNG", (60000, 60000))
    assert file_fault(str(write(tmp_path / "a.png", content))) is None  # OpenCV refuses it


def guarded(transform, *classes):
    return GuardedPipeline(Compose([transform]), SimpleNamespace(metainfo=dict(classes=classes)))


def test_large_label_maps(limit, tmp_path):
    """Only as the loader loads them."""
    path = write(tmp_path / "a.png", label_map(7))
    assert label_facts(str(path), backend="cv2").values == (7,)
    facts = label_facts(str(path), backend="pillow")
    assert facts.fault == "unreadable" and "exceeds limit" in facts.detail
    write(path, label_map(256))
    load = guarded(LoadAnnotations(imdecode_backend="cv2"), "a", "b")
    with pytest.raises(SampleError, match="a.png' holds the value 256"):
        load(dict(seg_map_path=str(path), reduce_zero_label=False, seg_fields=[], label_map=None))
    write(path, noise("PCX", "L"))  # PIL knows it, OpenCV does not
    facts = label_facts(str(path), backend="cv2")
    assert (facts.fault, facts.detail) == ("unreadable", "cv2 cannot decode it")


def test_unreadable_picture(tmp_path):
    """As a file without permission, which root may read."""
    path = str(tmp_path)
    assert file_fault(path) == "unreadable"
    assert (image_facts(path).fault, label_facts(path).fault) == ("unreadable", "unreadable")
    assert "Is a directory" in label_facts(path).detail
    with pytest.raises(SampleError, match=rf"'{path}': LoadImageFromFile failed \(IsADirectory"):
        guarded(mmcv.transforms.LoadImageFromFile())(dict(img_path=path))


def test_arrays(tmp_path):
    """Of a loader that reads .npy, as that of the forks' HSIDrive20Dataset does."""
    facts_of = partial(image_facts, flag="unchanged", backend="numpy")
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((4, 6, 25), np.uint16))
    facts = facts_of(str(path))
    assert facts.fault is None and facts.loaded == (4, 6)
    assert image_facts(str(path)).fault == "not-an-image"
    assert facts_of(str(write(path, path.read_bytes()[:300]))).fault == "not-an-image"
    # a picture, which that loader takes, too
    assert facts_of(str(write(tmp_path / "a.png", PNG))).loaded == (48, 60)


def test_train_ends_in_one_message(tmp_path):
    """What is left out is in the log, and a bad file ends the run by name."""
    folders(tmp_path, *(f"{name}/{i}.jpg" for name in "ab" for i in range(4)), "b/4.webp")
    bad = write(tmp_path / "train/b/2.jpg", JPG[:CUT])
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
    assert "tools/train.py: error: " in last and f"{bad}' is cut off" in last
