"""Pictures of mmdet's, mmseg's and mmpretrain's data samples: ground truth and prediction.

The libraries' own visualizers were not made for small or very large pictures: mmdet's labels have
6 or 13 points whatever the size, and its masks hide the object; mmseg writes class names over each
other; mmpretrain names the first class only.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from vig_mm.errors import UsageError
from vig_mm.registry import type_name

from . import pictures

Size = tuple[int, int]  # height, width

TRUTH, PREDICTION = "ground truth", "prediction"


class SamplePictures(ABC):
    """Draws the samples of one task.

    Args:
        classes: names in label order.
        palette: colour of each class, or None for colours of our own.
    """

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

    @abstractmethod
    def has_truth(self, sample: Any) -> bool:
        """Whether annotations were loaded, even if there is nothing on the image."""

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
        """
        shown = image.shape[:2]
        frames = {side: (truth_frame or shown) if side == TRUTH else shown for side in sides}
        if PREDICTION in frames:
            self.check(sample)
        return self._draw(image, sample, frames)

    def check(self, sample: Any) -> None:
        """See that a prediction is of the task.

        Raises:
            UsageError: It is none, as those of image retrieval, captions or depth are.
        """
        if self.prediction not in sample:
            has = ", ".join(key for key in sample.keys() if key.startswith("pred")) or "nothing"
            raise UsageError(
                f"this model cannot be drawn: it predicts {has}, and {self.prediction} is needed"
            )

    @abstractmethod
    def _draw(self, image: np.ndarray, sample: Any, frames: Mapping[str, Size]) -> Image.Image:
        """`draw`; ``frames``: the sides, and height and width of what their coordinates are in."""


class DetectionPictures(SamplePictures):
    """Boxes and masks.

    Args:
        score_thr: predictions with a lower score are left out.
    """

    prediction = "pred_instances"

    def __init__(self, classes: Sequence[str], score_thr: float = 0.3) -> None:
        # not the data set's palette: COCO's has many dark blues that look the same
        super().__init__(classes)
        self.score_thr = score_thr

    def has_truth(self, sample: Any) -> bool:
        return "gt_instances" in sample and "bboxes" in sample.gt_instances

    def _draw(self, image: np.ndarray, sample: Any, frames: Mapping[str, Size]) -> Image.Image:
        drawn = []
        for side, frame in frames.items():
            instances = sample.gt_instances if side == TRUTH else sample.pred_instances
            if side == PREDICTION:
                instances = instances[instances.scores >= self.score_thr]
            drawn.append(self._side(image, instances, frame))
        return pictures.beside(drawn, [*frames] if len(frames) > 1 else ())

    def _side(self, image: np.ndarray, instances: Any, frame: Size) -> Image.Image:
        picture = pictures.fitted(image)
        labels = _array(instances.labels).astype(int)
        texts = [self.classes[label] for label in labels]
        if "scores" in instances:
            scores = _array(instances.scores)
            texts = [f"{text} {score:.2f}" for text, score in zip(texts, scores, strict=True)]
        boxes = instances.bboxes
        boxes = _array(getattr(boxes, "tensor", boxes)).reshape(-1, 4)
        factor = np.array([picture.width / frame[1], picture.height / frame[0]] * 2)
        masks = None
        if "masks" in instances:
            masks = instances.masks
            masks = masks.to_ndarray() if hasattr(masks, "to_ndarray") else _array(masks)
            masks = np.array([_resized(mask, frame, picture) for mask in masks], bool)
        colours = [self.palette[label] for label in labels]
        return pictures.draw_instances(picture, boxes * factor, texts, colours, masks)


