"""Deformable RoI pooling (arXiv 1703.06211): average pooling over bins that are shifted."""

import torch
from torch import Tensor


def deform_roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    output: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """RoIAlign whose bins move by gamma times the RoI's size times their offset.

    Args:
        input: ``[B, C, h, w]``.
        rois: ``[R, 5]`` as image, x1, y1, x2, y2.
        offset: ``[R, 2, pooled_height, pooled_width]`` as x, y; an empty tensor for none.
        output: ``[R, C, pooled_height, pooled_width]``, set to the result.
        sampling_ratio: samples per bin and axis; 0 takes as many as the bin has cells.
    """
    output.copy_(_pool(input, rois, offset, output.shape, spatial_scale, sampling_ratio, gamma))


def deform_roi_pool_backward(
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Set `grad_input` and `grad_offset` to the exact gradients of the forward pass.

    mmcv's kernel differs for offsets of samples beyond the outermost cells' centres: there it
    extrapolates, although the forward pass takes the border's value.
    """
    inputs = [x.detach().requires_grad_() for x in (input, offset)]
    with torch.enable_grad():
        output = _pool(
            inputs[0], rois, inputs[1], grad_output.shape, spatial_scale, sampling_ratio, gamma
        )
    gradients = torch.autograd.grad(output, inputs, grad_output, allow_unused=True)
    for target, gradient in zip((grad_input, grad_offset), gradients, strict=True):
        if gradient is not None:
            target.copy_(gradient)


def _pool(
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    shape: tuple[int, ...],
    scale: float,
    sampling_ratio: int,
    gamma: float,
) -> Tensor:
    n_rois, _, n_rows, n_columns = shape
    image = rois[:, 0].long()
    left, top, right, bottom = (rois[:, 1:] * scale - 0.5).unbind(1)
    height, width = bottom - top, right - left
    top, left = top[:, None, None], left[:, None, None]
    if offset.numel():
        left = left + gamma * width[:, None, None] * offset[:, 0]
        top = top + gamma * height[:, None, None] * offset[:, 1]
    bin_height, bin_width = height / n_rows, width / n_columns
    options = dict(dtype=rois.dtype, device=rois.device)
    row = torch.arange(n_rows, **options)[:, None]
    column = torch.arange(n_columns, **options)
    top = (top + row * bin_height[:, None, None]).expand(n_rois, n_rows, n_columns)
    left = (left + column * bin_width[:, None, None]).expand(n_rois, n_rows, n_columns)

    samples = torch.stack((bin_height, bin_width), 1).ceil().clamp(min=0).long()
    if sampling_ratio > 0:
        samples.fill_(sampling_ratio)
    output = input.new_zeros(shape)
    for n_y, n_x in samples.unique(dim=0).tolist():  # RoIs of one number of samples at a time
        if n_y == 0 or n_x == 0:
            continue
        some = ((samples[:, 0] == n_y) & (samples[:, 1] == n_x)).nonzero()[:, 0]
        step_y = (torch.arange(n_y, **options) + 0.5) / n_y * bin_height[some, None]
        step_x = (torch.arange(n_x, **options) + 0.5) / n_x * bin_width[some, None]
        y = top[some][..., None] + step_y[:, None, None]
        x = left[some][..., None] + step_x[:, None, None]
        read = _bilinear(input, image[some], y, x)  # [r, n_rows, n_columns, n_y, n_x, C]
        output = output.index_put((some,), read.mean(dim=(3, 4)).permute(0, 3, 1, 2))
    return output


def _bilinear(input: Tensor, image: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Reads ``[B, C, h, w]`` at all pairs of y ``[r, i, j, n]`` and x ``[r, i, j, m]``.

    Returns:
        ``[r, i, j, n, m, C]``; 0 more than one cell outside.
    """
    (y_low, y_high, y_part, y_in), (x_low, x_high, x_part, x_in) = (
        _neighbours(place, size) for place, size in zip((y, x), input.shape[2:], strict=True)
    )
    image = image[:, None, None, None, None]
    y_low, y_high, y_part = (t[..., :, None] for t in (y_low, y_high, y_part))
    x_low, x_high, x_part = (t[..., None, :] for t in (x_low, x_high, x_part))
    inside = (y_in[..., :, None] & x_in[..., None, :])[..., None]
    cells = input.permute(0, 2, 3, 1)
    y_part, x_part = y_part[..., None], x_part[..., None]
    upper = cells[image, y_low, x_low].lerp(cells[image, y_low, x_high], x_part)
    lower = cells[image, y_high, x_low].lerp(cells[image, y_high, x_high], x_part)
    return torch.where(inside, upper.lerp(lower, y_part), 0)


def _neighbours(place: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The cells before and after a place, how far it is between them, and whether it counts."""
    inside = (place >= -1) & (place <= size)
    place = place.clamp(0, size - 1)
    low = place.detach().long()
    return low, (low + 1).clamp(max=size - 1), place - low, inside
