"""Norm and depth-wise 3x3 convolution of tokens in one, keeping the tokens alone."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_device, check_floating
from .dispatch import PLAIN_OR_TRITON, run, select_backend
from .norm import check_channels, normalize, torch_norm_backward, upcast


def norm_conv(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    weight: Tensor,
    hw: tuple[int, int],
    *,
    eps: float = 1e-6,
    act: bool = False,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> Tensor:
    """Depth-wise 3x3 convolution of normed tokens, padded with zeros: how ViG's mixer begins.

    Nothing between x and the result is kept for the backward pass, but two numbers a token.

    Args:
        x: ``[B, h*w, C]``, row-major.
        norm_weight, norm_bias: ``[C]``, see `norm`; None for RMSNorm.
        weight: ``[C, 1, 3, 3]``.
        hw: (h, w).
        eps: of the norm.
        act: return silu(y) instead of y.
        dtype: of the result, None is that of x.
        backend: ``triton`` (the default for CUDA tensors) or ``torch``, see `locality_gate`.

    Returns:
        ``[B, h*w, C]``, contiguous.

    Raises:
        TypeError: an argument is not a floating-point tensor, or ``dtype`` not floating point.
        ValueError: shapes or devices do not fit together, or the backend is unknown or does not
            take these inputs.
        ImportError: ``backend="triton"`` and there is no Triton.
    """
    check_floating("x", x)
    if x.dim() != 3 or 0 in x.shape[1:]:
        raise ValueError(f"x must be [B, h*w, C], N and C >= 1, got {tuple(x.shape)}")
    if hw[0] * hw[1] != x.shape[1]:
        raise ValueError(f"x has {x.shape[1]} tokens, but hw={tuple(hw)} asks for {hw[0] * hw[1]}")
    check_channels(x, norm_weight=norm_weight, norm_bias=norm_bias)
    check_floating("weight", weight)
    check_device("weight", weight, "x", x)
    if weight.shape != (x.shape[2], 1, 3, 3):
        raise ValueError(f"weight must be {(x.shape[2], 1, 3, 3)}, got {tuple(weight.shape)}")
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(f"dtype must be floating point, got {dtype}")
    backend = select_backend(backend, PLAIN_OR_TRITON, "torch", limit_widths=False, x=x)
    stats = _statistics_op(x.detach(), norm_bias is not None, eps, backend)
    return _conv_op(
        x, stats, norm_weight, norm_bias, weight, *hw, eps, act, dtype or x.dtype, backend
    )


@torch.library.custom_op("vig_mm::norm_statistics", mutates_args=())
def _statistics_op(x: Tensor, center: bool, eps: float, backend: str) -> Tensor:
    """``[2, M]`` of ``x [..., C]``: mean (0 without ``center``) and 1 / standard deviation."""

    def kernels() -> Tensor:
        from .triton.depthwise_conv import norm_statistics

        return norm_statistics(x, center, eps)

    def plain() -> Tensor:
        (wide,) = upcast(x.flatten(0, -2))
        mean = wide.mean(1) if center else wide.new_zeros(len(wide))
        square = (wide - mean[:, None]).square().mean(1)
        return torch.stack([mean, torch.rsqrt(square + eps)])

    return run("the statistics of norm_conv", backend, kernels, plain, x)


@torch.library.custom_op("vig_mm::norm_conv", mutates_args=())
def _conv_op(
    x: Tensor,
    stats: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    weight: Tensor,
    height: int,
    width: int,
    eps: float,
    act: bool,
    dtype: torch.dtype,
    backend: str,
) -> Tensor:
    hw = (height, width)

    def kernels() -> Tensor:
        from .triton.depthwise_conv import norm_conv_forward

        return norm_conv_forward(x, stats, norm_weight, norm_bias, weight, hw, act, dtype)

    def plain() -> Tensor:
        wide, scale, shift, taps = upcast(x, norm_weight, norm_bias, weight)
        return torch_norm_conv(wide, scale, shift, taps, hw, eps, act, wide.dtype).to(dtype)

    return run("norm_conv", backend, kernels, plain, x, norm_weight, weight)


@torch.library.custom_op("vig_mm::norm_conv_backward", mutates_args=())
def _conv_backward_op(
    grad: Tensor,
    x: Tensor,
    stats: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    weight: Tensor,
    residual: Tensor,
    height: int,
    width: int,
    eps: float,
    act: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x (plus ``residual``), the norm's weight and bias (or zeros), the weight."""
    hw = (height, width)

    def kernels() -> tuple[Tensor, ...]:
        from .triton.depthwise_conv import norm_conv_backward

        return norm_conv_backward(grad, x, stats, norm_weight, norm_bias, weight, residual, hw, act)

    def plain() -> tuple[Tensor, ...]:
        wide, scale, shift, taps = upcast(x, norm_weight, norm_bias, weight)
        dx, dscale, dshift, dtaps = torch_norm_conv_backward(
            grad.to(wide.dtype), wide, scale, shift, taps, residual.to(wide.dtype), hw, eps, act
        )
        dshift = torch.zeros_like(dscale) if dshift is None else dshift
        dtype = norm_weight.dtype
        return dx.to(x.dtype), dscale.to(dtype), dshift.to(dtype), dtaps.to(weight.dtype)

    tensors = (x, norm_weight, weight, grad)
    return run(  # type: ignore[return-value]
        "the gradient of norm_conv", backend, kernels, plain, *tensors
    )


