"""The local steps of mmcv's synchronised batch normalisation (`MMSyncBN`), in float32."""

from torch import Tensor


def sync_bn_forward_mean(input: Tensor, mean: Tensor) -> None:
    """Set `mean` ``[C]`` to that of `input` ``[N, C, L]``."""
    mean.copy_(input.float().mean(dim=(0, 2)))


def sync_bn_forward_var(input: Tensor, mean: Tensor, var: Tensor) -> None:
    """Set `var` ``[C]`` to the mean square distance from `mean`."""
    var.copy_((input.float() - mean[:, None]).square().mean(dim=(0, 2)))


def sync_bn_forward_output(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    norm: Tensor,
    std: Tensor,
    output: Tensor,
    eps: float,
    momentum: Tensor | float,
    group_size: int,
) -> None:
    """Normalise, and move the running statistics.

    Args:
        input, norm, output: ``[N, C, L]``; the last two are set to the normalised input before and
            after `weight` and `bias`.
        mean, var, std: ``[C]``; `std` is set.
        momentum: weight of this batch in the running statistics.
        group_size: processes, each with as many values.
    """
    std.copy_((var + eps).sqrt())
    norm.copy_((input.float() - mean[:, None]) / std[:, None])
    affine = weight is not None and weight.numel() > 0
    output.copy_(norm * weight[:, None] + bias[:, None] if affine else norm)
    if running_mean is not None and running_mean.numel() > 0:
        count = input.shape[0] * input.shape[2] * group_size
        unbiased = var * count / (count - 1) if count > 1 else var
        running_mean.lerp_(mean, float(momentum))
        running_var.lerp_(unbiased, float(momentum))


def sync_bn_backward_param(
    grad_output: Tensor, norm: Tensor, grad_weight: Tensor, grad_bias: Tensor
) -> None:
    """Set the gradients ``[C]`` of weight and bias."""
    grad_output = grad_output.float()
    grad_weight.copy_((grad_output * norm).sum(dim=(0, 2)))
    grad_bias.copy_(grad_output.sum(dim=(0, 2)))


def sync_bn_backward_data(
    grad_output: Tensor,
    weight: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    norm: Tensor,
    std: Tensor,
    grad_input: Tensor,
) -> None:
    """Set `grad_input` ``[N, C, L]``, from the gradients of weight and bias over all processes."""
    count = norm.shape[0] * norm.shape[2]
    shared = (norm * grad_weight[:, None] + grad_bias[:, None]) / count
    grad_input.copy_((grad_output.float() - shared) * (weight / std)[:, None])
