"""The feed-forward half of a block as one operator: plain PyTorch and Triton kernels.

Against autograd's own in float64. The kernels run on a GPU, or interpreted on a CPU.
"""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from triton_testing import DEVICE, check_nan, rel, surrounded

import vig_mm.kernels.feed_forward  # noqa: F401 - registers the operators

BACKENDS = ("torch", "triton")
EPS = 1e-6
# samples, tokens, C, I: one block and less, several and a rest, channels in two parts
SHAPES = [(1, 3, 5, 7), (2, 50, 24, 40), (3, 35, 96, 72), (2, 35, 200, 40)]
KINDS = [(kind, scaled) for kind in ("layer", "rms") for scaled in (False, True)]
ops = torch.ops.vig_mm


def inputs(shape, kind, scaled, dtype=torch.float32, weights=None):
    """Gradient of the output, x, norm's weight and bias, w_in, w_out, scale."""
    samples, tokens, channels, width = shape
    g = torch.Generator().manual_seed(1)

    def randn(*size, factor=1.0):
        return (factor * torch.randn(size, generator=g, dtype=torch.float64)).to(DEVICE, dtype)

    rows = samples * tokens
    scale = torch.tensor([1.25, 0.0, 2.0][:samples], dtype=dtype, device=DEVICE)
    grad, x, norm_w = randn(rows, channels), randn(rows, channels) + 0.5, randn(channels)
    norm_b = randn(channels) if kind == "layer" else None
    w_in = randn(2 * width, channels, factor=channels**-0.5).to(weights or dtype)
    w_out = randn(channels, width, factor=width**-0.5).to(weights or dtype)
    return grad, x, norm_w, norm_b, w_in, w_out, scale if scaled else None


def reference(x, norm_w, norm_b, w_in, w_out, scale):
    if norm_b is None:
        n = x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * norm_w
    else:
        n = F.layer_norm(x, norm_w.shape, norm_w, norm_b, EPS)
    gate, up = (n @ w_in.mT).chunk(2, dim=-1)
    y = (F.silu(gate) * up) @ w_out.mT
    return x + (y if scale is None else y * scale.repeat_interleave(len(x) // len(scale))[:, None])


def found(backend, grad, *tensors):
    """Output, and gradients of x, the norm's weights and both layers'."""
    out = ops.feed_forward(*tensors, EPS, backend)
    dx, dinside, hidden, normed, dnorm_w, dnorm_b = ops.feed_forward_backward(
        grad, *tensors, EPS, backend
    )
    layers = dinside.double().mT @ normed.double(), grad.double().mT @ hidden.double()
    return out, dx, dnorm_w, *([] if tensors[2] is None else [dnorm_b]), *layers


def expected(grad, *tensors):
    double = [None if t is None else t.double() for t in tensors]
    leaves = [t.requires_grad_() for t in double[:-1] if t is not None]
    out = reference(*double)
    return out.detach(), *torch.autograd.grad(out, leaves, grad.double())


@pytest.mark.parametrize(("kind", "scaled"), KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_output_and_gradients(backend, shape, kind, scaled):
    tensors = inputs(shape, kind, scaled)
    bound = 3e-6 if DEVICE == "cpu" else 1e-5  # three products in tf32
    for x, y in zip(found(backend, *tensors), expected(*tensors), strict=True):
        assert x.shape == y.shape and rel(x, y) < bound


@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision(backend, dtype, autocast):
    stream = torch.float32 if autocast else dtype
    for kind, scaled in (("layer", True), ("rms", False)):
        tensors = inputs((3, 35, 96, 72), kind, scaled, stream, dtype)
        results = found(backend, *tensors)
        assert results[0].dtype == results[1].dtype == stream
        for x, y in zip(results, expected(*tensors), strict=True):
            assert rel(x, y) < 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize(("kind", "scaled"), KINDS)
def test_plain_gradients_in_double(kind, scaled):
    """To the last digits of float64, which autograd's own are: what a gradcheck would show."""
    tensors = inputs((3, 4, 6, 5), kind, scaled, torch.float64)
    leaves = [t.requires_grad_() for t in tensors[1:-1] if t is not None]
    assert torch.autograd.gradcheck(lambda *_: reference(*tensors[1:]), leaves)
    plain = [None if t is None else t.detach() for t in tensors]
    for x, y in zip(found("torch", *plain), expected(*plain), strict=True):
        assert rel(x, y) < 1e-14


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_nothing_outside_the_inputs_is_used(kind, nan_memory):
    """Everything around the inputs is NaN, and so is fresh memory; the same in every run."""
    tensors = inputs((2, 50, 24, 40), kind, True)
    poisoned = [None if t is None else surrounded(t) for t in tensors]
    for x, y in zip(found("triton", *tensors), found("triton", *poisoned), strict=True):
        assert y.isfinite().all() and torch.equal(x, y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_nan_is_not_lost(dtype):
    def plain(*tensors):
        return found("torch", *tensors)

    check_nan(partial(found, "triton"), plain, inputs((2, 20, 24, 40), "layer", True, dtype))


@pytest.mark.parametrize("backend", BACKENDS)
def test_float16_saturates(backend):
    """The product of gate and up stays in range; its gradient is zero where it was cut."""
    x = torch.tensor([[1.0, -1.0]], dtype=torch.float16, device=DEVICE)
    one = torch.ones(2, dtype=torch.float16, device=DEVICE)
    w_in = torch.tensor([[300.0, 0.0], [400.0, 0.0]], dtype=torch.float16, device=DEVICE)
    w_out = torch.tensor([[0.5], [0.0]], dtype=torch.float16, device=DEVICE)
    tensors = (x, one, None, w_in, w_out, None)
    out = ops.feed_forward(*tensors, EPS, backend)
    assert out[0, 0].item() == pytest.approx(torch.finfo(torch.float16).max / 2, rel=1e-3)
    _, dinside, hidden, *_ = ops.feed_forward_backward(x, *tensors, EPS, backend)
    assert hidden.item() == torch.finfo(torch.float16).max and not dinside.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend):
    for kind, scaled in (("layer", True), ("rms", False)):
        grad, *tensors = inputs((2, 9, 16, 12), kind, scaled)
        torch.library.opcheck(ops.feed_forward.default, (*tensors, EPS, backend))
        torch.library.opcheck(ops.feed_forward_backward.default, (grad, *tensors, EPS, backend))
