"""The feed-forward half of a block: plain PyTorch and Triton kernels, and the kernels' parts.

Against autograd's own in float64. The kernels run on a GPU, or interpreted on a CPU.
"""

from functools import partial

import pytest
import references
import torch
from references import check, differentiated, truth
from triton_testing import DEVICE, HALF, check_nan, randn

from vig_mm.kernels.feed_forward import feed_forward, triton_norm, triton_swiglu
from vig_mm.kernels.feed_forward import triton as kernels
from vig_mm.kernels.feed_forward.torch import (
    torch_feed_forward,
    torch_feed_forward_backward,
    torch_swiglu,
    torch_swiglu_backward,
)

BACKENDS = ("torch", "triton")
EPS = 1e-6
# samples, tokens, C, I: one block and less, several and a rest, beyond what one kernel takes
SHAPES = [(1, 3, 5, 7), (2, 50, 24, 40), (3, 35, 96, 72), (2, 35, 200, 40), (2, 35, 300, 40)]
WIDE = SHAPES[4]
KINDS = [(kind, scaled) for kind in ("layer", "rms") for scaled in (False, True)]


def inputs(shape, kind, scaled, dtype=torch.float32):
    """x, norm's weight and bias, w_in, w_out, scale, and the gradient of the output."""
    samples, tokens, channels, width = shape
    x, grad = randn(2, samples, tokens, channels, seed=1, dtype=dtype)
    weight, bias = randn(2, channels, seed=2, dtype=dtype)
    w_in = randn(2 * width, channels, seed=3, dtype=dtype) * channels**-0.5
    w_out = randn(channels, width, seed=4, dtype=dtype) * width**-0.5
    scale = torch.tensor([1.25, 0.0, 2.0][:samples], dtype=dtype, device=DEVICE)
    norm = (weight, bias if kind == "layer" else None)
    return [x + 0.5, *norm, w_in, w_out, scale if scaled else None, grad]


def found(backend, *tensors, dtype=None):
    """Output, and gradients of all but the scale."""
    *tensors, scale, grad = tensors
    settings = dict(eps=EPS, dtype=dtype or grad.dtype, backend=backend)

    def run(x, *t, inplace=True):  # has no effect where gradients are recorded
        return feed_forward(x, *t, scale, **settings, inplace=inplace)

    before = tensors[0].clone()
    results = differentiated(run, tensors, grad)
    exact = partial(torch.testing.assert_close, rtol=0, atol=0, equal_nan=True)
    exact(tensors[0], before)
    with torch.no_grad():
        exact(run(*tensors, inplace=False), results[0])
        exact(run(before, *tensors[1:]), results[0])
    return results


def expected(*tensors):
    *tensors, scale, grad = tensors
    return truth(lambda *t: references.feed_forward(*t, scale, EPS), tensors, grad)


