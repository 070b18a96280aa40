"""Norm and depth-wise convolution of tokens: plain PyTorch and Triton kernels.

Against autograd's own in float64. The kernels run on a GPU, or interpreted on a CPU.
"""

import pytest
import references
import torch
from references import check, truth
from triton_testing import HALF, check_nan, randn

from vig_mm.kernels.norm_conv import norm_conv, norm_conv_backward
from vig_mm.kernels.norm_conv import triton as kernels

BACKENDS = ("torch", "triton")
EPS = 1e-6
# batch, (h, w), channels
SHAPES = [(1, (1, 1), 5), (2, (3, 5), 16), (2, (5, 6), 96), (1, (2, 20), 200)]
KINDS = [(kind, act) for kind in ("layer", "rms") for act in (False, True)]


def inputs(shape, kind, dtype=torch.float32):
    """x, norm's weight and bias, the convolution's weight, the gradient and the residual's."""
    batch, hw, channels = shape
    x, grad, residual = randn(3, batch, hw[0] * hw[1], channels, seed=1, dtype=dtype)
    weight, bias = randn(2, channels, seed=2, dtype=dtype)
    taps = randn(channels, 1, 3, 3, seed=3, dtype=dtype) / 3
    return [x + 0.5, weight, bias if kind == "layer" else None, taps, grad, residual]


def found(backend, hw, act, x, weight, bias, taps, grad, residual):
    """Output, in the gradient's dtype, gradients of x, of the norm's weight and bias, of taps."""
    settings = dict(eps=EPS, act=act, backend=backend)
    out, stats = norm_conv(x, None, weight, bias, taps, hw, dtype=grad.dtype, **settings)
    again, _ = norm_conv(x, stats, weight, bias, taps, hw, dtype=grad.dtype, **settings)
    torch.testing.assert_close(again, out, rtol=0, atol=0, equal_nan=True)
    assert out.dtype == grad.dtype
    dx, *grads = norm_conv_backward(grad, x, stats, weight, bias, taps, residual, hw, **settings)
    assert dx.dtype == x.dtype and dx.is_contiguous() and out.is_contiguous()
    return [out, dx, *(g for i, g in enumerate(grads) if i != 1 or bias is not None)]


def expected(hw, act, *tensors):
    *weights, grad, residual = tensors
    out, dx, *others = truth(lambda *t: references.norm_conv(*t, hw, act, EPS), weights, grad)
    return [out, dx + residual.double(), *others]


@pytest.mark.parametrize(("kind", "act"), KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_output_and_gradients(backend, shape, kind, act):
    tensors = inputs(shape, kind)
    check(found(backend, shape[1], act, *tensors), expected(shape[1], act, *tensors), 6e-6)


@pytest.mark.parametrize(("kind", "act"), KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_in_double(backend, kind, act, double_kernels):
    _, hw, _ = SHAPES[1]
    tensors = inputs(SHAPES[1], kind, torch.float64)
    check(found(backend, hw, act, *tensors), expected(hw, act, *tensors), 1e-13)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision(backend, dtype, autocast):
    """Under autocast tokens and weights are float32, the result and its gradient are not."""
    _, hw, _ = shape = (2, (4, 5), 40)
    for kind, act in (("layer", False), ("rms", True)):
        *tensors, grad, residual = inputs(shape, kind, torch.float32 if autocast else dtype)
        tensors += [grad.to(dtype), residual]
        results = found(backend, hw, act, *tensors)
        check(results, expected(hw, act, *tensors), 4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
def test_nan_is_not_lost(dtype):
    """In the middle of the map: zeros around it that are never read lose none."""
    batch, hw, channels = 1, (3, 5), 16
    check_nan(
        lambda *tensors: found("triton", hw, True, *tensors),
        lambda *tensors: expected(hw, True, *tensors),
        inputs((batch, hw, channels), "layer", dtype),
    )


def test_registered_operators():
    x, weight, bias, taps, grad, residual = inputs(SHAPES[1], "layer")
    stats, hw = kernels.statistics(x, True, EPS), SHAPES[1][1]
    norms = (x, stats, weight, bias, taps)
    torch.library.opcheck(kernels.statistics, (x, True, EPS))
    torch.library.opcheck(kernels.conv, (*norms, *hw, True, x.dtype))
    torch.library.opcheck(kernels.conv_backward, (grad, *norms, residual, *hw, True))
