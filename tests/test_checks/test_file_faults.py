"""Files that PIL or the system does not open, lists that are wrong, and long polygons."""

import io
import os
import struct
import zlib
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("mmseg")
pytest.importorskip("mmpretrain")

import mmcv
from golden import CONFIGS
from mmengine.config import Config
from mmengine.dataset import Compose
from mmseg.datasets.transforms import LoadAnnotations
from PIL import Image

from vig_mm.checks.data import DataCheck, report
from vig_mm.checks.data.guard import GuardedPipeline
from vig_mm.checks.data.images import file_fault, image_facts
from vig_mm.errors import DataError, SampleError


def encoded(kind, mode="RGB", size=(60, 48), **options):
    buffer = io.BytesIO()
    Image.effect_noise(size, 90).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


label_facts = partial(image_facts, flag="unchanged", labels=True)
LABELS = encoded("PNG", "1")
DIGITS = [str(i) for i in range(10)]


def guarded(*transforms, classes=()):
    data = SimpleNamespace(metainfo=dict(classes=classes))
    return GuardedPipeline(Compose(list(transforms)), data)


# Pictures of more pixels than PIL opens --------------------------------------------------------


@pytest.fixture
def limit(monkeypatch):
    """PIL opens nothing of more than 200 pixels, and the limit is the same afterwards."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    yield
    assert Image.MAX_IMAGE_PIXELS == 100


def test_large_picture_is_read(limit, tmp_path):
    tags = Image.Exif()
    tags[0x0112] = 6
    files = {
        "a.jpg": encoded("JPEG", "L", exif=tags),
        "b.png": encoded("PNG", "LA"),
        "c.webp": encoded("WEBP"),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    grey, clear, other = (image_facts(str(tmp_path / name)) for name in files)
    assert (grey.fault, grey.mode, grey.size, grey.loaded) == (None, "L", (48, 60), (60, 48))
    assert grey.orientation == 6
    assert (clear.fault, clear.format, clear.transparent) == (None, "PNG", False)
    assert (other.fault, other.format, other.loaded) == (None, "WEBP", (48, 60))


def test_large_picture_that_is_cut_off(limit, tmp_path):
    (tmp_path / "a.png").write_bytes(encoded("PNG")[:-300])
    assert file_fault(str(tmp_path / "a.png")) == "truncated"


def test_picture_beyond_every_limit(tmp_path):
    """It is not decoded, which would fill the memory."""

    def chunk(kind, content):
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 6, 0, 0, 0))
    content = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(99)))
    (tmp_path / "a.png").write_bytes(content + chunk(b"IEND", b""))
    facts = image_facts(str(tmp_path / "a.png"))
    assert (facts.fault, facts.format, facts.size) == ("unreadable", "PNG", (60000, 60000))
    (tmp_path / "a.png").write_bytes(content)
    assert file_fault(str(tmp_path / "a.png")) is None  # OpenCV refuses it


def test_large_label_map(limit, tmp_path):
    """Only as the loader loads it."""
    path = tmp_path / "a.png"
    Image.fromarray(np.full((48, 60), 7, np.uint8)).save(path)
    assert label_facts(str(path), backend="cv2").values == (7,)
    facts = label_facts(str(path), backend="pillow")
    assert facts.fault == "unreadable" and "exceeds limit" in facts.detail


def test_values_of_a_large_label_map(limit, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.full((48, 60), 256, np.uint16)).save(path)
    load = guarded(LoadAnnotations(imdecode_backend="cv2"), classes=("a", "b"))
    with pytest.raises(SampleError, match="a.png' holds the value 256"):
        load(dict(seg_map_path=str(path), reduce_zero_label=False, seg_fields=[], label_map=None))


# What the system does not open, as a file without permission (which root may read) ---------------


def test_unreadable_picture(tmp_path):
    path = str(tmp_path)
    assert file_fault(path) == "unreadable"
    assert (image_facts(path).fault, label_facts(path).fault) == ("unreadable", "unreadable")
    assert "Is a directory" in label_facts(path).detail
    with pytest.raises(SampleError, match=rf"'{path}': LoadImageFromFile failed \(IsADirectory"):
        guarded(mmcv.transforms.LoadImageFromFile())(dict(img_path=path))


def test_label_map_that_only_pil_knows(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded("PCX", "L"))
    facts = label_facts(str(tmp_path / "a.png"), backend="cv2")
    assert (facts.fault, facts.detail) == ("unreadable", "cv2 cannot decode it")


# Lists -------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path):
    """`folders(list's content)`: the findings on one picture and a list."""

    def check(content, **changes):
        (tmp_path / "train/one").mkdir(parents=True, exist_ok=True)
        (tmp_path / "train/one/a b.jpg").touch()
        (tmp_path / "list.txt").write_bytes(content)
        cfg = Config.fromfile(CONFIGS / "mmpretrain/vig-h-mini_digits.py")
        data = dict(data_root=str(tmp_path), ann_file="list.txt", metainfo=dict(classes=DIGITS))
        cfg.train_dataloader.dataset.update({**data, **changes})
        return DataCheck(cfg, ("train",)).findings

    return check


@pytest.fixture
def ade(tmp_path):
    """`ade(list's content)`: the findings on one picture with its label map, and a list."""

    def check(content, label=LABELS):
        for name, file in (("images/a b.jpg", b""), ("annotations/a b.png", label)):
            path = tmp_path / name.replace("/", "/training/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file)
        (tmp_path / "list.txt").write_bytes(content)
        cfg = Config.fromfile(CONFIGS / "mmseg/vig-h-mini_upernet_digits.py")
        cfg.train_dataloader.dataset.update(data_root=str(tmp_path), ann_file="list.txt")
        return DataCheck(cfg, ("train",)).findings

    return check


def only(findings):
    (found,) = findings
    assert found.severity == "error"
    return found.text


def test_names_with_blanks(folders, ade):
    assert folders(b"one/a b.jpg 1\r\n") == [] and ade(b"a b\r\n") == []
    assert folders(b"one/a b.jpg\n", with_label=False) == []


def test_list_that_is_empty(folders, ade):
    for check in (folders, ade):
        assert "list.txt' is empty: list the images" in only(check(b""))


def test_line_that_is_empty(folders, ade):
    assert "line 2 of" in only(folders(b"one/a b.jpg 1\n\n"))
    text = only(ade(b"a b\n\n"))
    assert "line 2 of" in text and "list.txt' is empty: delete it" in text and "'.jpg'" in text


def test_lines_are_split_as_by_the_libraries(folders, ade):
    """At line feeds only."""
    assert "'one/\\x0ca b.jpg'" in only(folders(b"one/\x0ca b.jpg 1\n"))
    assert "'a\\x0cb.jpg'" in only(ade(b"a\x0cb\n"))
    assert "'one/a b.jpg '" in only(folders(b"one/a b.jpg \n", with_label=False))


def test_list_that_is_not_utf8(folders, ade):
    for check in (folders, ade):
        text = only(check(b"b\xe4r.jpg 1\n"))
        assert "list.txt' is not UTF-8" in text and "save it as UTF-8" in text


def test_list_without_permission(folders, ade, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(report, "list_from_file", refuse)
    for check in (folders, ade):
        text = only(check(b"a"))
        assert "cannot be read" in text and "list.txt'): correct its permissions" in text


def test_folder_without_an_image(folders, tmp_path):
    (tmp_path / "test").mkdir()
    changes = dict(ann_file="", data_prefix="test", with_label=False)
    assert "test' has no file that ends in one of .bmp, .jpeg" in only(folders(b"", **changes))


def test_pictures_beside_the_class_folders(folders, tmp_path):
    for name in ("a.jpg", "b.WEBP", "readme.txt"):
        (tmp_path / "train").mkdir(exist_ok=True)
        (tmp_path / "train" / name).touch()
    changes = dict(ann_file="", metainfo=dict(classes=["one"]))
    found = [one for one in folders(b"", **changes) if one.kind == "not-taken"]
    assert [(one.severity, one.names) for one in found] == [("warning", ("a.jpg", "b.WEBP"))]
    assert "2 files in" in found[0].left_out and "in no class folder" in found[0].left_out


def test_label_map_says_why_it_cannot_be_read(ade):
    content = encoded("PNG", "L")
    text = only(ade(b"a b", content[:99] + content[-8:]))
    assert "cannot be read, e.g. a b.png (broken data stream" in text
    assert "copy or download it again" in text


@pytest.mark.parametrize("folder", ["train", "train/one", "train/one/more"])
def test_folder_without_permission(folder, folders, tmp_path, monkeypatch):
    """What os.walk would pass over in silence."""
    (tmp_path / "train/one/more").mkdir(parents=True)
    scandir = os.scandir

    def refuse(path):
        if path == str(tmp_path / folder):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=f"{folder}' cannot be read: .* correct its permissions"):
        folders(b"", ann_file="", data_prefix="train")


def test_arrays(tmp_path):
    """Of a loader that reads .npy, as that of the forks' HSIDrive20Dataset does."""
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((4, 6, 25), np.uint16))
    facts = image_facts(str(path), "unchanged", "numpy")
    assert facts.fault is None and facts.loaded == (4, 6)
    assert image_facts(str(path)).fault == "not-an-image"
    path.write_bytes(path.read_bytes()[:300])
    assert image_facts(str(path), "unchanged", "numpy").fault == "not-an-image"
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png")  # which that loader takes, too
    assert image_facts(str(tmp_path / "a.png"), "unchanged", "numpy").loaded == (4, 6)
