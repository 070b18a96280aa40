"""tools/visualize.py: what is drawn lies where it belongs, and the right files are written."""

import shutil

import cv2
import numpy as np
import pytest
import torch
from known_cases import CLASSES, COLOURS, CONFIGS, ROOT, SCENES, near, read
from mmengine.config import Config
from mmengine.registry import MODELS
from PIL import Image
from tiny_data import encoded, exif

from vig_mm.checkpoints.conversion import to_public
from vig_mm.checkpoints.reading import CheckpointError
from vig_mm.errors import UsageError
from vig_mm.visualization import pictures
from vig_mm.visualization.sample_pictures import (
    PREDICTION,
    TRUTH,
    ClassificationPictures,
    data_root,
    drawn_names,
    read_flag,
)

pytestmark = pytest.mark.usefixtures("default_scope")
SCOPES = list(CONFIGS)


# Drawing ---------------------------------------------------------------------------------------


def test_instances_are_drawn_where_they_are():
    grey = Image.new("RGB", (400, 330), (100, 100, 100))
    mask = np.zeros((1, 330, 400), bool)
    mask[0, 150:200, 100:220] = True
    box, colour = np.array([[90.0, 140, 230, 210]]), (255, 0, 0)
    drawn = pictures.draw_instances(grey, box, ["boat 0.93"], [colour], mask)
    drawn = np.asarray(drawn).astype(int)
    red = drawn[..., 0] - drawn[..., 1]
    assert (red[mask[0]] > 60).all()  # tinted...
    assert (drawn[mask[0]][:, 1] > 40).mean() > 0.9  # ... but not hidden
    assert (drawn[139:142, 91:229] == colour).all(2).any(0).all()  # upper edge of the box
    outside = np.ones((330, 400), bool)
    outside[110:213, 87:234] = False
    assert (drawn[outside] == 100).all()
    between = drawn[146:149, 96:224]  # box and mask
    assert (between == 100).all()


@pytest.mark.parametrize("box", [(0, 0, 30, 30), (370, 300, 400, 330), (0, 0, 400, 330)])
def test_tags_stay_in_the_picture(box):
    grey = Image.new("RGB", (400, 330), (100, 100, 100))
    drawn = pictures.draw_instances(grey, np.array([box], float), ["brick 0.93"], [(0, 0, 255)])
    letters = near(np.asarray(drawn), (255, 255, 255), 60)
    rows, columns = letters.nonzero()
    # as wide as the text is: nothing of it was cut off
    assert np.ptp(columns) > 50 and np.ptp(rows) > 6
    assert columns.max() < 399 and rows.max() < 329


def test_label_map_leaves_out_what_is_not_labelled():
    photo = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    labels = np.full((60, 60), 255)
    labels[:30] = 1
    palette = [(9, 9, 9), (0, 200, 0)]
    drawn = np.asarray(pictures.draw_label_map(Image.fromarray(photo), labels, palette))
    assert (drawn[30:] == photo[30:]).all()
    green = drawn[:30].astype(int)
    assert (green[..., 1] - green[..., [0, 2]].max(2) > 100).all()
    assert green[..., 1].std() > 10  # the picture can be seen through it


def test_sizes():
    for shape, size in (
        ((32, 64), (640, 320)),
        ((80, 999), (1600, 128)),
        ((3000, 4000), (1600, 1200)),
    ):
        assert pictures.fitted(np.zeros((*shape, 3), np.uint8)).size == size


def test_legend_names_what_is_there():
    classes = [f"class number {i}" for i in range(60)]
    palette = pictures.distinct_colours(60)
    few = pictures.legend(320, [3, 7], classes, palette)
    many = pictures.legend(320, range(60), classes, palette)
    assert few.size == many.size  # frames of a video stay of one size
    shown = [i for i in range(60) if near(np.asarray(few), palette[i], 8).sum() > 100]
    assert shown == [3, 7]
    rows = np.asarray(many.convert("L")).min(1) < 200
    assert 8 < np.count_nonzero(np.diff(rows.astype(int)) == 1) < 20  # no row runs over the edge


