"""tools/browse_dataset.py: pictures are what the model is fed, and labels lie where they belong."""

import numpy as np
import pytest
from known_cases import CLASSES, COLOURS, SCENES, near, read
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from vig_mm.errors import DataError, UsageError
from vig_mm.visualization import pictures

pytestmark = pytest.mark.usefixtures("default_scope")


def changed_config(case, folder, changes: dict):
    cfg = Config.fromfile(case.config)
    cfg.merge_from_dict(changes)
    cfg.dump(folder / "changed.py")
    return folder / "changed.py"


@pytest.mark.parametrize("split", ["train", "val"])
def test_boxes_and_masks(split, known, run_tool, tmp_path):
    """Objects are tinted as a whole and nothing else is; training mirrors, tests do not."""
    pipeline = [dict(type="LoadImageFromFile")]
    pipeline += [dict(type="LoadAnnotations", with_bbox=True, with_mask=True)]
    pipeline += [dict(type="Resize", scale=(400, 400), keep_ratio=True)]
    pipeline += [dict(type="RandomFlip", prob=1.0), dict(type="PackDetInputs")]
    changes = {"train_dataloader.dataset.pipeline": pipeline}
    config = changed_config(known["mmdet"], tmp_path, changes)
    printed = run_tool("browse_dataset", config, "--split", split, cwd=tmp_path)
    written = sorted((tmp_path / "work_dirs/browse_dataset/changed" / split).iterdir())
    assert f"2 pictures of {split}_dataloader" in printed
    assert [path.stem[:9] for path in written] == ["0000_val_", "0001_val_"]
    written.sort(key=lambda path: path.stem[5:])  # training groups pictures by their shape
    for path, ((width, height), shapes) in zip(written, SCENES, strict=True):
        image = read(path)
        if split == "train":  # one batch of both, padded to a multiple of 32
            factor = 400 / max(width, height)
            assert image.shape[:2] == (416, 416)
        else:  # as long, but not padded, and enlarged for the eye
            factor = 320 / min(width, height)
        objects = np.zeros(image.shape[:2], bool)
        for name, (x1, y1, x2, y2) in shapes.items():
            if split == "train":
                x1, x2 = width - x2, width - x1
            label = CLASSES.index(name)
            mixed = 0.55 * np.array(COLOURS[label]) + 0.45 * np.array(
                pictures.distinct_colours(3)[label]
            )
            y1, y2, x1, x2 = (round(v * factor) for v in (y1, y2, x1, x2))
            assert near(image[y1 + 25 : y2 - 6, x1 + 6 : x2 - 6], mixed, 25).all()
            objects[y1 - 4 : y2 + 4, x1 - 4 : x2 + 4] = True
            objects[max(0, y1 - 30) : y1 + 30, x1 - 4 : x2 + 30] = True  # its tag
        picture = image[: round(height * factor) - 3, : round(width * factor) - 3]
        assert picture[~objects[: picture.shape[0], : picture.shape[1]]].max() < 40


@pytest.mark.parametrize("split", ["train", "val"])
def test_label_maps(split, known, run_tool, tmp_path):
    args = ("--split", split, "--count", "4", "--out-dir", "drawn", "--seed", "5")
    run_tool("browse_dataset", known["mmseg"].config, *args, cwd=tmp_path)
    written = sorted((tmp_path / "drawn").iterdir())
    assert len(written) == (4 if split == "train" else 2)  # training goes on for ever
    for path in written:
        image = read(path)
        width = pictures.legend(image.shape[0], [], ["soil", *CLASSES], []).width
        picture, legend = image[:, : -width - 20], image[:, -width:]
        assert (legend > 240).all(2).mean() > 0.6
        for colour in COLOURS:
            # its brightness goes through, so look at the hue: what has it is in the legend
            direction = picture - picture.mean(2, keepdims=True)
            target = np.array(colour) - np.mean(colour)
            alike = (direction @ target) / np.linalg.norm(target)
            off = np.linalg.norm(
                direction - alike[..., None] * target / np.linalg.norm(target), axis=2
            )
            there = ((alike > 50) & (off < 12)).sum() > 500
            assert there == (near(legend, colour, 12).sum() > 80)
    once = [path.read_bytes() for path in written]
    run_tool("browse_dataset", known["mmseg"].config, *args, cwd=tmp_path)
    assert [path.read_bytes() for path in sorted((tmp_path / "drawn").iterdir())] == once