def torch_norm_conv(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    weight: Tensor,
    hw: tuple[int, int],
    eps: float,
    act: bool,
    dtype: torch.dtype,
) -> Tensor:
    """`norm_conv` in plain PyTorch: the norm in the dtype of x, the convolution in ``dtype``."""
    out = _conv(normalize(x, norm_weight, norm_bias, eps).to(dtype), weight.to(dtype), hw)
    return F.silu(out, inplace=True) if act else out


def torch_norm_conv_backward(
    grad: Tensor,
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    weight: Tensor,
    residual: Tensor,
    hw: tuple[int, int],
    eps: float,
    act: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Gradients of x (``residual`` added), of the norm's weight and bias, and of the weight."""
    normed = normalize(x, norm_weight, norm_bias, eps).to(grad.dtype)
    taps = weight.to(grad.dtype)
    if act:
        grad = torch.ops.aten.silu_backward(grad, _conv(normed, taps, hw))
    dnormed, dweight, _ = torch.ops.aten.convolution_backward(
        _map(grad, hw), _map(normed, hw), taps, None, *_DEPTHWISE, len(weight), [True, True, False]
    )
    del normed
    dnormed = dnormed.permute(0, 2, 3, 1).flatten(1, 2).to(x.dtype).contiguous()
    dx, _, dnorm_weight, dnorm_bias = torch_norm_backward(dnormed, x, norm_weight, norm_bias, eps)
    return dx.add_(residual), dnorm_weight, dnorm_bias, dweight.to(weight.dtype)


_DEPTHWISE = ([1, 1], [1, 1], [1, 1], False, [0, 0])


def _map(x: Tensor, hw: tuple[int, int]) -> Tensor:
    return x.unflatten(1, hw).permute(0, 3, 1, 2)


def _conv(x: Tensor, weight: Tensor, hw: tuple[int, int]) -> Tensor:
    out = F.conv2d(_map(x, hw), weight, padding=1, groups=len(weight))
    return out.permute(0, 2, 3, 1).flatten(1, 2).contiguous()  # a copy on the meta device only


@_statistics_op.register_fake
def _(x, center, eps, backend):
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty(2, x.numel() // x.shape[-1], dtype=wide)


@_conv_op.register_fake
def _(x, stats, norm_weight, norm_bias, weight, height, width, eps, act, dtype, backend):
    return x.new_empty(x.shape, dtype=dtype)


@_conv_backward_op.register_fake
def _(grad, x, stats, norm_weight, norm_bias, weight, residual, height, width, eps, act, backend):
    dnorm = (torch.empty_like(norm_weight) for _ in range(2))
    return (
        x.new_empty(x.shape),
        *dnorm,
        torch.empty_like(weight, memory_format=torch.contiguous_format),
    )


def _setup_context(ctx, inputs, output) -> None:
    *tensors, height, width, eps, act, _, backend = inputs
    ctx.save_for_backward(*tensors)
    ctx.settings = height, width, eps, act, backend


def _backward(ctx, grad: Tensor):
    x, stats, norm_weight, norm_bias, weight = ctx.saved_tensors
    dx, dnorm_weight, dnorm_bias, dweight = _conv_backward_op(
        grad, x, stats, norm_weight, norm_bias, weight, torch.zeros_like(x), *ctx.settings
    )
    dnorm_bias = None if norm_bias is None else dnorm_bias
    return dx, None, dnorm_weight, dnorm_bias, dweight, *[None] * 6


_conv_op.register_autograd(_backward, setup_context=_setup_context)