@pytest.mark.parametrize("truth", [2, 0])
def test_score_bars(truth):
    panel = pictures.score_panel(320, np.array([0.1, 0.3, 0.6]), CLASSES, [truth])
    image = np.asarray(panel)
    full = near(image, (225, 225, 225), 4)
    widths = [(~full[row] & ~near(image, (255, 255, 255), 4)[row]).sum() for row in range(320)]
    bars = [row for row in range(320) if full[row].sum() > 40]
    tops = [row for row in bars if row - 1 not in bars]
    left = [widths[row + 2] / (widths[row + 2] + full[row + 2].sum()) for row in tops]
    assert left == pytest.approx([0.6, 0.3, 0.1], abs=0.03)
    best = image[tops[0] + 2, panel.height // 24 + 4]
    assert best.argmax() == (1 if truth == 2 else 0)  # green when right, red when wrong


# The tool --------------------------------------------------------------------------------------


@pytest.fixture
def visualize(run_tool, tmp_path):
    """`visualize(*args)`: what the tool prints."""
    return lambda *args: run_tool("visualize", *args, "--device", "cpu", cwd=tmp_path)


def bare_scene(case, stem: str) -> np.ndarray:
    (path,) = [path for path in case.data.rglob(f"{stem}.*") if path.parent.name != "labels"]
    return read(path).astype(np.uint8)


@pytest.mark.parametrize("scope", SCOPES)
def test_prediction_beside_ground_truth(scope, known, visualize, tmp_path):
    """The model knows the truth, so both sides show the same, in pictures of two formats."""
    case = known[scope]
    args = [case.config, case.checkpoint, "--dataset", "--out-dir", "drawn"]
    assert "of the test set" in visualize(
        *args, *(("--score-thr", 0.05) if scope == "mmdet" else ())
    )
    written = sorted((tmp_path / "drawn").rglob("*.jpg"))
    if scope == "mmpretrain":
        assert [path.parent.name for path in written] == sorted(2 * list(CLASSES))
        for path in written:
            image, colour = read(path), COLOURS[CLASSES.index(path.parent.name)]
            assert near(image[:300, :300], colour, 20).all()  # untouched
            panel = image[:, -120:].astype(int)
            bar = panel[(panel.max(2) - panel.min(2)) > 90]
            assert bar.argmax(1).mean() > 0.95  # the first class is the right one: green
        return
    assert [path.stem for path in written] == ["0", "1"]
    for path, ((width, height), shapes) in zip(written, SCENES, strict=True):
        image = read(path)
        factor = 320 / min(width, height)
        header = image.shape[0] - round(height * factor)
        size = (round(height * factor), round(width * factor))
        truth = image[header:, : size[1]].astype(int)
        gap = pictures._text_size(size) // 2
        predicted = image[header:, size[1] + gap :][:, : size[1]].astype(int)
        bare = cv2.resize(bare_scene(case, path.stem), size[::-1], interpolation=cv2.INTER_CUBIC)
        for x1, y1, x2, y2 in shapes.values():
            x1, y1, x2, y2 = (round(v * factor) for v in (x1, y1, x2, y2))
            inner = np.s_[y1 + 12 : y2 - 12, x1 + 12 : x2 - 12]
            changed = np.abs(truth - bare).max(2) > 15
            assert changed[inner].all()
            assert np.abs(truth - predicted)[inner].max() < 12
            if scope == "mmdet":
                assert not changed[min(y2 + 8, size[0]) :].any() or len(shapes) > 1
        if scope == "mmseg":
            strip = np.s_[30:-30, size[1] - round(5 * factor) :]
            assert np.abs(truth - bare)[strip].max() < 12  # not labelled
            assert (predicted[strip] > 20).mean() > 0.9  # but predicted


def test_folder(known, visualize, tmp_path):
    case = known["mmdet"]
    photos = tmp_path / "photos"
    (photos / "sub").mkdir(parents=True)
    for name in ("a.jpg", "a.png", "b.c.bmp", "sub/a.jpg"):
        Image.new("RGB", (100, 80), COLOURS[0]).save(photos / name)
    (photos / "notes.txt").write_text("no picture")
    before = {path: path.read_bytes() for path in photos.rglob("*.*")}
    assert "4 pictures in" in visualize("photos", case.config, case.checkpoint)
    out_dir = tmp_path / "work_dirs/visualize/mmdet"
    names = sorted(str(path.relative_to(out_dir)) for path in out_dir.rglob("*.*"))
    assert names == ["a_jpg.jpg", "a_png.jpg", "b.c.jpg", "sub/a.jpg"]
    assert {path: path.read_bytes() for path in photos.rglob("*.*")} == before
    image = read(out_dir / "sub/a.jpg")
    assert image.shape == (320, 400, 3) and not near(image, COLOURS[0], 10).all()


def test_score_threshold(known, visualize, tmp_path):
    case = known["mmdet"]
    visualize(case.data, case.config, case.checkpoint, "--score-thr", "1.1")
    image = read(tmp_path / "work_dirs/visualize/mmdet/val/0.jpg")
    bare = cv2.resize(bare_scene(case, "0"), image.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    assert np.abs(image.astype(int) - bare).mean() < 2  # nothing is drawn


def test_video(known, visualize, tmp_path):
    case, code = known["mmseg"], cv2.VideoWriter.fourcc(*"MJPG")
    writer = cv2.VideoWriter(str(tmp_path / "clip.avi"), code, 10, (101, 80))
    for i in range(5):
        frame = np.zeros((80, 101, 3), np.uint8)
        frame[20:60, 10 * i : 10 * i + 40] = COLOURS[0][::-1]
        writer.write(frame)
    writer.release()
    assert "5 frames" in visualize("clip.avi", case.config, case.checkpoint)
    video = cv2.VideoCapture(str(tmp_path / "work_dirs/visualize/mmseg/clip.mp4"))
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(10)
    frames = [frame[..., ::-1] for there, frame in iter(video.read, (False, None)) if there]
    assert len(frames) == 5 and frames[0].shape[0] == 320 and frames[0].shape[1] > 404
    for i, frame in enumerate(frames):
        # brightness of the frame, hue of the class
        brick = (frame[:, :404, 0].astype(int) - frame[:, :404, 2]) > 60
        assert brick[160].nonzero()[0].mean() == pytest.approx(4 * (10 * i + 20), abs=10)


def test_public_file(known, visualize, tmp_path):
    case = known["mmpretrain"]
    cfg = Config.fromfile(ROOT / "configs" / CONFIGS["mmpretrain"])
    dataset = Config.fromfile(case.config).test_dataloader.dataset
    cfg.test_dataloader.dataset = dict(dataset, metainfo=dict(classes=list("abcdefghij")))
    cfg.dump(tmp_path / "ten.py")
    with MODELS.switch_scope_and_registry("mmpretrain") as registry:
        model = registry.build(cfg.model)
    torch.nn.init.zeros_(model.head.fc.weight)
    torch.nn.init.constant_(model.head.fc.bias, 0.0)
    model.head.fc.bias.data[4] = 50.0  # sure of the fifth class
    torch.save(dict(model_ema=to_public(model.state_dict())), tmp_path / "public.pth")
    visualize(case.data / "val/pond", "ten.py", "public.pth")
    panel = read(tmp_path / "work_dirs/visualize/ten/0.jpg")[:, -100:]
    blue = near(panel, (70, 110, 180), 30)
    assert blue.any(1).nonzero()[0].min() < 40  # one bar, the first, and full
    assert blue.sum(1).max() > 80

    del cfg.test_dataloader.dataset["metainfo"]
    cfg.dump(tmp_path / "nameless.py")
    with pytest.raises(UsageError, match="names the classes"):
        visualize(case.data, "nameless.py", "public.pth")


def test_bad_input(known, visualize, run_tool, tmp_path):
    case, other = known["mmdet"], known["mmseg"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "text.mp4").write_text("no video")

    def refused(error, match, *args):
        with pytest.raises(error, match=match):
            visualize(*args)

    both = (case.config, case.checkpoint)
    refused(UsageError, "no file or folder 'nowhere.jpg'", "nowhere.jpg", *both)
    refused(UsageError, "no picture .* in the folder 'empty'", "empty", *both)
    refused(UsageError, "no picture can be read", "text.jpg", *both)
    refused(UsageError, "'text.mp4' is not a video", "text.mp4", *both)
    refused(CheckpointError, "'none.pth' is not a file", case.data, case.config, "none.pth")
    refused(UsageError, "test set has 0 to 1", *both, "--dataset", "--indices", "1", "7")
    (tmp_path / "in").mkdir()
    Image.new("RGB", (50, 50)).save(tmp_path / "in/a.jpg")
    refused(UsageError, "would be overwritten", "in", *both, "--out-dir", "in")

    mini = ROOT / "configs" / CONFIGS["mmdet"]
    refused(CheckpointError, "does not fit this config's model", "in", mini, case.checkpoint)
    refused(UsageError, "--score-thr is for", "in", other.config, "x.pth", "--score-thr", "1")
    with pytest.raises(UsageError, match="--device gpu7"):
        run_tool("visualize", "in", *both, "--device", "gpu7", cwd=tmp_path)
    for wrong in ((*both,), ("in", *both, "--dataset"), ("in", *both, "--count", "3")):
        refused(SystemExit, None, *wrong)

    # without ground truth, the prediction alone
    cfg = Config.fromfile(other.config)
    data = cfg.test_dataloader.dataset
    data.pipeline = [step for step in data.pipeline if step.type != "LoadAnnotations"]
    cfg.dump(tmp_path / "unlabelled.py")
    visualize("unlabelled.py", other.checkpoint, "--dataset", "--out-dir", "out")
    assert len(list((tmp_path / "out").rglob("*.jpg"))) == len(SCENES)


# Names and samples -----------------------------------------------------------------------------


def test_names_of_pictures(tmp_path):
    """By the path below the data's root; what lies elsewhere keeps its own."""
    root = tmp_path / "data"
    paths = [root / name for name in ("a/1.jpg", "b/1.png", "b/1.bmp", "2.tif")] + ["/other/1.jpg"]
    names = [str(name) for name in drawn_names(paths, root)]
    assert names == ["a/1.jpg", "b/1_png.jpg", "b/1_bmp.jpg", "2.jpg", "other/1.jpg"]
    parts = [dict(data_root=str(root / "x")), dict(data_root=str(root / "y"))]
    assert data_root(dict(type="ConcatDataset", datasets=parts)) == root


@pytest.mark.parametrize("name", ["Jürgen", "Жук", "ψάρι", "車", "भारत"])
def test_letters_of_any_script(name, tmp_path):
    """Two names never look the same: those without letters in the font are numbers, with a list."""
    classes = [name, name[::-1] + "x"]
    drawer = ClassificationPictures(classes)
    grey = Image.new("RGB", (320, 320))
    box = np.array([[9.0, 99, 300, 300]])
    drawn = [pictures.draw_instances(grey, box, [x], [(9, 9, 9)]) for x in drawer.classes]
    assert not np.array_equal(*drawn)
    drawer.write_legend(tmp_path)
    unreadable = name in ("車", "भारत")
    assert (tmp_path / "classes.txt").exists() == unreadable == (drawer.classes[0] == "class 0")
    if unreadable:
        assert f"class 0: {name}\n" in (tmp_path / "classes.txt").read_text()


def classified(**values):
    from mmpretrain.structures import DataSample

    sample = DataSample()
    for key, value in values.items():
        sample.set_field(torch.tensor(value), key)
    return sample


def test_several_labels_and_none():
    drawer, image = ClassificationPictures(CLASSES), np.zeros((320, 320, 3), np.uint8)
    scores = dict(pred_score=[0.2, 0.7, 0.6])
    drawn = []
    for labels in ([1], [1, 2], []):
        sample = classified(gt_label=labels, **scores)
        drawn.append(np.asarray(drawer.draw(image, sample, (TRUTH, PREDICTION))))
        green = near(drawn[-1], (0, 130, 60), 8).sum()
        assert (green > 200) == bool(labels)
        assert drawer._truth(sample) == (", ".join(CLASSES[i] for i in labels) or "no label")
    assert not np.array_equal(drawn[0], drawn[1])
    # as the preprocessor hands them on
    sample = classified(gt_label=[1, 2], gt_score=[0.0, 1.0, 1.0])
    assert drawer._truth(sample) == "leaf, pond"


@pytest.mark.parametrize("values, words", [
    (dict(pred_score=[0.1] * 16), "16 scores for 3 classes, as image retrieval"),
    (dict(pred_caption=1), "predicts pred_caption, and pred_score is needed"),
    ({}, "predicts nothing, and pred_score"),
])  # fmt: skip
def test_predictions_of_another_kind(values, words):
    with pytest.raises(UsageError, match=words):
        ClassificationPictures(CLASSES).draw(np.zeros((32, 32, 3), np.uint8), classified(**values))


@pytest.mark.parametrize("scope", SCOPES)
def test_what_cannot_be_read_is_skipped_by_name(scope, known, visualize, run_tool, tmp_path):
    case = known[scope]
    data = shutil.copytree(case.data, tmp_path / "data")
    cfg = Config.fromfile(case.config)
    for split in ("val", "test"):
        cfg[f"{split}_dataloader"].dataset.data_root = str(data)
    if scope == "mmdet":
        cfg.val_evaluator.ann_file = cfg.test_evaluator.ann_file = str(data / "truth.json")
    cfg.dump(tmp_path / "bad.py")
    bad = sorted(path for path in data.rglob("*0.*") if path.parent.name != "labels")[0]
    bad.write_bytes(bad.read_bytes()[:-30])
    count = 6 if scope == "mmpretrain" else 2

    both = ("bad.py", case.checkpoint, "--out-dir")
    visualize(*both, "seen", "--dataset")
    visualize(bad.parent.parent if scope == "mmpretrain" else bad.parent, *both, "files")
    run_tool("browse_dataset", "bad.py", "--split", "val", "--out-dir", "fed", cwd=tmp_path)
    for name in ("seen", "files", "fed"):
        assert len(list((tmp_path / name).rglob("*.jpg"))) == count - 1


@pytest.mark.parametrize("scope", SCOPES)
def test_pictures_are_drawn_as_the_loader_reads_them(scope, known, visualize, tmp_path):
    """A picture that EXIF says to turn lies as it lies in the file, if the config's loader says."""
    case = known[scope]
    data = shutil.copytree(case.data, tmp_path / "data")
    path = next(one for one in sorted(data.rglob("*0.*")) if one.parent.name != "labels")
    path.write_bytes(encoded(Image.open(path), "PNG", exif=exif(6)))
    size = Image.open(path).size
    cfg = Config.fromfile(case.config)
    for ignored in (True, False):
        load = cfg.test_dataloader.dataset.pipeline[0]
        load["color_type"] = "color_ignore_orientation" if ignored else "color"
        cfg.test_dataloader.dataset.data_root = str(data)
        if scope == "mmdet":
            cfg.test_evaluator.ann_file = str(data / "truth.json")
        cfg.dump(tmp_path / "turned.py")
        args = ("turned.py", case.checkpoint, "--out-dir")
        visualize(path, *args, f"file{ignored}")
        drawn = [tmp_path / f"file{ignored}" / f"{path.stem}.jpg"]
        if ignored:
            visualize(*args, "set", "--dataset", "--count", "1")
            drawn += (tmp_path / "set").rglob("*.jpg")
        for one in drawn:
            height = Image.open(one).height
            sides = size if ignored else size[::-1]
            header = 24 if "set" in one.parts and scope != "mmpretrain" else 0
            assert abs(height - header - 320 * sides[1] / min(sides)) <= 20, (one, size)
    assert read_flag([dict(type="LoadImageFromFile")]) == cv2.IMREAD_COLOR
