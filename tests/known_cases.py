"""Small data sets of coloured rectangles, one for each library, and models that know the colours.

Every picture and every prediction on it is known, and nothing is trained.
"""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("mmcv")
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
pytest.importorskip("mmpretrain")

from mmengine.config import Config
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
CLASSES = ("brick", "leaf", "pond")  # in alphabetical order, as mmpretrain labels folders
COLOURS = [(210, 60, 30), (0, 200, 0), (0, 0, 230)]
CONFIGS = {
    "mmdet": "mmdet/mask-rcnn_vig-h-mini_fpn_digits.py",
    "mmseg": "mmseg/vig-h-mini_upernet_digits.py",
    "mmpretrain": "mmpretrain/vig-h-mini_digits.py",
}
MODELS = {"mmdet": "Detector", "mmseg": "Segmentor", "mmpretrain": "Classifier"}
# size (w, h) of each picture, other than that of the pipelines, and its rectangles on black
SCENES = [
    ((200, 120), {"leaf": (20, 30, 80, 100), "brick": (120, 10, 190, 60)}),
    ((120, 200), {"pond": (10, 100, 110, 190)}),
]


def scene(number: int) -> Image.Image:
    size, shapes = SCENES[number]
    image = Image.new("RGB", size)
    for name, box in shapes.items():
        image.paste(COLOURS[CLASSES.index(name)], box)
    return image


def read(path: Path) -> np.ndarray:
    """A picture as RGB ``[h, w, 3]`` (int)."""
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def near(image: np.ndarray, colour, tolerance: float = 40) -> np.ndarray:
    """Where a picture has about this colour."""
    return np.linalg.norm(image.astype(float) - np.array(colour), axis=2) < tolerance


def write_detection(root: Path) -> dict:
    (root / "val").mkdir(parents=True)
    images, annotations = [], []
    for number, (size, shapes) in enumerate(SCENES):
        images.append(dict(id=number, file_name=f"{number}.png", width=size[0], height=size[1]))
        scene(number).save(root / "val" / f"{number}.png")
        for name, (x1, y1, x2, y2) in shapes.items():
            what = dict(id=len(annotations) + 1, image_id=number, iscrowd=0)
            what["category_id"] = CLASSES.index(name)
            what["bbox"], what["area"] = [x1, y1, x2 - x1, y2 - y1], (x2 - x1) * (y2 - y1)
            what["segmentation"] = [[x1, y1, x2, y1, x2, y2, x1, y2]]
            annotations.append(what)
    categories = [dict(id=i, name=name) for i, name in enumerate(CLASSES)]
    content = dict(images=images, annotations=annotations, categories=categories)
    (root / "truth.json").write_text(json.dumps(content))
    return dict(
        data_root=str(root),
        ann_file="truth.json",
        data_prefix=dict(img="val"),
        metainfo=dict(classes=CLASSES),
    )


def write_segmentation(root: Path) -> dict:
    """Class 0 is the black around the rectangles; a strip on the right is not labelled."""
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
    for number, (size, shapes) in enumerate(SCENES):
        scene(number).save(root / "images" / f"{number}.jpg", quality=95, subsampling=0)
        labels = Image.new("L", size, 1)
        for name, box in shapes.items():
            labels.paste(CLASSES.index(name) + 2, box)
        labels.paste(0, (size[0] - 8, 0, *size))
        labels.save(root / "labels" / f"{number}.png")
    return dict(
        data_root=str(root),
        data_prefix=dict(img_path="images", seg_map_path="labels"),
        metainfo=dict(classes=("soil", *CLASSES), palette=[(90, 90, 90), *COLOURS]),
    )


def write_classification(root: Path) -> dict:
    for name, colour in zip(CLASSES, COLOURS, strict=True):
        (root / "val" / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (70 - 20 * number, 50), colour).save(
                root / "val" / name / f"{number}.png"
            )
    return dict(data_root=str(root), data_prefix="val", metainfo=dict(classes=CLASSES))


WRITERS = dict(mmdet=write_detection, mmseg=write_segmentation, mmpretrain=write_classification)


def known_cases(folder_of: Callable[[str], Path]) -> dict[str, SimpleNamespace]:
    """For each library `folder`, `data`, `config` and `checkpoint` (paths).

    Args:
        folder_of: gives a new folder for each library's name.
    """
    made = {}
    for scope, base in CONFIGS.items():
        folder = folder_of(scope)
        data = WRITERS[scope](folder / "data")
        cfg = Config.fromfile(ROOT / "configs" / base)
        for split in ("train", "val", "test"):
            cfg[f"{split}_dataloader"].dataset.update(data)
            if scope == "mmdet" and split != "train":
                cfg[f"{split}_evaluator"].ann_file = str(folder / "data" / "truth.json")
        if scope == "mmpretrain":
            cfg.model.data_preprocessor.num_classes = len(CLASSES)
        colours = [(0, 0, 0), *COLOURS] if scope == "mmseg" else COLOURS
        cfg.model = dict(
            type=f"vig_mm.Colour{MODELS[scope]}",
            num_classes=len(colours),
            data_preprocessor=cfg.model.data_preprocessor,
        )
        cfg.custom_imports = dict(imports=["colour_models"], allow_failed_imports=False)
        # mmengine tells runs that start in the same second apart by this name
        config = folder / f"{scope}.py"
        cfg.dump(config)
        meta = dict(dataset_meta=data["metainfo"])
        weights = dict(colours=torch.tensor(colours, dtype=torch.float))
        torch.save(dict(state_dict=weights, meta=meta), folder / "weights.pth")
        made[scope] = SimpleNamespace(
            folder=folder,
            data=folder / "data",
            config=config,
            checkpoint=folder / "weights.pth",
        )
    return made
