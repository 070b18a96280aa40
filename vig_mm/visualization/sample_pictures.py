"""Pictures of mmdet's, mmseg's and mmpretrain's data samples: ground truth and prediction.

The libraries' own visualizers were not made for small or very large pictures: mmdet's labels have
6 or 13 points whatever the size, and its masks hide the object; mmseg writes class names over each
other; mmpretrain names the first class only.
"""

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from vig_mm.checks.config import leaves, walk
from vig_mm.checks.data.data_set import image_loader, turns
from vig_mm.errors import UsageError
from vig_mm.registry import type_name

from . import pictures

Size = tuple[int, int]  # height, width
Frames = Mapping[str, Size]  # sides, and the size of what their coordinates are in

TRUTH, PREDICTION = "ground truth", "prediction"


class SamplePictures(ABC):
    """Draws the samples of one task; ``palette``: None for colours of our own."""

    truth: Sequence[str]  # what has one of these was annotated, even if nothing is on the image
    prediction: str  # what the model has to give

    def __init__(
        self, classes: Sequence[str], palette: Sequence[pictures.Colour] | None = None
    ) -> None:
        names = list(map(str, classes))
        self.unreadable = {i: x for i, x in enumerate(names) if not pictures.is_legible(x)}
        self.classes = [f"class {i}" if i in self.unreadable else x for i, x in enumerate(names)]
        self.palette = palette or pictures.distinct_colours(len(self.classes))

    def write_legend(self, folder: Path) -> None:
        """Write the names that the font has no letters for, which are drawn as numbers."""
        if self.unreadable:
            folder.mkdir(parents=True, exist_ok=True)
            lines = "".join(f"class {i}: {name}\n" for i, name in self.unreadable.items())
            (folder / "classes.txt").write_text(lines, encoding="utf-8")

    def has_truth(self, sample: Any) -> bool:
        """Whether annotations were loaded, even if there is nothing on the image."""
        return any(key in sample for key in self.truth)

    def draw(
        self,
        image: np.ndarray,
        sample: Any,
        sides: Sequence[str] = (PREDICTION,),
        truth_frame: Size | None = None,
    ) -> Image.Image:
        """Draw a sample on its image.

        Args:
            image: RGB ``[h, w, 3]`` (uint8) of any size; predictions are those for the whole of it.
            sample: data sample of the task's library.
            sides: which of `TRUTH` and `PREDICTION` to draw, from left to right.
            truth_frame: height and width of the image whose coordinates the annotations are in;
                default: those of ``image``.

        Raises:
            UsageError: The prediction is none of the task: image retrieval, captions, depth.
        """
        shown = image.shape[:2]
        frames = {side: (truth_frame or shown) if side == TRUTH else shown for side in sides}
        if PREDICTION in frames and (why := self._unfit(sample)):
            raise UsageError(f"this model cannot be drawn: it {why}")
        return self._draw(pictures.fitted(image), sample, frames)

    def _unfit(self, sample: Any) -> str:
        """Why a prediction is none of the task; "" if it is one."""
        has = ", ".join(key for key in sample.keys() if key.startswith("pred")) or "nothing"
        is_there = self.prediction in sample
        return "" if is_there else f"predicts {has}, and {self.prediction} is needed"

    @abstractmethod
    def _draw(self, picture: Image.Image, sample: Any, frames: Frames) -> Image.Image:
        """`draw`; ``frames``: the sides, and height and width of what their coordinates are in."""


class DetectionPictures(SamplePictures):
    """Boxes and masks; predictions with a score below ``score_thr`` are left out."""

    truth, prediction = ("gt_instances",), "pred_instances"

    def __init__(self, classes: Sequence[str], score_thr: float = 0.3) -> None:
        # not the data set's palette: COCO's has many dark blues that look the same
        super().__init__(classes)
        self.score_thr = score_thr

    def has_truth(self, sample: Any) -> bool:
        return super().has_truth(sample) and "bboxes" in sample.gt_instances

    def _draw(self, picture: Image.Image, sample: Any, frames: Frames) -> Image.Image:
        drawn = []
        for side, frame in frames.items():
            found = sample.gt_instances if side == TRUTH else sample.pred_instances
            found = found if side == TRUTH else found[found.scores >= self.score_thr]
            labels = _array(found.labels).astype(int)
            texts = [self.classes[i] for i in labels]
            if "scores" in found:
                texts = [f"{x} {score:.2f}" for x, score in zip(texts, found.scores, strict=True)]
            boxes = _array(getattr(found.bboxes, "tensor", found.bboxes)).reshape(-1, 4)
            boxes = boxes * ([picture.width / frame[1], picture.height / frame[0]] * 2)
            masks = found.masks if "masks" in found else None
            if masks is not None:
                masks = masks.to_ndarray() if hasattr(masks, "to_ndarray") else _array(masks)
                masks = [_resized(one, frame, picture).astype(bool) for one in masks]
            colours = [self.palette[label] for label in labels]
            drawn.append(pictures.draw_instances(picture, boxes, texts, colours, masks))
        return pictures.beside(drawn, [*frames] if len(frames) > 1 else ())