def test_colours_are_those_of_the_files(known, run_tool, tmp_path):
    """Through BGR, normalisation and back; and all in one picture."""
    config = known["mmpretrain"].config
    args = (config, "--split", "val", "--grid", "g/all.png", "--columns", "3")
    assert "6 pictures" in run_tool("browse_dataset", *args, cwd=tmp_path)
    image = read(tmp_path / "g/all.png")
    rows, columns = 2, 3
    assert image.shape[1] == columns * 320 + (columns + 1) * 12
    for i in range(rows * columns):
        y = image.shape[0] // (2 * rows) * (1 + 2 * (i // columns))
        x = image.shape[1] // (2 * columns) * (1 + 2 * (i % columns))
        patch = image[y - 60 : y + 60, x - 60 : x + 60]
        assert np.abs(patch - COLOURS[i // 2]).max() <= 3  # JPEG in between
    assert (image[:12] == 255).all()


def test_mixup_shows_both_classes(known, load_tool, tmp_path):
    tool = load_tool("browse_dataset")
    changes = {"train_dataloader.batch_size": 6, "train_dataloader.num_workers": 0}
    changes["train_dataloader.persistent_workers"] = False
    cfg = Config.fromfile(changed_config(known["mmpretrain"], tmp_path, changes))
    init_default_scope("mmpretrain")
    mixup = dict(augments=[dict(type="Mixup", alpha=1.0)], probs=[1.0])
    preprocessor = MODELS.build(
        dict(cfg.model.data_preprocessor, type="ClsDataPreprocessor", batch_augments=mixup)
    )
    dataset, loader = tool.batches(cfg, "train", seed=1)
    drawer = tool.sample_pictures("mmpretrain", dataset.metainfo)
    seen = 0
    for image, sample in tool.fed(preprocessor, next(iter(loader)), training=True):
        shares = sample.gt_score.numpy()
        expected = shares @ np.array(COLOURS)
        assert np.abs(image.reshape(-1, 3) - expected).max() < 3
        picture = drawer.draw(image, sample, (tool.TRUTH,))
        assert picture.height > 320  # with a caption
        if (shares > 0).sum() == 2:
            seen += 1
            words = drawer._truth(sample).split()
            assert {words[1], words[4]} == {CLASSES[i] for i in shares.nonzero()[0]}
            assert float(words[0]) == pytest.approx(shares.max(), abs=0.006)
            assert float(words[0]) + float(words[3]) == pytest.approx(1, abs=0.011)
    assert seen >= 2


def test_bad_input(known, run_tool, tmp_path):
    case = known["mmseg"]
    gone = changed_config(case, tmp_path, {"train_dataloader.dataset.data_root": "nowhere"})
    with pytest.raises(DataError, match="no folder 'nowhere'"):
        run_tool("browse_dataset", gone, cwd=tmp_path)
    cfg = Config.fromfile(case.config)
    for key in ("dataloader", "evaluator", "cfg"):
        cfg.pop(f"val_{key}")
    cfg.train_dataloader.dataset.pipeline = [
        step for step in cfg.test_dataloader.dataset.pipeline if step.type != "LoadAnnotations"
    ]
    cfg.dump(tmp_path / "poor.py")
    with pytest.raises(UsageError, match="no val_dataloader"):
        run_tool("browse_dataset", "poor.py", "--split", "val", cwd=tmp_path)
    with pytest.raises(UsageError, match="train_dataloader.dataset has no ground truth"):
        run_tool("browse_dataset", "poor.py", cwd=tmp_path)
    for wrong in (("--count", "0"), ("--grid", "grid.txt"), ("--split", "trian")):
        with pytest.raises(SystemExit):
            run_tool("browse_dataset", case.config, *wrong, cwd=tmp_path)
