"""Non-maximum suppression with mmcv's rounding and order: hard, soft, and matching."""

import numpy as np
import torch
import torchvision  # noqa: F401 (registers torch.ops.torchvision)
from torch import Tensor


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the kept boxes, by falling score.

    Args:
        boxes: ``[N, 4]`` as x1, y1, x2, y2; float64 is computed in float64, all else in float32.
        scores: ``[N]``.
        iou_threshold: a box with a larger IoU with a better one is dropped.
        offset: 0 or 1; width is x2 - x1 + offset.

    Returns:
        ``[M]`` int64 on the boxes' device.
    """
    order = scores.sort(0, descending=True)[1]
    boxes = _single_or_double(boxes)[order]
    threshold = float(np.float32(iou_threshold))  # mmcv takes a float, torchvision a double
    if offset:
        kept = _greedy(boxes.cpu().numpy(), threshold, offset)
        return order[torch.as_tensor(kept, dtype=torch.long, device=order.device)]
    # Ranks in place of scores: torchvision sorts once more, and ties must stay in mmcv's order.
    ranks = torch.arange(len(order), 0, -1, dtype=boxes.dtype, device=boxes.device)
    return order[torch.ops.torchvision.nms(boxes, ranks, threshold)]


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft-NMS (arXiv 1704.04503) on the CPU.

    Args:
        boxes: ``[N, 4]``.
        scores: ``[N]``.
        dets: ``[N, 5]``; its first M rows are set to the kept boxes and their new scores.
        iou_threshold: from this IoU on methods 0 and 1 lower a score.
        sigma: width of method 2.
        min_score: a box whose score falls below is dropped.
        method: 0 naive (score 0), 1 linear (times 1 - IoU), 2 gaussian (times exp(-IoU² / sigma)).
        offset: 0 or 1.

    Returns:
        ``[M]`` int64, the kept boxes' indices, in the order in which they were chosen.
    """
    number = len(boxes)
    box, score = _single_or_double(boxes).numpy(), _single_or_double(scores).numpy().copy()
    areas = _areas(box, offset)
    kind = score.dtype.type
    place = np.arange(number)  # which box lies where: mmcv swaps, and ties follow the swaps
    i = 0
    while i < number:
        best = i + _first_best(score[place[i:number]])
        place[[i, best]] = place[[best, i]]
        rest = place[i + 1 : number]
        iou = _iou(box[place[i]], areas[place[i]], box[rest], areas[rest], offset)
        if method == 2:
            power = -(iou * iou) / kind(sigma)
            # rounded once, as C's expf: of tied scores one last bit would change the order
            score[rest] *= np.exp(power.astype(np.float64)).astype(kind)
        elif method == 1:
            score[rest] *= np.where(iou >= kind(iou_threshold), 1 - iou, kind(1))
        else:
            score[rest] *= ~(iou >= kind(iou_threshold))
        number = _drop(place, score < kind(min_score), i + 1, number)
        i += 1
    kept = torch.as_tensor(place[:number])
    dets[:number, :4] = boxes[kept]
    dets[:number, 4] = torch.as_tensor(score)[kept].to(dets)
    return kept


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Groups of boxes: each kept one, then those that it suppresses, by falling score.

    Args:
        dets: ``[N, 5]`` on the CPU, boxes and scores.
        iou_threshold: a box with at least this IoU with a better one joins its group.
    """
    order = dets[:, 4].contiguous().sort(0, descending=True)[1].numpy()
    boxes = _single_or_double(dets[:, :4]).numpy()
    areas = _areas(boxes, 0)
    threshold = boxes.dtype.type(np.float32(iou_threshold))
    groups = []
    while len(order):
        best, rest = order[0], order[1:]
        near = _iou(boxes[best], areas[best], boxes[rest], areas[rest], 0) >= threshold
        groups.append([int(best), *rest[near].tolist()])
        order = rest[~near]
    return groups


def _single_or_double(x: Tensor) -> Tensor:
    return x.detach() if x.dtype == torch.float64 else x.detach().float()


def _greedy(boxes: np.ndarray, threshold: float, offset: int) -> list[int]:
    """Positions of the kept of boxes ``[N, 4]`` that are sorted by score."""
    areas = _areas(boxes, offset)
    kept, rest = [], np.arange(len(boxes))
    while len(rest):
        best, rest = rest[0], rest[1:]
        kept.append(int(best))
        iou = _iou(boxes[best], areas[best], boxes[rest], areas[rest], offset)
        rest = rest[~(iou > threshold)]
    return kept


def _areas(boxes: np.ndarray, offset: int) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0] + offset) * (boxes[:, 3] - boxes[:, 1] + offset)


def _iou(
    box: np.ndarray, area: np.ndarray, boxes: np.ndarray, areas: np.ndarray, offset: int
) -> np.ndarray:
    """IoU of one box with ``[N, 4]``, in mmcv's order of operations; NaN for two empty boxes."""
    width = np.minimum(box[2], boxes[:, 2]) - np.maximum(box[0], boxes[:, 0]) + offset
    height = np.minimum(box[3], boxes[:, 3]) - np.maximum(box[1], boxes[:, 1]) + offset
    inter = np.maximum(width, 0) * np.maximum(height, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return inter / (area + areas - inter)


def _first_best(scores: np.ndarray) -> int:
    """Where the first of the best scores is; as in C++ no score is better or worse than NaN."""
    return 0 if np.isnan(scores[0]) else int(np.nanargmax(scores))


def _drop(place: np.ndarray, low: np.ndarray, start: int, end: int) -> int:
    """Fill the places of dropped boxes from the end, as mmcv does; returns the new end."""
    at = start
    for _ in range(int(low[place[start:end]].sum())):
        while not low[place[at]]:
            at += 1
        end -= 1
        place[at] = place[end]
    return end
