"""RoIAlign through torchvision, and RoIPool with mmcv's bins."""

import numpy as np
import torch
import torchvision  # noqa: F401 (registers torch.ops.torchvision)
from torch import Tensor

from . import COMPILE


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """RoIAlign with average pooling (pool mode 1).

    Args:
        input: ``[B, C, h, w]``.
        rois: ``[R, 5]`` as image, x1, y1, x2, y2.
        output: ``[R, C, aligned_height, aligned_width]``, set to the result.
        argmax_y, argmax_x: of max pooling; unused.
        sampling_ratio: samples per bin and axis; 0 takes as many as the bin has cells (in float64
            mmcv counts after rounding the bin to float32: one more or less at whole cells).

    Raises:
        NotImplementedError: max pooling (pool mode 0) is asked for.
    """
    if pool_mode != 1:
        raise NotImplementedError(
            f"RoIAlign with pool_mode='max' is not served by vig_mm.ops: use 'avg', or {COMPILE}"
        )
    scale, size = _single(spatial_scale), (aligned_height, aligned_width)
    output.copy_(
        torch.ops.torchvision.roi_align(input, rois, scale, *size, sampling_ratio, aligned)
    )


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Set `grad_input` ``[B, C, h, w]`` to the gradient of `roi_align_forward`."""
    scale, size = _single(spatial_scale), (aligned_height, aligned_width)
    grad_input.copy_(
        torch.ops.torchvision._roi_align_backward(
            grad_output, rois, scale, *size, *grad_input.shape, sampling_ratio, aligned
        )
    )


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """RoIPool: the largest cell of each bin.

    Not torchvision's, which rounds a RoI to whole cells first: mmcv divides the RoI as it is and
    takes every cell that a bin touches.

    Args:
        input: ``[B, C, h, w]``.
        rois: ``[R, 5]`` as image, x1, y1, x2, y2.
        output: ``[R, C, pooled_height, pooled_width]``, set to the result; 0 for an empty bin.
        argmax: int32 of that shape, set to the cell y * w + x; -1 for an empty bin, also of a RoI
            without a size, whose gradient mmcv adds to cell 0.
    """
    height, width = input.shape[2:]
    top, bottom = _bins(rois[:, 2], rois[:, 4], spatial_scale, pooled_height, height)
    left, right = _bins(rois[:, 1], rois[:, 3], spatial_scale, pooled_width, width)
    empty = (bottom <= top)[:, :, None] | (right <= left)[:, None, :]
    output.zero_()
    argmax.fill_(-1)
    images = rois[:, 0].long().tolist()
    tallest, widest = (
        (last - first).amax(1).tolist() for first, last in ((top, bottom), (left, right))
    )
    for roi, (image, n_rows, n_columns) in enumerate(zip(images, tallest, widest, strict=True)):
        if n_rows == 0 or n_columns == 0:
            continue
        rows = _cells(top[roi], bottom[roi], n_rows) * width
        cells = rows[:, None, :, None] + _cells(left[roi], right[roi], n_columns)[:, None, :]
        cells = cells.flatten(2)  # [pooled_height, pooled_width, n_rows * n_columns]
        value, place = input[image].flatten(1)[:, cells].max(dim=-1)
        cell = cells.expand(len(place), -1, -1, -1).gather(-1, place[..., None])[..., 0]
        output[roi] = value.masked_fill(empty[roi], 0)
        argmax[roi] = cell.masked_fill(empty[roi], -1).int()


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Add each bin's gradient to its largest cell in `grad_input` ``[B, C, h, w]``."""
    image = rois[:, 0].long()[:, None, None, None].expand_as(argmax)
    channel = torch.arange(argmax.shape[1], device=argmax.device)[:, None, None].expand_as(argmax)
    taken = argmax >= 0
    index = image[taken], channel[taken], argmax[taken].long()
    grad_input.flatten(2).index_put_(index, grad_output[taken], accumulate=True)


def _single(scale: float) -> float:
    """mmcv takes a float, torchvision a double."""
    return float(np.float32(scale))


def _bins(
    start: Tensor, end: Tensor, scale: float, number: int, size: int
) -> tuple[Tensor, Tensor]:
    """First and one past the last cell of each bin, ``[R, number]`` int64, within ``[0, size]``.

    A RoI of no or negative size has no cells.
    """
    scale = _single(scale)
    start, end = start[:, None] * scale, (end[:, None] + 1) * scale
    step = (end - start) / number
    bin = torch.arange(number, dtype=start.dtype, device=start.device)
    first = (bin * step + start).floor().long().clamp(0, size)
    last = ((bin + 1) * step + start).ceil().long().clamp(0, size)
    return first, torch.where(end > start, last, first)


def _cells(first: Tensor, last: Tensor, number: int) -> Tensor:
    """``[bins, number]``: the cells of each bin; a smaller bin repeats its last one."""
    cells = first[:, None] + torch.arange(number, device=first.device)
    return torch.minimum(cells, last[:, None] - 1).clamp_(min=0)
