"""Differentiable scores of each class, of a classifier, detector or segmentor."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from inside import Subject
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vig_mm.errors import UsageError


class ClassScores(NamedTuple):
    """What a model says of each class in one image.

    Attributes:
        scores: ``[classes]``, with a gradient.
        amounts: ``[classes]``, 0 to 1: how much of the class there is, in `UNITS`; 0 is none.
    """

    scores: Tensor
    amounts: Tensor


UNITS = {"mmpretrain": "%", "mmdet": "% at best", "mmseg": "% of the pixels"}


def class_scores(subject: Subject, image: Tensor, score_thr: float) -> ClassScores:
    """Put an image through a whole model.

    A classifier's scores are its logits. A detector's score of a class is the sum over its
    detections of that class, a segmentor's the sum of the class's logits over the pixels that are
    given to it.

    Args:
        image: ``[1, 3, H, W]``, of the subject's size.
        score_thr: detections with a lower score do not count.

    Raises:
        UsageError: the model does not give such scores.
    """
    if subject.scope == "mmpretrain":
        scores = subject.model(image, mode="tensor")[0]
        return ClassScores(scores, scores.detach().softmax(dim=0))
    if subject.scope == "mmdet":
        return _of_detections(subject, image, score_thr)
    return _of_pixels(subject, image)


def _of_detections(subject: Subject, image: Tensor, score_thr: float) -> ClassScores:
    found = _detect(subject.model, image, subject.sample.clone())
    if torch.is_grad_enabled() and not found.scores.requires_grad:
        raise UsageError(
            f"{type(subject.model).__name__} cuts its scores off from the image, so that a map "
            "of a class has nothing to go by: use --methods eigencam"
        )
    found = found[found.scores >= score_thr]
    none = image.new_zeros(len(subject.classes))
    best = none.scatter_reduce(0, found.labels, found.scores.detach(), "amax")
    return ClassScores(none.index_add(0, found.labels, found.scores), best)


def _detect(model: Any, image: Tensor, sample: Any) -> Any:
    """The detections ``InstanceData`` of an image, their scores with a gradient."""
    from mmdet.models import SingleStageDetector

    if not isinstance(model, SingleStageDetector):
        (sample,) = model.predict(image, [sample])
        return sample.pred_instances
    features = model.extract_feat(image)
    with _Attached():  # one-stage heads detach what they predict from
        (found,) = model.bbox_head.predict(features, [sample])
    return found


class _Attached(TorchFunctionMode):
    """Within it, `Tensor.detach` detaches nothing."""

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if function is Tensor.detach:
            return args[0]
        return function(*args, **(kwargs or {}))


def _of_pixels(subject: Subject, image: Tensor) -> ClassScores:
    """Padding does not count. The image is taken whole, also where the config slides a window."""
    height, width = subject.picture.shape[:2]
    logits = subject.model.encode_decode(image, [subject.sample.metainfo])
    logits = logits[0, :, :height, :width]
    if len(logits) != len(subject.classes):
        raise UsageError(
            f"{type(subject.model).__name__} gives {len(logits)} map(s) of scores for "
            f"{len(subject.classes)} classes, not one a class: use --methods eigencam"
        )
    best, labels = (x.flatten() for x in logits.max(dim=0))
    pixels = labels.bincount(minlength=len(logits))
    scores = image.new_zeros(len(logits)).index_add(0, labels, best)
    return ClassScores(scores, pixels / len(labels))
