"""Deformable convolution, plain and modulated, through torchvision."""

import weakref

import torch
import torchvision  # noqa: F401 (registers torch.ops.torchvision)
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

# Both gradients of a plain deformable convolution come from one call of torchvision, and mmcv asks
# for them in two. Scratch tensor of the first -> (its output gradient, weight gradient).
_weight_gradients = WeakIdKeyDictionary()


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Deformable convolution (arXiv 1703.06211).

    Args:
        input: ``[B, C, h, w]``.
        weight: ``[D, C / group, kH, kW]``.
        offset: ``[B, 2 deformable_group kH kW, h', w']``, y and x in turns.
        output: ``[B, D, h', w']``, set to the result.
        columns, ones: scratch of mmcv's C++.
    """
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    output.copy_(_forward(input, weight, offset, None, None, geometry))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Set `gradInput` and `gradOffset`."""
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    grads = _backward(gradOutput, input, weight, offset, None, None, geometry)
    gradInput.copy_(grads[0])
    gradOffset.copy_(grads[2])
    _weight_gradients[columns] = weakref.ref(gradOutput), grads[1]


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Add `scale` times the weight's gradient to `gradWeight`."""
    owner, gradient = _weight_gradients.pop(columns, (None, None))
    if owner is None or owner() is not gradOutput:
        geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
        gradient = _backward(gradOutput, input, gradWeight, offset, None, None, geometry)[1]
    gradWeight.add_(gradient, alpha=scale)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Modulated deformable convolution (arXiv 1811.11168).

    Args:
        input: ``[B, C, h, w]``.
        weight: ``[D, C / group, kernel_h, kernel_w]``.
        bias: ``[D]``, or any tensor without `with_bias`.
        offset: ``[B, 2 deformable_group kernel_h kernel_w, h', w']``, y and x in turns.
        mask: ``[B, deformable_group kernel_h kernel_w, h', w']``.
        output: ``[B, D, h', w']``, set to the result.
        ones, columns: scratch of mmcv's C++.
    """
    geometry = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    output.copy_(_forward(input, weight, offset, mask, bias if with_bias else None, geometry))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Set the five gradients, that of the bias only `with_bias`."""
    geometry = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    grads = _backward(
        grad_output, input, weight, offset, mask, bias if with_bias else None, geometry
    )
    targets = (grad_input, grad_weight, grad_offset, grad_mask, grad_bias)
    for target, gradient in zip(targets[: 5 if with_bias else 4], grads, strict=False):
        target.copy_(gradient)


def _forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    geometry: tuple[int, ...],
) -> Tensor:
    tensors = (input, weight, _numbers(offset), *_mask_and_bias(input, weight, mask, bias))
    return torch.ops.torchvision.deform_conv2d(*tensors, *geometry, mask is not None)


def _backward(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    geometry: tuple[int, ...],
) -> tuple[Tensor, ...]:
    """Gradients of input, weight, offset, mask and bias."""
    tensors = (grad, input, weight, _numbers(offset), *_mask_and_bias(input, weight, mask, bias))
    grads = torch.ops.torchvision._deform_conv2d_backward(*tensors, *geometry, mask is not None)
    grads[2].masked_fill_(_at_minus_one(offset, weight.shape[2:], geometry), 0)
    return grads


def _at_minus_one(offset: Tensor, kernel: tuple[int, int], geometry: tuple[int, ...]) -> Tensor:
    """Which coordinates are exactly -1, where the image begins to count; like `offset`.

    The derivative jumps there: mmcv takes 0, torchvision the other side's. Not rare: with padding 1
    a layer whose offsets start at 0 reads there all along the border.
    """
    offset = offset.unflatten(1, (-1, *kernel, 2))  # [B, deformable groups, kH, kW, 2, h', w']
    axes = [
        torch.arange(out, device=offset.device) * stride
        - padding
        + torch.arange(size, device=offset.device)[:, None] * dilation
        for out, size, stride, padding, dilation in zip(
            offset.shape[-2:], kernel, geometry[:2], geometry[2:4], geometry[4:6], strict=True
        )
    ]  # without offsets: [kH, h'] and [kW, w']
    y = offset[..., 0, :, :] + axes[0][:, None, :, None]
    x = offset[..., 1, :, :] + axes[1][:, None, :]
    return torch.stack((y == -1, x == -1), dim=-3).flatten(1, 4)


def _numbers(offset: Tensor) -> Tensor:
    """Far outside for NaN, where mmcv reads 0; torchvision would read at a wild address."""
    return offset.nan_to_num(nan=torch.finfo(offset.dtype).min)


def _mask_and_bias(
    input: Tensor, weight: Tensor, mask: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """torchvision always takes both."""
    return (
        input.new_zeros(len(input), 1) if mask is None else mask,
        input.new_zeros(len(weight)) if bias is None else bias,
    )