class SegmentationPictures(SamplePictures):
    """Label maps with a legend of the classes that are in them, by area."""

    prediction = "pred_sem_seg"

    def has_truth(self, sample: Any) -> bool:
        return "gt_sem_seg" in sample

    def _draw(self, image: np.ndarray, sample: Any, frames: Mapping[str, Size]) -> Image.Image:
        picture = pictures.fitted(image)
        drawn, areas = [], np.zeros(len(self.classes), int)
        for side, frame in frames.items():
            labels = sample.gt_sem_seg if side == TRUTH else sample.pred_sem_seg
            labels = _resized(_array(labels.data)[0], frame, picture)
            drawn.append(pictures.draw_label_map(picture, labels, self.palette))
            known = labels[labels < len(areas)]
            areas += np.bincount(known, minlength=len(areas))
        present = [int(i) for i in np.argsort(-areas, kind="stable") if areas[i]]
        legend = pictures.legend(picture.height, present, self.classes, self.palette)
        return pictures.beside([*drawn, legend], [*frames] if len(frames) > 1 else ())


class ClassificationPictures(SamplePictures):
    """The five highest scores beside the picture, or its true classes over it."""

    prediction = "pred_score"

    def check(self, sample: Any) -> None:
        super().check(sample)
        count = np.size(_array(sample.pred_score))
        if count != len(self.classes):
            raise UsageError(
                f"this model cannot be drawn: it gives {count} scores for {len(self.classes)} "
                "classes, as image retrieval gives one for each prototype"
            )

    def has_truth(self, sample: Any) -> bool:
        return "gt_label" in sample or "gt_score" in sample

    def _draw(self, image: np.ndarray, sample: Any, frames: Mapping[str, Size]) -> Image.Image:
        picture = pictures.fitted(image)
        if PREDICTION not in frames:
            return pictures.beside([picture], [self._truth(sample)])
        truth = _array(sample.gt_label).reshape(-1).tolist() if TRUTH in frames else None
        scores = _array(sample.pred_score)
        panel = pictures.score_panel(picture.height, scores, self.classes, truth)
        return pictures.beside([picture, panel])

    def _truth(self, sample: Any) -> str:
        """The classes, or the shares of several after mixup or CutMix."""
        if "gt_score" not in sample:
            mixed, shares = _array(sample.gt_label).reshape(-1).tolist(), np.ones(len(self.classes))
        else:
            shares = _array(sample.gt_score)
            mixed = [int(i) for i in np.argsort(-shares, kind="stable") if shares[i] > 0]
        if all(shares[i] == 1 for i in mixed):
            return ", ".join(self.classes[i] for i in mixed) or "no label"
        return " + ".join(f"{shares[i]:.2f} {self.classes[i]}" for i in mixed)


def sample_pictures(scope: str, meta: dict, score_thr: float = 0.3) -> SamplePictures:
    """The pictures of a library's samples.

    Args:
        scope: mmdet, mmseg or mmpretrain.
        meta: a data set's ``metainfo`` or a checkpoint's ``dataset_meta``, with ``classes``.
        score_thr: see `DetectionPictures`.
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
    for step in _flat(pipeline):
        if type_name(step).endswith("LoadAnnotations"):
            break
        if "Resize" in type_name(step):
            return tuple(sample.ori_shape[:2])
    return tuple(sample.img_shape[:2])


def _flat(steps: Any) -> Iterator[dict]:
    """The transforms of a pipeline, with those inside of others, such as of TestTimeAug."""
    if isinstance(steps, list | tuple):
        for step in steps:
            yield from _flat(step)
    elif isinstance(steps, dict):
        yield steps
        yield from _flat(steps.get("transforms"))


def _array(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _resized(labels: np.ndarray, frame: Size, picture: Image.Image) -> np.ndarray:
    """A mask or label map ``[h, w]``, the top left of ``frame``, in a picture's size."""
    missing = [(0, whole - side) for side, whole in zip(labels.shape, frame, strict=True)]
    nothing = 0 if labels.dtype == bool else 255
    labels = np.pad(labels.astype(np.int32), missing, constant_values=nothing)
    return cv2.resize(labels, picture.size, interpolation=cv2.INTER_NEAREST)
