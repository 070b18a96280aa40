"""LayerNorm and RMSNorm over channels that keep their input alone for the backward pass."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_device, check_floating
from .dispatch import PLAIN_OR_TRITON, run, select_backend


def norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-6,
    backend: str | None = None,
) -> Tensor:
    """LayerNorm where there is a bias, else RMSNorm: x / sqrt(mean(x^2) + eps) * weight.

    Only the result is rounded: half precision is computed in float32. The backward pass computes
    the statistics again: nothing but the arguments is kept for it.

    Args:
        x: ``[..., C]``.
        weight, bias: ``[C]``.
        eps: added to the variance, or to the mean square.
        backend: ``triton`` (the default for CUDA tensors) or ``torch``, see `locality_gate`.

    Returns:
        ``[..., C]``, contiguous, in the dtype of x.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: shapes or devices do not fit together, or the backend is unknown or does not
            take these inputs.
        ImportError: ``backend="triton"`` and there is no Triton.
    """
    check_floating("x", x)
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"x must be [..., C] with C >= 1, got {tuple(x.shape)}")
    check_channels(x, weight=weight, bias=bias)
    backend = select_backend(backend, PLAIN_OR_TRITON, "torch", limit_widths=False, x=x)
    return _norm_op(x, weight, bias, eps, x.dtype, backend)


def check_channels(x: Tensor, **named: Tensor | None) -> None:
    """Floating-point tensors ``[C]`` on the device of ``x [..., C]``; None passes."""
    for name, y in named.items():
        if y is None:
            continue
        check_floating(name, y)
        check_device(name, y, "x", x)
        if y.shape != x.shape[-1:]:
            raise ValueError(
                f"{name} must be {tuple(x.shape[-1:])} to fit x {tuple(x.shape)}, "
                f"got {tuple(y.shape)}"
            )


@torch.library.custom_op("vig_mm::norm", mutates_args=())
def _norm_op(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    dtype: torch.dtype,
    backend: str,
) -> Tensor:
    def kernels() -> Tensor:
        from .triton.norm import norm_forward

        return norm_forward(x, weight, bias, eps, dtype)

    def plain() -> Tensor:
        wide, wide_weight, wide_bias = upcast(x, weight, bias)
        return normalize(wide, wide_weight, wide_bias, eps).to(dtype)

    return run("norm", backend, kernels, plain, x, weight)


@torch.library.custom_op("vig_mm::norm_backward", mutates_args=())
def _norm_backward_op(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradient of x plus ``residual``, the output again in grad's dtype, those of weight and bias.

    The last is zeros where there is no bias.
    """

    def kernels() -> tuple[Tensor, ...]:
        from .triton.norm import norm_backward

        return norm_backward(grad, x, weight, bias, residual, eps)

    def plain() -> tuple[Tensor, ...]:
        wide, wide_weight, wide_bias = upcast(x, weight, bias)
        dx, out, dweight, dbias = torch_norm_backward(
            grad.to(wide.dtype), wide, wide_weight, wide_bias, eps
        )
        if residual is not None:
            dx = dx.add_(residual)
        dbias = torch.zeros_like(dweight) if dbias is None else dbias
        return dx.to(x.dtype), out.to(grad.dtype), dweight.to(weight.dtype), dbias.to(weight.dtype)

    name = "the gradient of norm"
    return run(name, backend, kernels, plain, x, weight, grad)  # type: ignore[return-value]


def upcast(*tensors: Tensor | None) -> list[Any]:
    """Half precision to float32, all to float64 where one is; None passes."""
    double = any(x is not None and x.dtype == torch.float64 for x in tensors)
    dtype = torch.float64 if double else torch.float32
    return [None if x is None else x.to(dtype) for x in tensors]


def normalize(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """`norm` in plain PyTorch, in the dtype of all arguments."""
    if bias is not None:
        return F.layer_norm(x, weight.shape, weight, bias, eps)
    if x.is_cuda:
        return F.rms_norm(x, weight.shape, weight, eps)
    # F.rms_norm is not fused on the CPU; this reads x twice instead of four times
    return (x * _inverse_rms(x, eps)).mul_(weight).to(x.dtype)


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)
    return torch.rsqrt(length.square() / x.shape[-1] + eps)


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
    normal = x * scale  # float32 at least from here on
    product = grad * normal
    dweight = product.flatten(0, -2).sum(dim=0)
    mean = product.mul_(weight).mean(dim=-1, keepdim=True)
    dx = torch.addcmul(grad * weight, normal, mean, value=-1).mul_(scale)
    return dx.to(x.dtype), normal.mul_(weight).to(x.dtype), dweight, None


@_norm_op.register_fake
def _(x, weight, bias, eps, dtype, backend):
    return x.new_empty(x.shape, dtype=dtype)


@_norm_backward_op.register_fake
def _(grad, x, weight, bias, residual, eps, backend):
    out = x.new_empty(x.shape, dtype=grad.dtype)
    return x.new_empty(x.shape), out, torch.empty_like(weight), torch.empty_like(weight)


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.eps, _, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad: Tensor):
    x, weight, bias = ctx.saved_tensors
    dx, _, dweight, dbias = _norm_backward_op(grad, x, weight, bias, None, ctx.eps, ctx.backend)
    return dx, dweight, None if bias is None else dbias, None, None, None


_norm_op.register_autograd(_backward, setup_context=_setup_context)
