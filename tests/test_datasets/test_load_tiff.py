"""16-bit TIFF of any number of bands: loaded as it is, checked, shown, trained on."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mmcv")
pytest.importorskip("mmpretrain")
pytest.importorskip("tifffile")

import tifffile
from mmengine.config import Config
from mmengine.dataset import Compose

from vig_mm.checks.data.guard import GuardedPipeline
from vig_mm.checks.data.images import file_fault, image_facts
from vig_mm.datasets import make_digits
from vig_mm.datasets.transforms import LoadTiff
from vig_mm.errors import SampleError

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs/mmpretrain/vig-h-mini_digits-4bands.py"
IMAGE = np.random.default_rng(0).integers(0, 65536, (5, 7, 6), np.uint16)
# How the same bands can stand in a file
WAYS = {
    "compressed": lambda path: tifffile.imwrite(
        path, IMAGE, photometric="minisblack", planarconfig="contig", compression="zlib"
    ),
    "planes": lambda path: tifffile.imwrite(
        path, IMAGE.transpose(2, 0, 1), photometric="minisblack", planarconfig="separate"
    ),
    "pages": lambda path: tifffile.imwrite(path, IMAGE.transpose(2, 0, 1)),
}


@pytest.mark.parametrize("way", WAYS)
def test_bands(way, tmp_path):
    path = str(tmp_path / "image.tif")
    WAYS[way](path)
    loaded = LoadTiff()(dict(img_path=path))
    assert loaded["img"].dtype == np.float32 and loaded["ori_shape"] == (5, 7)
    np.testing.assert_array_equal(loaded["img"], IMAGE)
    part = LoadTiff(bands=(4, 0), scale=0.5)(dict(img_path=path))["img"]
    np.testing.assert_array_equal(part, IMAGE[..., [4, 0]] * 0.5)
    facts = image_facts(path, "unchanged", "tifffile")
    assert facts.fault is None and facts.loaded == (5, 7)
    assert file_fault(path) is None
    with pytest.raises(ValueError, match=r"bands=\(6,\), but the file has 6 bands"):
        LoadTiff(bands=(6,))(dict(img_path=path))


def test_grey(tmp_path):
    path = str(tmp_path / "grey.tif")
    tifffile.imwrite(path, IMAGE[..., 0])
    np.testing.assert_array_equal(LoadTiff()(dict(img_path=path))["img"], IMAGE[..., :1])


def test_file_that_is_cut_off(tmp_path):
    path = tmp_path / "image.tif"
    WAYS["compressed"](path)
    path.write_bytes(path.read_bytes()[:60])
    pipeline = GuardedPipeline(Compose([LoadTiff()]), None)
    with pytest.raises(SampleError, match="image.tif"):
        pipeline(dict(img_path=str(path)))
    assert LoadTiff(ignore_empty=True)(dict(img_path=str(path))) is None
    assert image_facts(str(path), "unchanged", "tifffile").fault


def tool(name, *args, cwd):
    command = [sys.executable, "-W", "ignore", ROOT / "tools" / name, *args]
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


def test_four_bands_train(tmp_path):
    """The way of a user: write, check, look, train."""
    make_digits(tmp_path / "data/digits", coco=(0, 0), ade=(0, 0), imagenet=(2, 1))
    assert "30 files" in tool("data/digits_to_bands.py", cwd=tmp_path)
    path = next((tmp_path / "data/digits/bands").rglob("*.tif"))
    assert tifffile.imread(path).shape == (64, 64, 4)
    assert "0 errors, 0 warnings" in tool("data/check_dataset.py", CONFIG, cwd=tmp_path)
    tool("browse_dataset.py", CONFIG, "--count", "2", "--grid", "look.png", cwd=tmp_path)
    options = [f"{s}_dataloader.{k}" for s in ("train", "val") for k in ("num_workers=0",)]
    options += [f"{s}_dataloader.persistent_workers=False" for s in ("train", "val")]
    options += ["train_cfg.max_epochs=1", "train_cfg.val_interval=1"]
    options += ["train_dataloader.batch_size=10"]
    log = tool("train.py", CONFIG, "--seed", "0", "--cfg-options", *options, cwd=tmp_path)
    assert "accuracy/top1" in log
    assert Config.fromfile(CONFIG).model.backbone.in_channels == 4
