"""Writers of the digits data in the layouts of COCO, ADE20K and ImageNet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from .classes import CLASSES, Progress
from .scenes import EMPTY_EVERY, SPLITS, Look, Scene, Source, compose

LOOKS = {
    "coco": Look(stamp=(0.25, 0.6), digits=6),
    "ade": Look(stamp=(0.28, 0.65), digits=4),
    "imagenet": Look(stamp=(0.55, 0.95), digits=1, visible=0.8, clutter=2),
}
ADE_FOLDERS = {"train": "training", "val": "validation"}


def make_scene(
    layout: str,
    split: str,
    index: int,
    sources: dict[str, Source],
    seed: int,
    size: Sequence[int],
    label: int | None = None,
) -> Scene:
    """One scene, which nothing but these arguments decides: any image can be made on its own.

    Args:
        layout: `coco`, `ade` or `imagenet`.
        split: `train` or `val`.
        index: Number of the image in its split (of its class in `imagenet`), from 0.
        sources: As from `load_sources`.
        seed: Non-negative integer.
        size: (height, width) in pixels.
        label: Class of the digit in `imagenet`; None in the layouts that mix them, where one
            image in `EMPTY_EVERY` has no digit.
    """
    where = (list(LOOKS).index(layout), SPLITS.index(split), label or 0, index)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=where))
    empty = label is None and index % EMPTY_EVERY == EMPTY_EVERY // 2
    return compose(rng, sources[split], tuple(size), LOOKS[layout], label, empty)


def write_coco(
    folder: Path,
    sources: dict[str, Source],
    seed: int,
    counts: Sequence[int],
    size: Sequence[int],
    progress: Progress,
) -> None:
    """Write `{train,val}/*.jpg` and `annotations/{train,val}.json`; ids count from 1.

    Masks are compressed RLE with `iscrowd` 0: polygons can't hold the holes of a digit exactly.
    mmdet (with `poly2mask=True`, its default) and pycocotools both read them.
    """
    from pycocotools import mask as mask_api

    for split, count in _wanted(counts):
        images, annotations = [], []
        for index in range(count):
            scene = make_scene("coco", split, index, sources, seed, size)
            name = f"{index + 1:06d}.jpg"
            _save_jpeg(scene, folder / split / name)
            images.append({"id": index + 1, "file_name": name, "height": size[0], "width": size[1]})
            owners = scene.owners
            for layer, label in enumerate(scene.labels, start=1):
                rle = mask_api.encode(np.asfortranarray(owners == layer, np.uint8))
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": index + 1,
                        "category_id": label + 1,
                        "bbox": [int(side) for side in mask_api.toBbox(rle)],
                        "area": int(mask_api.area(rle)),
                        "iscrowd": 0,
                        "segmentation": {
                            "size": list(size),
                            "counts": rle["counts"].decode("ascii"),
                        },
                    }
                )
            progress(f"coco/{split}", index + 1, count)
        categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)]
        content = {
            "info": {"description": "vig_mm digits"},
            "images": images,
            "annotations": annotations,
            "categories": categories,
        }
        path = folder / "annotations" / f"{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="ascii")


def write_ade(
    folder: Path,
    sources: dict[str, Source],
    seed: int,
    counts: Sequence[int],
    size: Sequence[int],
    progress: Progress,
) -> None:
    """Write `{images,annotations}/{training,validation}`.

    Labels: 0 ignored (no layer has nearly all of the pixel), 1 background, 2..11 zero..nine;
    with mmseg's `reduce_zero_label=True` that makes 11 classes, background first.
    """
    for split, count in _wanted(counts):
        for index in range(count):
            scene = make_scene("ade", split, index, sources, seed, size)
            name = f"{ADE_FOLDERS[split]}/{index + 1:06d}"
            _save_jpeg(scene, folder / "images" / f"{name}.jpg")
            path = folder / "annotations" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(ade_labels(scene)).save(path)
            progress(f"ade/{split}", index + 1, count)


def ade_labels(scene: Scene) -> np.ndarray:
    """The uint8 label map `[h, w]` of a scene, as `write_ade` describes it."""
    of_layer = np.array([1, *(label + 2 for label in scene.labels)], np.uint8)
    return np.where(scene.solid, of_layer[scene.owners], np.uint8(0))


def write_imagenet(
    folder: Path,
    sources: dict[str, Source],
    seed: int,
    counts: Sequence[int],
    size: Sequence[int],
    progress: Progress,
) -> None:
    """Write `{train,val}/<class>/*.jpg`, `counts` images a class, one digit in each."""
    for split, count in _wanted(counts):
        for label, name in enumerate(CLASSES):
            for index in range(count):
                scene = make_scene("imagenet", split, index, sources, seed, size, label)
                _save_jpeg(scene, folder / split / name / f"{index + 1:06d}.jpg")
                progress(f"imagenet/{split}", label * count + index + 1, count * len(CLASSES))


def _wanted(counts: Sequence[int]) -> list[tuple[str, int]]:
    return [(split, count) for split, count in zip(SPLITS, counts, strict=True) if count]


def _save_jpeg(scene: Scene, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Full-resolution colour: halved, a saturated tint bleeds over the edge of its mask.
    scene.image().save(path, quality=95, subsampling=0)
