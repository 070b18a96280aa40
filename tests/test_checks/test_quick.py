"""Every mistake in the data gives one error that says which loader, what, where, what to do."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mmcv")
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
pytest.importorskip("mmpretrain")

from mmengine.config import Config
from PIL import Image

from vig_mm.checks.data import DataCheck, check_data, label_maps
from vig_mm.errors import DataError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
CORNERS = [1, 1, 7, 1, 7, 7, 1, 7]
WHOLE = dict(image_id=0, bbox=[1, 1, 6, 6], area=36, segmentation=[CORNERS], iscrowd=0)
ONE = dict(id=1, category_id=0)


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def write_coco(path, images=("1.jpg",), classes=DIGITS, annotations=(ONE,), side=32):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = dict(
        images=[
            dict(id=i, file_name=name, height=side, width=side) for i, name in enumerate(images)
        ],
        categories=[dict(id=i, name=name) for i, name in enumerate(classes)],
        annotations=[{**WHOLE, **one} for one in annotations],
    )
    path.write_text(json.dumps(content))


def write_labels(path, *values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array([values], np.uint16 if max(values) > 255 else np.uint8)).save(path)


def point_to(cfg, root):
    for loader in LOADERS:
        cfg[loader].dataset.data_root = str(root)
    return cfg


@pytest.fixture
def coco(tmp_path):
    for split in ("train", "val"):
        touch(tmp_path / split / "1.jpg")
        write_coco(tmp_path / f"annotations/{split}.json")
    cfg = point_to(Config.fromfile(CONFIGS / "mmdet/mask-rcnn_vig-h-mini_fpn_digits.py"), tmp_path)
    for split in ("val", "test"):
        cfg[f"{split}_evaluator"].ann_file = str(tmp_path / "annotations/val.json")
    return cfg


@pytest.fixture
def ade(tmp_path):
    for split in ("training", "validation"):
        touch(tmp_path / f"images/{split}/1.jpg")
        write_labels(tmp_path / f"annotations/{split}/1.png", 0, 1, 11, 255)
    return point_to(Config.fromfile(CONFIGS / "mmseg/vig-h-mini_upernet_digits.py"), tmp_path)


@pytest.fixture
def folders(tmp_path):
    for split in ("train", "val"):
        touch(*(tmp_path / split / name / "1.JPG" for name in DIGITS))
    return point_to(Config.fromfile(CONFIGS / "mmpretrain/vig-h-mini_digits.py"), tmp_path)


def complaint(cfg, *parts, splits=("train", "val", "test"), count=None):
    """The one error of a config, which must contain all parts."""
    with pytest.raises(DataError) as error:
        check_data(cfg, splits)
    message = str(error.value)
    for part in parts:
        assert part in message
    if count is not None:
        assert message.count("\n  - ") == count, message
    return message


@pytest.mark.parametrize("layout", ["coco", "ade", "folders"])
def test_good_data_passes(layout, request):
    check_data(request.getfixturevalue(layout))


def test_relative_paths_from_the_working_directory(coco, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path.parent)
    check_data(point_to(coco, tmp_path.name))


@pytest.mark.parametrize("layout", ["coco", "ade", "folders"])
def test_missing_root(layout, request, tmp_path):
    cfg = point_to(request.getfixturevalue(layout), tmp_path / "nowhere")
    where = [f"{loader}.dataset.data_root: no folder" for loader in LOADERS]
    complaint(cfg, *where, str(tmp_path / "nowhere"), "--cfg-options", count=3)


def test_only_the_asked_splits(coco, tmp_path):
    coco.train_dataloader.dataset.data_root = str(tmp_path / "nowhere")
    check_data(coco, ("val", "test"))
    complaint(coco, splits=("train",), count=1)


def test_absent_loader_is_skipped(coco):
    coco.val_dataloader = coco.val_evaluator = None
    check_data(coco)


def test_built_in_data_names_its_tool(coco, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    complaint(point_to(coco, "data/digits/coco"), "python tools/data/make_digits.py")
    assert "make_digits" not in complaint(point_to(coco, "data/coco"))


def test_wrappers_are_looked_into(coco, tmp_path):
    good = coco.train_dataloader.dataset
    bad = dict(good, data_root=str(tmp_path / "nowhere"))
    concat = dict(type="ConcatDataset", datasets=[good, bad])
    coco.train_dataloader.dataset = dict(type="RepeatDataset", times=2, dataset=concat)
    complaint(coco, "train_dataloader.dataset.dataset.datasets.1.data_root", count=1)


# COCO ------------------------------------------------------------------------------------------


def test_coco_image_folder(coco, tmp_path):
    coco.train_dataloader.dataset.data_prefix.img = "trian/"
    complaint(coco, "train_dataloader.dataset.data_prefix.img", str(tmp_path / "trian"), count=1)


def test_coco_annotation_path(coco, tmp_path):
    coco.val_dataloader.dataset.ann_file = "annotations/vla.json"
    complaint(coco, "val_dataloader.dataset.ann_file", "vla.json' is no annotation file")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("{", "is not a JSON file"),
        ("\x89PNG", "is not a JSON file"),
        ('{"images": []}', "is not a COCO annotation file: it has no 'categories'"),
        ("[1]", "is not a COCO annotation file: it is a list"),
    ],
)
def test_not_a_coco_file(coco, tmp_path, content, what):
    (tmp_path / "annotations/train.json").write_text(content)
    complaint(coco, "train_dataloader.dataset.ann_file", what, count=1)


def test_coco_file_that_cannot_be_read(coco, tmp_path):
    path = tmp_path / "annotations/train.json"
    path.unlink()
    path.symlink_to("/proc/self/mem")  # a file that opens and gives an error, to root as well
    complaint(coco, f"'{path}' cannot be read (Input/output error)", count=1)


def test_coco_file_that_is_nested_too_deeply(coco, tmp_path):
    path = tmp_path / "annotations/train.json"
    path.write_text("[" * 200_000)
    complaint(coco, f"'{path}' is not a COCO annotation file: it is nested too deeply", count=1)


def test_coco_numbers_without_measure(coco, tmp_path):
    """json's whole numbers have no limit, and Python's floats have one."""
    path = tmp_path / "annotations/train.json"
    path.write_text('{"images": [' + "9" * 5000 + "]}")
    complaint(coco, f"'{path}' is not a JSON file", count=1)
    huge = 10**400
    rle = dict(size=[32, 32], counts=[huge])
    faults = (dict(bbox=[1.5, 1, huge, 6]), dict(segmentation=[[*CORNERS[1:], huge]]))
    faults = (*faults, dict(segmentation=rle), dict(segmentation=dict(rle, counts="\ud800")))
    annotations = [dict(ONE, id=i, **one) for i, one in enumerate(faults, 1)]
    write_coco(path, annotations=annotations)
    kinds = {one.kind: one.count for one in DataCheck(coco, ("train",)).findings}
    assert kinds == {"bad-box": 1, "bad-polygon": 1, "broken-rle": 2, "nothing-left": 1}


def test_coco_images_that_are_not_there(coco, tmp_path):
    write_coco(tmp_path / "annotations/train.json", images=("1.jpg", "2.jpg", "sub/3.jpg"))
    complaint(coco, "2 of the 3 images", "'2.jpg'", count=1)
    touch(tmp_path / "train/2.jpg", tmp_path / "train/sub/3.jpg")
    check_data(coco)


def test_coco_lists_no_image(coco, tmp_path):
    write_coco(tmp_path / "annotations/train.json", images=())
    complaint(coco, "train_dataloader.dataset", "lists no image", count=1)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (dict(annotations=()), "2 have no annotation of the classes (filter_cfg.filter_empty_gt)"),
        (dict(side=31), "2 have a side of fewer than 32 pixels (filter_cfg.min_size)"),
    ],
)
def test_coco_no_image_left(coco, tmp_path, changes, why):
    images = ("1.jpg", "2.jpg")
    touch(tmp_path / "train/2.jpg")
    changes = {"annotations": (ONE, dict(ONE, id=2, image_id=1)), **changes}
    write_coco(tmp_path / "annotations/train.json", images, **changes)
    write_coco(tmp_path / "annotations/val.json", **changes)  # scores leave no image out
    complaint(
        coco,
        "2 of 2 images in",
        "train.json' are left out by mmdet, and nothing is left",
        why,
        count=1,
    )
    coco.train_dataloader.dataset.filter_cfg = None
    check_data(coco)


def test_coco_some_images_left(coco, tmp_path):
    touch(tmp_path / "train/2.jpg")
    write_coco(tmp_path / "annotations/train.json", images=("1.jpg", "2.jpg"))
    (line,) = check_data(coco)
    assert "leaves out 1 image without annotations" in line


def test_coco_file_name_twice(coco, tmp_path):
    annotations = (ONE, dict(ONE, id=2, image_id=1))
    path = tmp_path / "annotations/train.json"
    write_coco(path, images=("1.jpg", "./1.jpg"), annotations=annotations)
    (found,) = DataCheck(coco, ("train",)).findings
    assert (found.severity, found.kind, found.count) == ("warning", "file-name-twice", 1)
    assert "1 of 2 images" in found.text and "e.g. 1.jpg: " in found.text


def test_coco_classes_the_file_does_not_have(coco, tmp_path):
    write_coco(tmp_path / "annotations/train.json", classes=("date", "fig", "hazelnut"))
    complaint(
        coco,
        "train_dataloader.dataset.metainfo.classes",
        "10 of 10 classes",
        "date, fig, hazelnut",
        "silently",
        count=1,
    )


def test_coco_defaults_of_the_data_set_class(coco):
    # a custom data set without metainfo has COCO's 80 classes
    del coco.train_dataloader.dataset.metainfo
    message = complaint(coco, "train_dataloader.dataset.metainfo.classes", "person")
    assert "differ from the 80" in message and "num_classes is 10" in message


def test_coco_order_of_classes(coco, tmp_path):
    write_coco(tmp_path / "annotations/train.json", classes=DIGITS[::-1])
    complaint(coco, "another order", count=1)


def test_coco_classes_in_one_loader_only(coco):
    for loader in LOADERS[1:]:
        coco[loader].dataset.metainfo = dict(classes=DIGITS[:3])
    complaint(
        coco, "val_dataloader.dataset: its 3 classes differ from the 10", "three, four", count=2
    )


def test_coco_annotation_without_category(coco, tmp_path):
    annotations = [dict(id=1, category_id=3), dict(id=2, category_id=77)]
    write_coco(tmp_path / "annotations/train.json", annotations=annotations)
    complaint(coco, "1 of 2 annotations in", "e.g. 77", "silently leave them out", count=1)


def test_coco_annotation_id_0(coco, tmp_path):
    write_coco(tmp_path / "annotations/train.json", annotations=[dict(id=0, category_id=3)])
    write_coco(tmp_path / "annotations/val.json", annotations=[dict(id=0, category_id=3)])
    check_data(coco)
    found = [
        one for one in DataCheck(coco, ("train", "val", "test")).findings if one.kind == "id-0"
    ]
    # training does not mind, and scores are made of a copy
    assert [one.where for one in found] == ["val_dataloader.dataset", "test_dataloader.dataset"]
    assert {one.severity for one in found} == {"note"}


def test_evaluator_of_other_data(coco, tmp_path):
    coco.val_evaluator.ann_file = str(tmp_path / "annotations/train.json")
    complaint(coco, "val_evaluator.ann_file", "is not the file of val_dataloader", count=1)
    coco.val_evaluator.ann_file = str(tmp_path / "annotations/old.json")
    complaint(coco, "val_evaluator.ann_file", "is no annotation file", count=1)


def test_number_of_classes_of_the_heads(coco):
    coco.model.roi_head.bbox_head.num_classes = 80
    complaint(coco, "model.roi_head.bbox_head.num_classes is 80", "set it to 10", count=1)
    coco.model.roi_head.bbox_head = [dict(num_classes=10), dict(num_classes=3)]
    complaint(coco, "model.roi_head.bbox_head.1.num_classes is 3", count=1)


# Segmentation ----------------------------------------------------------------------------------


def test_seg_folders(ade, tmp_path):
    ade.train_dataloader.dataset.data_prefix.img_path = "images/train"
    ade.val_dataloader.dataset.data_prefix.seg_map_path = "annotations/val"
    complaint(
        ade,
        "train_dataloader.dataset.data_prefix.img_path: no image folder",
        "val_dataloader.dataset.data_prefix.seg_map_path: no label folder",
        str(tmp_path / "annotations/val"),
        count=2,
    )


def test_seg_without_images(ade, tmp_path):
    (tmp_path / "images/training/1.jpg").rename(tmp_path / "images/training/1.png")
    complaint(ade, "train_dataloader.dataset.data_prefix.img_path: no .jpg image", count=1)


def test_seg_image_without_labels(ade, tmp_path):
    touch(tmp_path / "images/training/2.jpg")
    complaint(ade, "1 of 2 images have no label map", "'2.png'", count=1)


def test_seg_list_file(ade, tmp_path):
    ade.train_dataloader.dataset.ann_file = "train.txt"
    complaint(ade, "train_dataloader.dataset.ann_file: no list of images", count=1)
    (tmp_path / "train.txt").write_text("1\n7\n")
    complaint(ade, "1 of the 2 images", "'7.jpg'", count=1)
    (tmp_path / "train.txt").write_text("1\n")
    check_data(ade)


def test_seg_heads(ade):
    ade.model.auxiliary_head.num_classes = 150
    (warning,) = check_data(ade)
    assert "model.auxiliary_head.num_classes is 150" in warning and "set it to 11" in warning
    ade.model.auxiliary_head.num_classes = 10
    complaint(ade, "model.auxiliary_head.num_classes is 10", "set it to 11", count=1)


def test_seg_without_classes(ade):
    # mmseg would notice at the first validation
    del ade.train_dataloader.dataset.metainfo
    complaint(ade, "train_dataloader.dataset: BaseSegDataset has no classes", "metainfo", count=1)


def test_seg_classes_of_another_data_set(ade):
    for loader in LOADERS:
        ade[loader].dataset.type = "ADE20KDataset"
    complaint(ade, "ADE20KDataset has no background, zero", "type='BaseSegDataset'", count=3)


def test_seg_palette(ade):
    ade.train_dataloader.dataset.metainfo.palette = [[0, 0, 0]] * 3
    complaint(ade, "metainfo.palette: 3 colours for 11 classes", count=1)


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ((1, 12), "with reduce_zero_label=True the 11 classes are 1 to 11"),
        ((1, 200, 254), "1.png (200, 254)"),
        ((1, 700), "1.png (700)"),
    ],
)
def test_seg_labels_out_of_range(ade, tmp_path, values, what):
    write_labels(tmp_path / "annotations/training/1.png", *values)
    complaint(ade, "train_dataloader.dataset", what, "(0 and 255: no label)", count=1)


def test_seg_labels_without_reduction(ade, tmp_path):
    ade.train_dataloader.dataset.reduce_zero_label = False
    complaint(ade, "1.png (11)", "with reduce_zero_label=False the 11 classes are 0 to 10")
    write_labels(tmp_path / "annotations/training/1.png", 0, 10, 255)
    check_data(ade)


def test_seg_labels_of_a_subset_of_classes(ade, tmp_path):
    """ADE20KDataset with two of its classes: labels of the others are legal, and left out."""
    for loader in LOADERS:
        ade[loader].dataset.update(type="ADE20KDataset", metainfo=dict(classes=("wall", "sky")))
    ade.model.decode_head.num_classes = ade.model.auxiliary_head.num_classes = 2
    write_labels(tmp_path / "annotations/training/1.png", 0, 1, 150)
    check_data(ade)
    write_labels(tmp_path / "annotations/training/1.png", 151)
    complaint(ade, "1.png (151)", "the 150 classes are 1 to 150", count=1)


def test_seg_labels_that_are_pictures(ade, tmp_path):
    path = tmp_path / "annotations/training/1.png"
    Image.new("RGB", (4, 4)).save(path)
    complaint(ade, "coloured pictures, e.g. 1.png", "a label map has one", count=1)
    path.write_bytes(b"")
    complaint(ade, "cannot be read, e.g. 1.png (empty)", count=1)


def test_seg_reads_some_label_maps_of_many(ade, tmp_path, monkeypatch):
    for i in range(90):
        touch(tmp_path / f"images/training/{i:02}.jpg")
        write_labels(tmp_path / f"annotations/training/{i:02}.png", 1)
    read, read_label = [], label_maps.image_facts
    monkeypatch.setattr(
        label_maps, "image_facts", lambda *args, **how: read.append(args) or read_label(*args, **how)
    )
    check_data(ade, ("train",))
    assert 10 <= len(read) <= 20


# Classification --------------------------------------------------------------------------------


def test_folders_without_classes(folders, tmp_path):
    folders.train_dataloader.dataset.data_prefix = "train/one"
    complaint(folders, "train_dataloader.dataset", "has no class folders", count=1)


def test_folder_without_images(folders, tmp_path):
    """mmpretrain warns, and trains without; of no image at all it can do nothing."""
    (tmp_path / "train/six/1.JPG").unlink()
    (warning,) = check_data(folders)
    assert "1 of 10 class folders" in warning and "no image: six" in warning
    for path in (tmp_path / "train").glob("*/*"):
        path.unlink()
    complaint(folders, "10 of 10 class folders", count=1)


def test_folders_differ_between_train_and_val(folders, tmp_path):
    (tmp_path / "val/six").rename(tmp_path / "val/sechs")
    complaint(folders, "val_dataloader.dataset", "only here: sechs")


def test_folders_and_heads(folders):
    """More outputs than class folders train all the same; fewer do not."""
    folders.model.head.num_classes = 1000
    folders.model.data_preprocessor.num_classes = 12
    first, second = check_data(folders)
    assert "data_preprocessor.num_classes is 12" in first
    assert "model.head.num_classes is 1000" in second
    folders.model.data_preprocessor.num_classes = 9  # for mixed labels alone, of which are none
    assert "data_preprocessor.num_classes is 9" in check_data(folders)[0]
    folders.model.train_cfg = dict(augments=[dict(type="Mixup", alpha=0.8)])
    complaint(folders, "data_preprocessor.num_classes is 9", count=1)
    folders.model.train_cfg = None
    folders.model.head.num_classes = 9
    complaint(folders, "model.head.num_classes is 9", count=1)


def test_imagenet_class_on_other_data(folders):
    dataset = folders.train_dataloader.dataset
    folders.train_dataloader.dataset = dict(type="ImageNet", data_root=dataset.data_root)
    folders.train_dataloader.dataset["split"] = "train"
    complaint(folders, "10 class folders", "1000 classes", "CustomDataset")


def test_image_list(folders, tmp_path):
    folders.train_dataloader.dataset.ann_file = "meta/train.txt"
    complaint(folders, "train_dataloader.dataset.ann_file: no list of images", count=1)
    path = tmp_path / "meta/train.txt"
    path.parent.mkdir()
    path.write_text("one/1.JPG 1\nnine/1.JPG 9\n")
    check_data(folders)
    path.write_text("one/1.JPG 1\nnine/1.JPG 10\n")
    complaint(folders, "line 2", "'10'", "model.head.num_classes=10", "from 0 to 9", count=1)
    path.write_text("one/1.JPG\n")
    complaint(folders, "line 1", "'one/1.JPG'", count=1)
