"""LayerNorm and RMSNorm over channels that keep their input alone, residual addition included."""

import torch
import torch.nn.functional as F
from torch import Tensor


def normalize(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """LayerNorm of ``[..., C]`` where there is a bias, else RMSNorm, in plain PyTorch."""
    if bias is not None:
        return F.layer_norm(x, weight.shape, weight, bias, eps)
    if x.is_cuda:
        return F.rms_norm(x, weight.shape, weight, eps)
    # F.rms_norm is not fused on the CPU; this reads x twice instead of four times
    return (x * _inverse_rms(x, eps)).mul_(weight)


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.rsqrt(norm.square() / x.shape[-1] + eps)


def torch_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradient of x, the normed x again, gradients of weight and bias; all in the dtype of x."""
    if bias is not None:
        shape = list(weight.shape)
        out, mean, scale = torch.native_layer_norm(x, shape, weight, bias, eps)
        dx, dweight, dbias = torch.ops.aten.native_layer_norm_backward(
            grad, x, shape, mean, scale, weight, bias, [True, True, True]
        )
        return dx, out, dweight, dbias
    scale = _inverse_rms(x, eps)
    normal = x * scale
    product = grad * normal
    dweight = product.flatten(0, -2).sum(dim=0)
    mean = product.mul_(weight).mean(dim=-1, keepdim=True)
    dx = torch.addcmul(grad * weight, normal, mean, value=-1).mul_(scale)
    return dx, normal.mul_(weight), dweight, None
