"""Tiny data sets of every format, with a config that trains and scores on them."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS
from PIL import Image

from vig_mm.checks.data import DataCheck, check_data
from vig_mm.checks.data.guard import guard
from vig_mm.errors import DataError, SampleError

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SIZE = (60, 48)  # (width, height) of the pictures, in pixels
CORNERS = [6, 6, 30, 6, 30, 24, 6, 24]
OBJECT = dict(image_id=1, category_id=1, bbox=[6, 6, 24, 18], area=432, segmentation=[CORNERS],
              iscrowd=0)  # fmt: skip
PREFIX = dict(img_path="images", seg_map_path="labels")


def encoded(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def picture(size=SIZE, seed=0):
    """Squares of random colours."""
    colours = np.random.default_rng(seed).integers(0, 256, (size[1] // 6, size[0] // 6, 3))
    return Image.fromarray(np.kron(colours, np.ones((6, 6, 1))).astype(np.uint8))


JPG, PNG = encoded(picture(), quality=95), encoded(picture(), "PNG")
TURNED = encoded(picture(), exif=exif(6))  # EXIF: the picture lies on its left side


def write(path, content=b""):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def given(values):
    """Without those that are `...`."""
    return {key: value for key, value in values.items() if value is not ...}


def config(scope, root, dataset, evaluator=None, model=None):
    """One data set for training and, in test mode, for scoring."""
    dataset = dict(dataset, data_root=str(root))
    loaders = {f"{x}_dataloader": dict(dataset=dict(dataset)) for x in ("train", "val")}
    loaders["val_dataloader"]["dataset"]["test_mode"] = True
    cfg = dict(default_scope=scope, work_dir=str(root / "work"), model=model or {}, **loaders)
    return Config(cfg | (dict(val_evaluator=evaluator) if evaluator else {}))


def coco(
    root, *annotations, images=({},), files=(), categories=("a", "b"), classes=("a",), masks=True,
    metric=("bbox", "segm"), text=None, **content,
):  # fmt: skip
    """A COCO file and its pictures; what is given changes or (`...`) leaves out; `text`: it all."""
    named = [dict(id=i, file_name=f"{i}.jpg", width=60, height=48) for i in range(1, 9)]
    whole = dict(
        images=[given({**named[i], **one}) for i, one in enumerate(images)],
        categories=[dict(id=i, name=name) for i, name in enumerate(categories, 1)],
        annotations=[given({**OBJECT, "id": i, **x}) for i, x in enumerate(annotations or [{}], 1)],
    )
    (root / "img").mkdir(parents=True, exist_ok=True)
    for i, _ in enumerate(images):
        write(root / f"img/{i + 1}.jpg", files[i] if files else JPG)
    path = write(root / "a.json", text or json.dumps(given({**whole, **content})))
    load = dict(type="LoadAnnotations", with_bbox=True, with_mask=masks)
    dataset = dict(
        type="CocoDataset",
        ann_file="a.json",
        data_prefix=dict(img="img"),
        metainfo=dict(classes=classes),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=[dict(type="LoadImageFromFile"), load, dict(type="PackDetInputs")],
        serialize_data=False,
    )
    head = dict(
        roi_head=dict(bbox_head=dict(num_classes=1 if isinstance(classes, str) else len(classes)))
    )
    evaluator = dict(type="CocoMetric", ann_file=str(path), metric=list(metric)) if metric else None
    return config("mmdet", root, dataset, evaluator, head)


def label_map(*values, size=SIZE):
    """Stripes of the values, as png."""
    values = np.array(values, np.uint16 if np.max(values) > 255 else np.uint8)
    rows = np.resize(values, (size[0], *values.shape[1:]))[None]
    return encoded(Image.fromarray(rows.repeat(size[1], axis=0)), "PNG")


def seg(root, label, classes="abc", image=JPG, steps=(), heads=255, metric=255, **changes):
    """A picture with its label map (numbers, or the file's bytes)."""
    write(root / "images/1.jpg", image)
    write(root / "labels/1.png", label if isinstance(label, bytes) else label_map(*label))
    load = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations")]
    dataset = dict(
        type="BaseSegDataset",
        data_prefix=PREFIX,
        metainfo=dict(classes=tuple(classes)),
        pipeline=[*load, *steps, dict(type="PackSegInputs")],
    )
    count, names = len(classes), ("decode_head", "auxiliary_head")
    model = {name: dict(num_classes=count, ignore_index=heads) for name in names}
    model["data_preprocessor"] = dict(type="SegDataPreProcessor", seg_pad_val=heads)
    evaluator = dict(type="IoUMetric", ignore_index=metric)
    return config("mmseg", root, given({**dataset, **changes}), evaluator, model)


def folders(root, *names, outputs=10, **changes):
    """Pictures by name, by default one in each of ten class folders."""
    for name in names or [f"{i}/1.JPG" for i in range(10)]:
        write(root / "train" / name, JPG)
    dataset = dict(type="CustomDataset", data_prefix="train", pipeline=[
        dict(type="LoadImageFromFile"), dict(type="PackInputs")])  # fmt: skip
    model = dict(head=dict(num_classes=outputs), data_preprocessor=dict(num_classes=outputs))
    return config("mmpretrain", root, {**dataset, **changes}, None, model)


def built(cfg, split="train"):
    """The guarded data set of a loader."""
    with DATASETS.switch_scope_and_registry(cfg.default_scope) as registry:
        dataset = registry.build(cfg[f"{split}_dataloader"].dataset)
    guard(dataset)
    return dataset


def refused(cfg, words, *splits):
    """See that the check before a run ends in an error with these words; all of its text."""
    with pytest.raises(DataError, match=words) as error:
        check_data(cfg, splits or ("train",))
    return str(error.value)


def sample_refused(cfg, words, split="train"):
    """See that loading the first sample ends in an error with these words; all of its text."""
    with pytest.raises(SampleError, match=words) as error:
        built(cfg, split)[0]
    return str(error.value)


def found(cfg, *splits):
    """Kind -> finding of the quick check."""
    return {one.kind: one for one in DataCheck(cfg, splits or ("train",)).findings}


def found_in_full(cfg, *splits):
    """The same of reading everything."""
    check = DataCheck(cfg, splits or ("val",))
    quick = len(check.findings)
    check.survey(lambda _, f, items: map(f, items))
    return {one.kind: one for one in check.findings[quick:]}


def said(kinds):
    """``severity count`` by kind."""
    return {kind: f"{one.severity} {one.count}" for kind, one in kinds.items()}
