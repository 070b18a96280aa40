"""The two steps of mmcv's masked convolution: gather the columns of some cells, put them back."""

import torch.nn.functional as F
from torch import Tensor


def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Set `col` ``[C kernel_h kernel_w, M]`` to what the kernel sees at M cells of the result.

    Args:
        im: ``[1, C, h, w]``; 0 outside.
        mask_h_idx, mask_w_idx: ``[M]`` int64, the cells' rows and columns.
    """
    # enough on the far side for any cell of the mask, which is as large as the image
    padded = F.pad(im[0], (pad_w, kernel_w, pad_h, kernel_h))
    col = col.view(len(padded), kernel_h * kernel_w, -1)
    for y in range(kernel_h):
        for x in range(kernel_w):
            col[:, y * kernel_w + x] = padded[:, mask_h_idx + y, mask_w_idx + x]


def masked_col2im_forward(
    col: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    im: Tensor,
    height: int,
    width: int,
    channels: int,
) -> None:
    """Set M cells of `im` ``[1, channels, height, width]`` to `col` ``[channels, M]``."""
    im[0, :, mask_h_idx, mask_w_idx] = col