class SegmentationPictures(SamplePictures):
    """Label maps with a legend of the classes that are in them, by area."""

    truth, prediction = ("gt_sem_seg",), "pred_sem_seg"

    def _draw(self, picture: Image.Image, sample: Any, frames: Frames) -> Image.Image:
        drawn, areas = [], np.zeros(len(self.classes), int)
        for side, frame in frames.items():
            labels = sample.gt_sem_seg if side == TRUTH else sample.pred_sem_seg
            labels = _resized(_array(labels.data)[0], frame, picture)
            drawn.append(pictures.draw_label_map(picture, labels, self.palette))
            areas += np.bincount(labels[labels < len(areas)], minlength=len(areas))
        present = [int(i) for i in np.argsort(-areas, kind="stable") if areas[i]]
        legend = pictures.legend(picture.height, present, self.classes, self.palette)
        return pictures.beside([*drawn, legend], [*frames] if len(frames) > 1 else ())


class ClassificationPictures(SamplePictures):
    """The five highest scores beside the picture, or its true classes over it."""

    truth, prediction = ("gt_label", "gt_score"), "pred_score"

    def _unfit(self, sample: Any) -> str:
        why, needed = super()._unfit(sample), len(self.classes)
        count = needed if why else np.size(_array(sample.pred_score))
        many = f"gives {count} scores for {needed} classes, as image retrieval does"
        return why or ("" if count == needed else many)

    def _draw(self, picture: Image.Image, sample: Any, frames: Frames) -> Image.Image:
        if PREDICTION not in frames:
            return pictures.beside([picture], [self._truth(sample)])
        truth = _array(sample.gt_label).reshape(-1).tolist() if TRUTH in frames else None
        scores = _array(sample.pred_score)
        panel = pictures.score_panel(picture.height, scores, self.classes, truth)
        return pictures.beside([picture, panel])

    def _truth(self, sample: Any) -> str:
        """The classes, or the shares of several after mixup or CutMix."""
        if "gt_score" not in sample:
            shares = {i: 1 for i in _array(sample.gt_label).reshape(-1).tolist()}
        else:
            given = _array(sample.gt_score)
            shares = {i: given[i] for i in np.argsort(-given, kind="stable") if given[i] > 0}
        if all(share == 1 for share in shares.values()):
            return ", ".join(self.classes[i] for i in shares) or "no label"
        return " + ".join(f"{share:.2f} {self.classes[i]}" for i, share in shares.items())


def sample_pictures(scope: str, meta: dict, score_thr: float = 0.3) -> SamplePictures:
    """The pictures of the samples of a library (``scope``).

    ``meta``: a data set's ``metainfo`` or a checkpoint's ``dataset_meta``, with ``classes``.
    """
    if scope == "mmdet":
        return DetectionPictures(meta["classes"], score_thr)
    if scope == "mmseg":
        return SegmentationPictures(meta["classes"], meta.get("palette"))
    return ClassificationPictures(meta["classes"])


def truth_frame(pipeline: Sequence[dict], sample: Any) -> Size:
    """Height and width of the image that the annotations of a pipeline's sample lie in.

    Test pipelines usually load annotations after resizing, so that predictions are scored at the
    original size; the annotations then are in that size, too.
    """
    for _, step in walk("", pipeline):
        if type_name(step).endswith("LoadAnnotations"):
            break
        if "Resize" in type_name(step):
            return tuple(sample.ori_shape[:2])
    return tuple(sample.img_shape[:2])


def data_root(dataset: Any) -> Path:
    """The folder that the images of a data set's config lie below."""
    roots = {os.path.abspath(one.get("data_root") or "") for _, one in leaves("dataset", dataset)}
    return Path(os.path.commonpath(roots))


def drawn_names(paths: Sequence[str | Path], root: Path) -> list[Path]:
    """A file to write for each image, so that none overwrites another: ``sub/a.jpg`` for
    ``root/sub/a.png``, and where two differ in nothing but their endings ``sub/a_png.jpg``.
    """
    names = []
    for path in map(os.path.abspath, paths):
        inside = Path(path).is_relative_to(root)
        names.append(Path(path).relative_to(root if inside else Path(path).anchor))
    same = Counter(name.with_suffix("") for name in set(names))
    stems = [x.name.replace(".", "_") if same[x.with_suffix("")] > 1 else x.stem for x in names]
    return [x.with_name(f"{stem}.jpg") for x, stem in zip(names, stems, strict=True)]


def read_flag(pipeline: Sequence[dict]) -> int:
    """OpenCV's flag to read a picture for the eye, turned by EXIF or not as the pipeline does."""
    is_turned = turns(*image_loader(pipeline))
    return cv2.IMREAD_COLOR | (0 if is_turned else cv2.IMREAD_IGNORE_ORIENTATION)


def _array(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _resized(labels: np.ndarray, frame: Size, picture: Image.Image) -> np.ndarray:
    """A mask or label map ``[h, w]``, the top left of ``frame``, in a picture's size."""
    missing = [(0, whole - side) for side, whole in zip(labels.shape, frame, strict=True)]
    nothing = 0 if labels.dtype == bool else 255
    labels = np.pad(labels.astype(np.int32), missing, constant_values=nothing)
    return cv2.resize(labels, picture.size, interpolation=cv2.INTER_NEAREST)
