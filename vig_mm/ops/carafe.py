"""Content-aware reassembly of features (CARAFE, arXiv 1905.02188) in torch."""

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor


def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Upsampling by a kernel of its own for every cell of the result.

    Args:
        features: ``[B, C, h, w]``.
        masks: ``[B, group_size kernel_size², s h, s w]``, the kernels.
        rfeatures: like `features`, set to them: the backward pass is handed it in their place.
        routput, rmasks: scratch of mmcv's C++.
        output: ``[B, C, s h, s w]``, set to the result.
        scale_factor: s.
    """
    rfeatures.copy_(features)
    carafe_naive_forward(features, masks, output, kernel_size, group_size, scale_factor)


def carafe_backward(
    top_grad: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rtop_grad: Tensor,
    rbottom_grad_hs: Tensor,
    rbottom_grad: Tensor,
    rmask_grad: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Set `bottom_grad`, that of the features, and `mask_grad`; the `r` ones are scratch."""
    grads = (bottom_grad, mask_grad)
    carafe_naive_backward(top_grad, rfeatures, masks, *grads, kernel_size, group_size, scale_factor)


def carafe_naive_forward(
    features: Tensor,
    masks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """`carafe_forward` without the scratch tensors."""
    masks = _by_kernel(masks, group_size, scale_factor)
    windows = _windows(_pad(features, kernel_size), features.shape, kernel_size, group_size)
    total = 0
    for k, window in enumerate(windows):
        total = total + window * masks[:, :, k, None]
    output.copy_(total.flatten(5, 6).flatten(3, 4).flatten(1, 2))


def carafe_naive_backward(
    top_grad: Tensor,
    features: Tensor,
    masks: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """`carafe_backward` without the scratch tensors."""
    shape = features.shape
    grad = _by_cell(top_grad, group_size, scale_factor)
    masks = _by_kernel(masks, group_size, scale_factor)
    mask_grads = _by_kernel(mask_grad, group_size, scale_factor)
    padded_grad = _pad(bottom_grad, kernel_size).zero_()
    windows = _windows(_pad(features, kernel_size), shape, kernel_size, group_size)
    targets = _windows(padded_grad, shape, kernel_size, group_size)
    for k, (window, target) in enumerate(zip(windows, targets, strict=True)):
        mask_grads[:, :, k] = (grad * window).sum(dim=2)
        target += (grad * masks[:, :, k, None]).sum(dim=(4, 6), keepdim=True)
    border = kernel_size // 2
    bottom_grad.copy_(padded_grad[:, :, border : border + shape[2], border : border + shape[3]])


def _pad(x: Tensor, kernel_size: int) -> Tensor:
    return F.pad(x, [kernel_size // 2] * 4)


def _windows(
    padded: Tensor, shape: tuple[int, ...], kernel_size: int, groups: int
) -> Iterator[Tensor]:
    """Views ``[B, groups, C / groups, h, 1, w, 1]``, one for each place in the kernel."""
    batch, channels, height, width = shape
    cells = padded.unflatten(1, (groups, channels // groups))
    for y in range(kernel_size):
        for x in range(kernel_size):
            yield cells[..., y : y + height, x : x + width].unsqueeze(-2).unsqueeze(-1)


def _by_cell(x: Tensor, groups: int, scale: int) -> Tensor:
    """View ``[B, C, s h, s w]`` as ``[B, groups, C / groups, h, s, w, s]``."""
    x = x.unflatten(1, (groups, -1))
    return x.unflatten(4, (-1, scale)).unflatten(3, (-1, scale))


def _by_kernel(masks: Tensor, groups: int, scale: int) -> Tensor:
    """View ``[B, groups k², s h, s w]`` as ``[B, groups, k², h, s, w, s]``."""
    return _by_cell(masks, groups, scale)
