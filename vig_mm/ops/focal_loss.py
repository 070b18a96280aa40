"""Sigmoid and softmax focal loss (arXiv 1708.02002), forward and backward, in torch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Set `output` to the loss of every logit.

    From the logit's log-sigmoid, which stays exact where mmcv's kernel rounds 1 - p to 0.

    Args:
        input: logits ``[N, C]``.
        target: ``[N]`` int64; a label outside ``[0, C)`` is background.
        weight: of the classes ``[C]``, or empty.
        output: ``[N, C]``.
    """
    positive = _one_hot(target, input)
    p, q = input.sigmoid(), (-input).sigmoid()
    loss = torch.where(
        positive,
        -alpha * q.pow(gamma) * F.logsigmoid(input),
        (alpha - 1) * p.pow(gamma) * F.logsigmoid(-input),
    )
    output.copy_(_weighted(loss, target, weight))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Set `grad_input` to d loss / d logit."""
    positive = _one_hot(target, input)
    p, q = input.sigmoid(), (-input).sigmoid()
    gradient = torch.where(
        positive,
        -alpha * q.pow(gamma) * (q - gamma * p * F.logsigmoid(input)),
        (alpha - 1) * p.pow(gamma) * (gamma * q * F.logsigmoid(-input) - p),
    )
    grad_input.copy_(_weighted(gradient, target, weight))


def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Set `output` ``[N]`` to the loss of every row; 0 for a negative label.

    Args:
        input: probabilities ``[N, C]``.
        target: ``[N]`` int64, below C.
        weight: of the classes ``[C]``, or empty.
    """
    p = _of_target(input, target)
    loss = -alpha * (1 - p).pow(gamma) * _log(p)
    output.copy_(_weighted(loss.masked_fill(target < 0, 0), target, weight))


def softmax_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    buff: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Set `grad_input` ``[N, C]`` to d loss / d logit; `buff` ``[N]`` holds the rows' factors."""
    p = _of_target(input, target)
    factor = alpha * (gamma * (1 - p).pow(gamma - 1) * p * _log(p) - (1 - p).pow(gamma))
    buff.copy_(_weighted(factor.masked_fill(target < 0, 0), target, weight))
    grad_input.copy_(buff[:, None] * (_one_hot(target, input).to(input.dtype) - input))


def _one_hot(target: Tensor, like: Tensor) -> Tensor:
    return target[:, None] == torch.arange(like.shape[1], device=like.device)


def _of_target(probabilities: Tensor, target: Tensor) -> Tensor:
    return probabilities.gather(1, target.clamp(min=0)[:, None])[:, 0]


def _log(p: Tensor) -> Tensor:
    return p.clamp(min=torch.finfo(torch.float32).tiny).log()


def _weighted(x: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Rows times their class's weight; a row without a class keeps the weight 1."""
    if weight.numel() == 0:
        return x
    classes = target.clamp(0, len(weight) - 1)
    factor = torch.where(classes == target, weight[classes], 1)
    return x * factor.view(-1, *[1] * (x.dim() - 1))
