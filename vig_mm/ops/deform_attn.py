"""Multi-scale deformable attention on a GPU, through torch's `grid_sample`.

mmcv calls its compiled function for CUDA tensors only and has this form in Python for the CPU.
"""

import torch
from torch import Tensor


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Weighted sum of what the queries read from L maps (arXiv 2010.04159).

    Args:
        value: ``[B, N, H, V]``, the tokens of all maps.
        value_spatial_shapes: ``[L, 2]`` int64, (height, width) of each.
        value_level_start_index: ``[L]``; follows from the shapes.
        sampling_locations: ``[B, Q, H, L, P, 2]`` as (x, y) from 0 to 1.
        attention_weights: ``[B, Q, H, L, P]``.
        im2col_step: images per launch of mmcv's kernel; without meaning here.

    Returns:
        ``[B, Q, H V]``.
    """
    # mmcv.ops loads this module while it is imported itself.
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    return multi_scale_deformable_attn_pytorch(
        value, value_spatial_shapes.tolist(), sampling_locations, attention_weights
    )


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Set the three gradients; the forward pass is computed once more."""
    inputs = [x.detach().requires_grad_() for x in (value, sampling_locations, attention_weights)]
    with torch.enable_grad():
        output = ms_deform_attn_forward(
            inputs[0], value_spatial_shapes, value_level_start_index, *inputs[1:], im2col_step
        )
    gradients = torch.autograd.grad(output, inputs, grad_output)
    targets = (grad_value, grad_sampling_loc, grad_attn_weight)
    for target, gradient in zip(targets, gradients, strict=True):
        target.copy_(gradient)
