"""The built-in digits data: exact ground truth, same seed same bytes, whole sets only."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("sklearn")

from vig_mm.datasets import CLASSES, make_digits  # noqa: E402
from vig_mm.datasets.digits.layouts import LOOKS, ade_labels, make_scene  # noqa: E402
from vig_mm.datasets.digits.scenes import SOLID, SPLITS, Scene, compose, load_sources  # noqa: E402

ROOT = Path(__file__).parents[2]
ADE_SPLITS = {"train": "training", "val": "validation"}
SIZES = {"coco": (96, 128), "ade": (64, 80), "imagenet": (48, 40)}
SMALL = {
    "seed": 3,
    "coco": (24, 12),
    "ade": (12, 4),
    "imagenet": (2, 1),
    **{f"{name}_size": size for name, size in SIZES.items()},
}
ONE = {"coco": (0, 0), "ade": (0, 0), "imagenet": (1, 0), "imagenet_size": (32, 32)}


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    pytest.importorskip("pycocotools")
    path = tmp_path_factory.mktemp("digits") / "set"
    assert make_digits(path, **SMALL) is True
    return path


@pytest.fixture(scope="module")
def sources():
    return load_sources()


def open_coco(root: Path, split: str):
    from pycocotools.coco import COCO

    return COCO(str(root / "coco" / "annotations" / f"{split}.json"))


def test_same_seed_same_bytes_whatever_the_global_state(root, tmp_path):
    np.random.seed(123)
    make_digits(tmp_path / "again", **SMALL)
    assert contents(tmp_path / "again") == contents(root)


@pytest.mark.parametrize(
    "changes, images",
    [
        (dict(seed=4, coco=(0, 0), imagenet=(0, 0)), 16),
        (dict(coco=(3, 0), ade=(0, 2), imagenet=(1, 0)), 3 + 2 + 10),
    ],
    ids=["another seed", "a smaller set"],
)
def test_only_the_seed_changes_the_images(changes, images, root, tmp_path):
    make_digits(tmp_path / "set", **{**SMALL, **changes})
    first, other = contents(root), contents(tmp_path / "set")
    names = [name for name in other if name.endswith(".jpg")]
    assert len(names) == images
    assert all((first[name] == other[name]) is ("seed" not in changes) for name in names)
    assert not (tmp_path / "set" / "coco" / "annotations" / "val.json").exists()


def test_train_and_val_share_no_digit_and_no_photo_region(sources):
    digits = {
        split: {sample.tobytes() for samples in source.digits for sample in samples}
        for split, source in sources.items()
    }
    assert min(map(len, digits.values())) > 300
    assert not digits["train"] & digits["val"]
    for train, val in zip(sources["train"].photos, sources["val"].photos, strict=True):
        assert train.shape[1] + val.shape[1] == 640
        assert not np.shares_memory(train, val)


def test_a_later_layer_takes_exactly_what_it_covers():
    scene = Scene(np.zeros((8, 8, 3), np.float32))
    below, above = np.zeros((2, 8, 8), np.float32)
    below[1:5, 1:5] = 1
    above[3:7, 4:8] = 1
    assert scene.try_paste(below, np.float32([200, 0, 0]), 7, 0.5)
    assert scene.try_paste(above, np.float32([0, 200, 0]), 2, 0.5)
    expected = np.zeros((8, 8), int)
    expected[1:5, 1:5] = 1
    expected[3:7, 4:8] = 2
    np.testing.assert_array_equal(scene.owners, expected)
    assert scene.labels == [7, 2]
    colours = np.array([[0, 0, 0], [200, 0, 0], [0, 200, 0]], np.uint8)
    np.testing.assert_array_equal(np.asarray(scene.image()), colours[expected])
    # one that hides too much is not pasted
    assert not scene.try_paste(np.ones((8, 8), np.float32), np.float32([0, 0, 200]), 1, 0.5)
    np.testing.assert_array_equal(scene.owners, expected)
    assert scene.labels == [7, 2]


def test_a_soft_edge_belongs_to_the_larger_share_and_is_ignored_in_ade():
    scene = Scene(np.full((1, 4, 3), 100, np.float32))
    alpha = np.float32([[0.0, 0.4, 0.6, 1.0]])
    assert scene.try_paste(alpha, np.float32([200, 200, 200]), 4, 0.5)
    np.testing.assert_array_equal(scene.owners, [[0, 0, 1, 1]])
    np.testing.assert_array_equal(ade_labels(scene), [[1, 0, 0, 6]])
    np.testing.assert_array_equal(np.asarray(scene.image())[0, :, 0], [100, 140, 160, 200])


@pytest.mark.parametrize("split", SPLITS)
def test_coco_truth_is_exact(root, sources, split):
    coco = open_coco(root, split)
    assert [c["name"] for c in coco.loadCats(range(1, 11))] == list(CLASSES)
    assert list(coco.imgs) == list(range(1, len(coco.imgs) + 1))
    assert list(coco.anns) == list(range(1, len(coco.anns) + 1))
    covered = 0
    for i, info in coco.imgs.items():
        picture = Image.open(root / "coco" / split / info["file_name"])
        assert picture.size == (info["width"], info["height"]) == SIZES["coco"][::-1]
        scene = make_scene("coco", split, i - 1, sources, SMALL["seed"], SIZES["coco"])
        count = np.zeros(SIZES["coco"], int)
        anns = coco.loadAnns(coco.getAnnIds(i))
        for layer, ann in enumerate(anns, start=1):
            mask = coco.annToMask(ann)
            count += mask
            np.testing.assert_array_equal(mask, scene.owners == layer)
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            x, y, w, h = ann["bbox"]
            assert (x, x + w - 1) == (columns[0], columns[-1])
            assert (y, y + h - 1) == (rows[0], rows[-1])
            assert ann["area"] == mask.sum() > 30
            assert ann["iscrowd"] == 0
            assert ann["category_id"] == scene.labels[layer - 1] + 1
            covered += scene._areas[layer - 1] > ann["area"]
        assert count.max(initial=0) <= 1
        np.testing.assert_array_equal(count, scene.owners > 0)
        # The truth is that of the picture on the disk: JPEG moves a pixel by little.
        off = np.abs(np.asarray(picture, float) - np.asarray(scene.image(), float)).mean()
        assert off < 4
    assert covered, "no digit of this set covers another: the test shows nothing about occlusion"


def test_no_digit_pixel_is_unlabelled(sources):
    """By pixels alone: what differs from the photograph without digits is what is labelled."""
    size = SIZES["coco"]
    for seed in range(8):
        scene = compose(np.random.default_rng(seed), sources["val"], size, LOOKS["coco"])
        bare = compose(np.random.default_rng(seed), sources["val"], size, LOOKS["coco"], empty=True)
        change = np.abs(np.asarray(scene.image(), float) - np.asarray(bare.image(), float))
        label = ade_labels(scene)
        assert (label > 1).any()
        # A labelled background pixel holds at most a tenth of digit; a digit's own stands out.
        assert change[label == 1].max() <= 0.1 * 255 + 1
        assert np.median(change.max(axis=-1)[label > 1]) > 60
        assert change.max(axis=-1)[scene.owners > 0].mean() > 60


def test_some_images_are_empty(root):
    coco = open_coco(root, "train")
    assert [i for i in coco.imgs if not coco.getAnnIds(i)] == [11]
    label = np.asarray(Image.open(root / "ade" / "annotations" / "training" / "000011.png"))
    assert (label == 1).all()


@pytest.mark.parametrize("split", SPLITS)
def test_ade_labels(root, sources, split):
    folders = {kind: root / "ade" / kind / ADE_SPLITS[split] for kind in ("images", "annotations")}
    names, labels = (sorted(p.stem for p in folder.iterdir()) for folder in folders.values())
    assert names == labels and len(names) == SMALL["ade"][SPLITS.index(split)]
    seen = set()
    for index, name in enumerate(names):
        image = Image.open(folders["images"] / f"{name}.jpg")
        annotation = Image.open(folders["annotations"] / f"{name}.png")
        assert annotation.mode == "L" and annotation.size == image.size == SIZES["ade"][::-1]
        label = np.asarray(annotation)
        scene = make_scene("ade", split, index, sources, SMALL["seed"], SIZES["ade"])
        np.testing.assert_array_equal(label, ade_labels(scene))
        for layer, digit in enumerate(scene.labels, start=1):
            mine = (scene.owners == layer) & (scene.shares[layer] >= SOLID)
            assert mine.any() and (label[mine] == digit + 2).all()
        assert (label == 0).mean() < 0.2
        seen |= set(np.unique(label).tolist())
    assert {0, 1} < seen <= set(range(12))


def test_imagenet_folders(root, sources):
    for split, count in zip(SPLITS, SMALL["imagenet"], strict=True):
        folder = root / "imagenet" / split
        expected = {f"{name}/{i + 1:06d}.jpg" for name in CLASSES for i in range(count)}
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert {path.relative_to(folder).as_posix() for path in files} == expected
        assert all(Image.open(path).size == SIZES["imagenet"][::-1] for path in files)
    for label in range(10):
        scene = make_scene("imagenet", "val", 0, sources, 0, (64, 64), label)
        assert [which for which in scene.labels if which is not None] == [label]
        assert (scene.owners == 1).sum() > 60


def test_reuse_refuse_overwrite(tmp_path):
    root = tmp_path / "set"
    root.mkdir()  # an empty folder is fine
    assert make_digits(root, **ONE) is True
    stamp = (root / "imagenet" / "train" / "one" / "000001.jpg").stat().st_mtime_ns
    assert make_digits(root, **ONE) is False
    with pytest.raises(FileExistsError, match=r"seed 0 there, 9 asked for.*--overwrite"):
        make_digits(root, **ONE, seed=9)
    assert (root / "imagenet" / "train" / "one" / "000001.jpg").stat().st_mtime_ns == stamp
    assert make_digits(root, **ONE, seed=9, overwrite=True) is True
    assert json.loads((root / "meta.json").read_text())["arguments"]["seed"] == 9
    assert make_digits(root, **ONE, seed=9) is False
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_sets_that_are_not_whole_and_strange_folders(tmp_path):
    root = tmp_path / "set"
    make_digits(root, **ONE)
    (root / "imagenet" / "train" / "six" / "000001.jpg").unlink()
    with pytest.raises(FileExistsError, match="9 files there, 10 were made"):
        make_digits(root, **ONE)
    assert make_digits(root, **ONE, overwrite=True) is True
    assert make_digits(root, **ONE) is False

    (tmp_path / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="is not empty and holds no meta.json"):
            make_digits(tmp_path, **ONE, overwrite=overwrite)
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    for root in (tmp_path / "thesis.txt", tmp_path / "thesis.txt" / "below"):
        with pytest.raises(ValueError, match="thesis.txt is a file, root .* must be a folder"):
            make_digits(root, **ONE)


def test_an_interrupted_run_leaves_nothing(tmp_path):
    def stop(stage, done, total):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_digits(tmp_path / "set", **ONE, progress=stop)
    assert list(tmp_path.iterdir()) == []
    make_digits(tmp_path / "set", **ONE)
    before = contents(tmp_path / "set")
    with pytest.raises(KeyboardInterrupt):  # the old set stays when its replacement fails
        make_digits(tmp_path / "set", **ONE, seed=1, overwrite=True, progress=stop)
    assert contents(tmp_path / "set") == before


def test_a_killed_run_leaves_no_set(tmp_path):
    code = (
        "import os, signal\n"
        "from vig_mm.datasets import make_digits\n"
        "def stop(stage, done, total):\n"
        "    if done == 4: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"make_digits({str(tmp_path / 'set')!r}, progress=stop, **{ONE!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120)
    assert done.returncode == -9
    assert not (tmp_path / "set").exists()
    assert not list(tmp_path.rglob("meta.json"))
    assert make_digits(tmp_path / "set", **ONE) is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"coco": (-1, 2)}, r"coco\[0\] must be an integer, at least 0, got -1"),
        ({"ade": (1, 2, 3)}, r"ade must be two integers, got \(1, 2, 3\)"),
        ({"imagenet": 5}, "imagenet must be two integers, got 5"),
        ({"imagenet": (1.5, 1)}, r"imagenet\[0\] must be an integer"),
        ({"coco_size": (31, 200)}, r"coco_size\[0\] must be an integer, 32 to 4096, got 31"),
        ({"ade_size": (64, 5000)}, r"ade_size\[1\] must be an integer, 32 to 4096, got 5000"),
        ({"seed": -1}, "seed must be an integer, at least 0, got -1"),
        ({"seed": "0"}, "seed must be an integer, at least 0, got '0'"),
        ({"coco": (0, 0), "ade": (0, 0), "imagenet": (0, 0)}, "nothing to make"),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_digits(tmp_path / "set", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_smallest_sizes_and_narrow_images(tmp_path):
    arguments = {"coco": (3, 1), "ade": (3, 1), "imagenet": (1, 1)}
    sizes = {"coco_size": (32, 32), "ade_size": (32, 300), "imagenet_size": (300, 32)}
    assert make_digits(tmp_path / "set", **arguments, **sizes) is True
    assert all(open_coco(tmp_path / "set", "train").getAnnIds(i) for i in (1, 2, 3))


def hide(monkeypatch, *modules: str) -> None:
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)


def test_what_is_not_installed_is_one_clear_error(tmp_path, monkeypatch):
    hide(monkeypatch, "pycocotools", "pycocotools.mask")
    with pytest.raises(ImportError, match="cannot import pycocotools.mask"):
        make_digits(tmp_path / "set", coco=(1, 1), ade=(0, 0), imagenet=(0, 0))
    make_digits(tmp_path / "one", **ONE)
    hide(monkeypatch, "sklearn", "sklearn.datasets")
    with pytest.raises(ImportError, match=r"sklearn.datasets.*pip install 'vig-mm\[mm,tools\]'"):
        make_digits(tmp_path / "set", **ONE)
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_import_needs_the_standard_library_only():
    code = (
        "import sys\n"
        "names = ('numpy', 'PIL', 'sklearn', 'pycocotools', 'torch', 'mmengine', 'mmcv')\n"
        "sys.modules.update(dict.fromkeys(names))\n"
        "import vig_mm.datasets\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_tool(tmp_path, monkeypatch, capsys):
    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["make_digits.py", str(tmp_path / "set"), *arguments])
        runpy.run_path(str(ROOT / "tools/data/make_digits.py"), run_name="__main__")
        return capsys.readouterr().out

    small = "--coco 0 0 --ade 0 0 --imagenet 1 0".split()
    assert "made in" in run(*small)
    assert make_digits(tmp_path / "set", **{**ONE, "imagenet_size": (64, 64)}) is False
    assert "already there, reused" in run(*small)
    with pytest.raises(SystemExit, match="^error: digits data"):
        run(*small, "--seed", "1")