@pytest.mark.parametrize(("kind", "scaled"), KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_output_and_gradients(backend, shape, kind, scaled):
    tensors = inputs(shape, kind, scaled)
    # a GPU takes three products in tf32
    check(found(backend, *tensors), expected(*tensors), 3e-6 if DEVICE == "cpu" else 1e-5)


@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision(backend, dtype, autocast):
    stream = torch.float32 if autocast else dtype
    for shape, kind, scaled in ((SHAPES[2], "layer", True), (WIDE, "rms", False)):
        tensors = inputs(shape, kind, scaled, stream)
        bound = 4 * torch.finfo(dtype).eps
        check(found(backend, *tensors, dtype=dtype), expected(*tensors), bound)


@pytest.mark.parametrize(("kind", "scaled"), KINDS)
def test_plain_in_double(kind, scaled):
    tensors = inputs((3, 4, 6, 5), kind, scaled, torch.float64)
    check(found("torch", *tensors), expected(*tensors), 1e-14)


@pytest.mark.parametrize("shape", [SHAPES[2], WIDE], ids=str)
def test_what_one_form_keeps_serves_the_other(shape):
    """Where a kernel fails in one direction only, plain PyTorch takes over in that one."""
    x, *weights, grad = inputs(shape, "layer", True)
    rows, rows_grad = x.flatten(0, 1), grad.flatten(0, 1)
    _, kept = kernels.triton_feed_forward(rows, *weights, EPS)
    assert (kept is None) == (shape[2] <= kernels.MAX_CHANNELS[x.element_size()])
    _, plain_kept = torch_feed_forward(rows, *weights, EPS, True)
    args = (rows_grad, rows, *weights)
    _, *gradients = expected(x, *weights, grad)
    for some in (
        torch_feed_forward_backward(*args, kept, EPS),
        kernels.triton_feed_forward_backward(*args, plain_kept, EPS),
    ):
        check((a.view(b.shape) for a, b in zip(some, gradients, strict=True)), gradients, 1e-5)


@pytest.mark.parametrize(
    "channels, dtype", [*((24, dtype) for dtype in (torch.float32, *HALF)), (300, torch.float32)]
)
def test_nan_is_not_lost(channels, dtype):
    """In any input; nor in the gradient, whose NaN leaves the output as it is."""
    tensors = inputs((2, 9, channels, 7), "layer", True, dtype)
    check_nan(lambda *t: found("triton", *t), expected, tensors)


@pytest.mark.parametrize("channels", [2, 300])
@pytest.mark.parametrize("backend", BACKENDS)
def test_float16_saturates(backend, channels):
    """The product of gate and up stays in range; its gradient is zero where it was cut."""
    x = torch.zeros(1, 1, channels, dtype=torch.float16, device=DEVICE)
    x[..., 0], x[..., 1] = 1.0, -1.0
    norm = torch.full((channels,), (2 / channels) ** 0.5, dtype=torch.float16, device=DEVICE)
    w_in = torch.zeros(2, channels, dtype=torch.float16, device=DEVICE)
    w_in[0, 0], w_in[1, 0] = 300.0, 400.0
    w_out = torch.zeros(channels, 1, dtype=torch.float16, device=DEVICE)
    w_out[0] = 0.5
    out, dx, dnorm, dw_in, dw_out = found(backend, x, norm, None, w_in, w_out, None, x)
    limit = torch.finfo(torch.float16).max
    assert out[0, 0, 0].item() == pytest.approx(limit / 2, rel=1e-3)
    assert torch.equal(dx, x) and not dnorm.any() and not dw_in.any()
    assert dw_out[0].item() == limit


def test_registered_operators():
    for kind, scaled in (("layer", True), ("rms", False)):
        x, *weights, grad = inputs((2, 9, 16, 12), kind, scaled)
        rows, rows_grad = x.flatten(0, 1), grad.flatten(0, 1)
        norm = weights[:2]
        torch.library.opcheck(kernels.fused, (rows, *weights, EPS))
        torch.library.opcheck(kernels.fused_backward, (rows_grad, rows, *weights, EPS))
        torch.library.opcheck(triton_norm.norm, (rows, *norm, EPS, x.dtype))
        torch.library.opcheck(triton_norm.norm_backward, (rows_grad, rows, *norm, rows, EPS))
        torch.library.opcheck(triton_swiglu.swiglu, (rows,))
        torch.library.opcheck(triton_swiglu.swiglu_backward, (rows_grad[:, :8], rows, weights[-1]))


# --- norm and SwiGLU, which the kernels of wide channels are made of

DTYPES = [torch.float32, *HALF, torch.float64]


@pytest.fixture
def bound(dtype, request):
    if dtype == torch.float64:
        request.getfixturevalue("double_kernels")
    return {torch.float64: 1e-14, torch.float32: 3e-6}.get(dtype) or 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("shape", [(7, 5), (130, 96), (9, 768), (3090, 16)], ids=str)
def test_norm(shape, kind, dtype, bound):
    x, grad, residual = randn(3, *shape, dtype=dtype)
    weight, bias = randn(2, shape[-1], seed=1, dtype=dtype)
    bias = bias if kind == "layer" else None
    y, dx, *dweights = truth(lambda *t: references.norm(*t, EPS), (x, weight, bias), grad)
    again, out, sums = triton_norm.norm_backward(grad, x, weight, bias, residual, EPS)
    assert sums.dtype == triton_norm.SCRATCH
    results = (triton_norm.norm(x, weight, bias, EPS, dtype), out, again, *sums)
    check(results, (y, y, dx + residual.double(), *dweights), bound)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(6, 10), (70, 64), (66, 352), (6, 600)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_swiglu(backend, shape, dtype, bound):
    x, grad = randn(*shape, dtype=dtype), randn(shape[0], shape[1] // 2, seed=1, dtype=dtype)
    y, expected = truth(references.swiglu, (x,), grad)
    if backend == "torch":
        results = torch_swiglu(x), *torch_swiglu_backward(grad, x)
    else:
        results = triton_swiglu.swiglu(x), *triton_swiglu.swiglu_backward(grad, x, None)
        scale = torch.tensor([0.0, 1.25], dtype=dtype, device=DEVICE)
        factor = scale.double().repeat_interleave(shape[0] // 2)[:, None]
        scaled = triton_swiglu.swiglu_backward(grad, x, scale)
        check(scaled, (expected * factor, y * factor), bound)
    assert all(t.dtype == dtype for t in results)
    check(results, (y, expected, y), bound)
