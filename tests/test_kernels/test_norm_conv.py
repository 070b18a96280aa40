"""Norm and depth-wise convolution of tokens: plain PyTorch and Triton kernels.

Against autograd's own in float64. The kernels run on a GPU, or interpreted on a CPU.
"""

import pytest
import torch
import torch.nn.functional as F
from triton_testing import DEVICE, check_nan, rel, surrounded

from vig_mm.kernels import triton_rows
from vig_mm.kernels.norm_conv import norm_conv, norm_conv_backward
from vig_mm.kernels.norm_conv import triton as norm_conv_kernels

BACKENDS = ("torch", "triton")
EPS = 1e-6
# batch, (h, w), channels
SHAPES = [(1, (1, 1), 5), (2, (3, 5), 16), (2, (9, 12), 96), (1, (2, 40), 200)]
KINDS = [(kind, act) for kind in ("layer", "rms") for act in (False, True)]


def inputs(shape, kind, dtype=torch.float32):
    """x, norm's weight and bias, the convolution's weight, the gradient and the residual's."""
    batch, hw, channels = shape
    g = torch.Generator().manual_seed(1)

    def randn(*size):
        return torch.randn(size, generator=g, dtype=torch.float64).to(DEVICE, dtype)

    x, grad, residual = (randn(batch, hw[0] * hw[1], channels) for _ in range(3))
    bias = randn(channels) if kind == "layer" else None
    return x + 0.5, randn(channels), bias, randn(channels, 1, 3, 3) / 3, grad, residual


def reference(x, weight, bias, taps, hw, act):
    if bias is None:
        y = x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight
    else:
        y = F.layer_norm(x, weight.shape, weight, bias, EPS)
    y = F.conv2d(y.unflatten(1, hw).permute(0, 3, 1, 2), taps, padding=1, groups=len(taps))
    y = y.permute(0, 2, 3, 1).flatten(1, 2)
    return F.silu(y) if act else y


def found(backend, hw, act, x, weight, bias, taps, grad, residual, dtype=None):
    """Output, the same again, gradients of x, of the norm's weight and bias, of the taps."""
    settings = dict(eps=EPS, act=act, backend=backend)
    dtype = dtype or x.dtype
    out, stats = norm_conv(x, None, weight, bias, taps, hw, dtype=dtype, **settings)
    again, _ = norm_conv(x, stats, weight, bias, taps, hw, dtype=dtype, **settings)
    grads = norm_conv_backward(grad, x, stats, weight, bias, taps, residual, hw, **settings)
    return out, again, *(g for i, g in enumerate(grads) if i != 2 or bias is not None)


def expected(hw, act, x, weight, bias, taps, grad, residual):
    double = [None if t is None else t.double() for t in (x, weight, bias, taps)]
    leaves = [t.requires_grad_() for t in double if t is not None]
    out = reference(*double, hw, act)
    dx, *others = torch.autograd.grad(out, leaves, grad.double())
    return out.detach(), out.detach(), dx + residual.double(), *others


@pytest.mark.parametrize(("kind", "act"), KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_output_and_gradients(backend, shape, kind, act):
    tensors = inputs(shape, kind)
    results = found(backend, shape[1], act, *tensors)
    assert torch.equal(results[0], results[1])
    for x, y in zip(results, expected(shape[1], act, *tensors), strict=True):
        assert x.shape == y.shape and x.is_contiguous() and rel(x, y) < 6e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision(backend, dtype, autocast):
    """Under autocast tokens and weights are float32, the result and its gradient are not."""
    for kind, act in (("layer", False), ("rms", True)):
        *tensors, grad, residual = inputs(SHAPES[2], kind, torch.float32 if autocast else dtype)
        tensors += [grad.to(dtype), residual]
        results = found(backend, SHAPES[2][1], act, *tensors, dtype=dtype)
        assert results[0].dtype == dtype and results[2].dtype == tensors[0].dtype
        for x, y in zip(results, expected(SHAPES[2][1], act, *tensors), strict=True):
            assert rel(x, y) < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize(("kind", "act"), KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_in_double(backend, kind, act, monkeypatch):
    """To the last digits of float64, which autograd's own are: what a gradcheck would show."""
    if DEVICE == "cuda":
        pytest.skip("needs the interpreter")
    import triton.language as tl

    for module in (triton_rows, norm_conv_kernels):
        monkeypatch.setattr(module, "ACC", tl.float64)
    monkeypatch.setattr(norm_conv_kernels, "SCRATCH", torch.float64)
    tensors = inputs(SHAPES[1], kind, torch.float64)
    results = found(backend, SHAPES[1][1], act, *tensors)
    for x, y in zip(results, expected(SHAPES[1][1], act, *tensors), strict=True):
        assert rel(x, y) < 1e-13


@pytest.mark.parametrize(("kind", "act"), KINDS)
def test_nothing_outside_the_inputs_is_used(kind, act, nan_memory):
    """Everything around the inputs is NaN, and so is fresh memory."""
    tensors = inputs(SHAPES[1], kind)
    # tokens are contiguous by contract; weights may be parts of something wider
    poisoned = [surrounded(t) if t is not None and t.dim() != 3 else t for t in tensors]
    results = (found("triton", SHAPES[1][1], act, *t) for t in (tensors, poisoned))
    for x, y in zip(*results, strict=True):
        assert y.isfinite().all() and torch.equal(x, y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_nan_is_not_lost(dtype):
    """In the middle of the map: zeros around it that are never read lose none."""
    shape = (1, (3, 5), 16)
    check_nan(
        lambda *tensors: found("triton", shape[1], True, *tensors),
        lambda *tensors: expected(shape[1], True, *tensors),
        inputs(shape, "layer", dtype),
    )


def test_registered_operators():
    x, weight, bias, taps, grad, residual = inputs(SHAPES[1], "layer")
    kernels, (height, width) = norm_conv_kernels, SHAPES[1][1]
    stats = kernels.statistics(x, True, EPS)
    torch.library.opcheck(kernels.statistics, (x, True, EPS))
    torch.library.opcheck(
        kernels.conv, (x, stats, weight, bias, taps, height, width, True, x.dtype)
    )
    torch.library.opcheck(
        kernels.conv_backward,
        (grad, x, stats, weight, bias, taps, residual, height, width, True),
    )
