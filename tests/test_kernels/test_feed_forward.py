"""The feed-forward half of a block: plain PyTorch and Triton kernels, and the kernels' parts.

Against autograd's own in float64. The kernels run on a GPU, or interpreted on a CPU.
"""

import pytest
import torch
import torch.nn.functional as F
from triton_testing import DEVICE, check_nan, rel, surrounded

from vig_mm.kernels import triton_rows
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
KINDS = [(kind, scaled) for kind in ("layer", "rms") for scaled in (False, True)]
HALF = [torch.bfloat16, torch.float16]


def randn(*shape, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=torch.float64).to(DEVICE, dtype)


def inputs(shape, kind, scaled, dtype=torch.float32):
    """Gradient of the output, x, norm's weight and bias, w_in, w_out, scale."""
    samples, tokens, channels, width = shape
    scale = torch.tensor([1.25, 0.0, 2.0][:samples], dtype=dtype, device=DEVICE)
    return (
        randn(samples, tokens, channels, seed=1, dtype=dtype),
        randn(samples, tokens, channels, seed=2, dtype=dtype) + 0.5,
        randn(channels, seed=3, dtype=dtype),
        randn(channels, seed=4, dtype=dtype) if kind == "layer" else None,
        randn(2 * width, channels, seed=5, dtype=dtype) * channels**-0.5,
        randn(channels, width, seed=6, dtype=dtype) * width**-0.5,
        scale if scaled else None,
    )


def reference_norm(x, weight, bias):
    if bias is not None:
        return F.layer_norm(x, weight.shape, weight, bias, EPS)
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight


def reference_swiglu(x):
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


def reference(x, norm_w, norm_b, w_in, w_out, scale):
    y = reference_swiglu(reference_norm(x, norm_w, norm_b) @ w_in.mT) @ w_out.mT
    return x + (y if scale is None else y * scale[:, None, None])


def results(function, grad, *tensors):
    """Output, and gradients of all but the scale."""
    tensors = [None if t is None else t.detach() for t in tensors]
    leaves = [t.requires_grad_() for t in tensors[:-1] if t is not None]
    out = function(*tensors)
    return out.detach(), *torch.autograd.grad(out, leaves, grad)


def found(backend, grad, *tensors, dtype=None):
    settings = dict(eps=EPS, dtype=dtype or grad.dtype, backend=backend)
    x, before = tensors[0], tensors[0].clone()
    with torch.no_grad():
        expected = feed_forward(*tensors, **settings)
        inplace = feed_forward(before.clone(), *tensors[1:], **settings, inplace=True)
    out, *gradients = results(lambda *t: feed_forward(*t, **settings, inplace=True), grad, *tensors)
    # the same with and without gradients, which need x
    assert torch.equal(out, expected) and torch.equal(inplace, expected) and torch.equal(x, before)
    return out, *gradients


def expected(grad, *tensors):
    return results(reference, *(None if t is None else t.double() for t in (grad, *tensors)))


@pytest.mark.parametrize(("kind", "scaled"), KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_output_and_gradients(backend, shape, kind, scaled):
    tensors = inputs(shape, kind, scaled)
    bound = 3e-6 if DEVICE == "cpu" else 1e-5  # three products in tf32
    for x, y in zip(found(backend, *tensors), expected(*tensors), strict=True):
        assert x.shape == y.shape and rel(x, y) < bound


@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision(backend, dtype, autocast):
    stream = torch.float32 if autocast else dtype
    for shape, kind, scaled in ((SHAPES[2], "layer", True), (SHAPES[4], "rms", False)):
        tensors = inputs(shape, kind, scaled, stream)
        for x, y in zip(found(backend, *tensors, dtype=dtype), expected(*tensors), strict=True):
            assert x.dtype == stream and rel(x, y) < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize(("kind", "scaled"), KINDS)
def test_plain_gradients_in_double(kind, scaled):
    tensors = inputs((3, 4, 6, 5), kind, scaled, torch.float64)
    for x, y in zip(found("torch", *tensors), expected(*tensors), strict=True):
        assert rel(x, y) < 1e-14
    leaves = [t.requires_grad_() for t in tensors[1:-1] if t is not None]
    assert torch.autograd.gradcheck(
        lambda *_: feed_forward(*tensors[1:], eps=EPS, dtype=torch.float64, backend="torch"),
        leaves,
        fast_mode=True,
    )


@pytest.mark.parametrize("shape", [SHAPES[2], SHAPES[4]], ids=str)
def test_what_one_form_keeps_serves_the_other(shape):
    """Where a kernel fails in one direction only, plain PyTorch takes over in that one."""
    grad, x, *weights, scale = inputs(shape, "layer", True)
    rows, rows_grad = x.flatten(0, 1), grad.flatten(0, 1)
    _, kept = kernels.triton_feed_forward(rows, *weights, scale, EPS)
    assert (kept is None) == (shape[2] <= kernels.MAX_CHANNELS[x.element_size()])
    _, plain_kept = torch_feed_forward(rows, *weights, scale, EPS, True)
    args = (rows_grad, rows, *weights, scale)
    _, *expected_grads = expected(grad, x, *weights, scale)
    for gradients in (
        torch_feed_forward_backward(*args, kept, EPS),
        kernels.triton_feed_forward_backward(*args, plain_kept, EPS),
    ):
        for a, b in zip(gradients, expected_grads, strict=True):
            assert rel(a.view(b.shape), b) < 1e-5


@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[4]], ids=str)
def test_nothing_outside_the_inputs_is_used(shape, nan_memory):
    """Everything around the inputs is NaN, and so is fresh memory; the same in every run."""
    for kind in ("layer", "rms"):
        tensors = inputs(shape, kind, True)
        poisoned = [None if t is None else surrounded(t) for t in tensors]
        for x, y in zip(found("triton", *tensors), found("triton", *poisoned), strict=True):
            assert y.isfinite().all() and torch.equal(x, y)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[4]], ids=str)
def test_nan_is_not_lost(shape, dtype):
    def run(function):
        return lambda *tensors: results(function, *tensors)

    def fused(*tensors):
        return feed_forward(*tensors, eps=EPS, dtype=dtype, backend="triton")

    check_nan(run(fused), run(reference), inputs(shape, "layer", True, dtype))


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
    out, dx, dnorm, dw_in, dw_out = found(backend, x, x, norm, None, w_in, w_out, None)
    limit = torch.finfo(torch.float16).max
    assert out[0, 0, 0].item() == pytest.approx(limit / 2, rel=1e-3)
    assert torch.equal(dx, x) and not dnorm.any() and not dw_in.any()
    assert dw_out[0].item() == limit


def test_registered_operators():
    for kind, scaled in (("layer", True), ("rms", False)):
        grad, x, *tensors = inputs((2, 9, 16, 12), kind, scaled)
        rows, rows_grad = x.flatten(0, 1), grad.flatten(0, 1)
        torch.library.opcheck(kernels.fused, (rows, *tensors, EPS))
        torch.library.opcheck(kernels.fused_backward, (rows_grad, rows, *tensors, EPS))
        weight, bias = tensors[:2]
        torch.library.opcheck(triton_norm.norm, (rows, weight, bias, EPS, x.dtype))
        torch.library.opcheck(triton_norm.norm_backward, (rows_grad, rows, weight, bias, rows, EPS))
        torch.library.opcheck(triton_swiglu.swiglu, (rows,))
        torch.library.opcheck(triton_swiglu.swiglu_backward, (rows_grad[:, :8], rows, tensors[-1]))


# --- norm and SwiGLU, which the kernels of wide channels are made of


@pytest.mark.parametrize("dtype", [torch.float32, *HALF, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("shape", [(7, 5), (130, 96), (9, 768), (3090, 16)], ids=str)
def test_norm(shape, kind, dtype, monkeypatch):
    if dtype == torch.float64:
        _double(monkeypatch)
    grad, x, residual = (randn(*shape, seed=i, dtype=dtype) for i in range(3))
    weight, bias = (randn(shape[-1], seed=i, dtype=dtype) for i in (3, 4))
    bias = bias if kind == "layer" else None
    leaves = [t.double().requires_grad_() for t in (x, weight, bias) if t is not None]
    y = reference_norm(*leaves, *[None] * (3 - len(leaves)))
    expected = torch.autograd.grad(y, leaves, grad.double())
    bound = {torch.float64: 1e-14, torch.float32: 3e-6}.get(dtype) or 2 * torch.finfo(dtype).eps
    assert rel(triton_norm.norm(x, weight, bias, EPS, dtype), y.detach()) < bound
    dx, out, dweights = triton_norm.norm_backward(grad, x, weight, bias, residual, EPS)
    assert rel(out, y.detach()) < bound and rel(dx, expected[0] + residual.double()) < bound
    for a, b in zip(dweights, expected[1:], strict=True):
        assert a.dtype == triton_norm.SCRATCH and rel(a, b) < bound


@pytest.mark.parametrize("dtype", [torch.float32, *HALF, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(6, 10), (70, 64), (66, 352), (6, 600)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_swiglu(backend, shape, dtype, monkeypatch):
    if dtype == torch.float64:
        _double(monkeypatch)
    x, grad = randn(*shape, dtype=dtype), randn(shape[0], shape[1] // 2, seed=1, dtype=dtype)
    leaf = x.clone().double().requires_grad_()
    y = reference_swiglu(leaf)
    (expected,) = torch.autograd.grad(y, leaf, grad.double())
    bound = {torch.float64: 1e-14, torch.float32: 3e-6}.get(dtype) or 4 * torch.finfo(dtype).eps
    if backend == "torch":
        out, (dx, again) = torch_swiglu(x), torch_swiglu_backward(grad, x)
    else:
        out, (dx, again) = triton_swiglu.swiglu(x), triton_swiglu.swiglu_backward(grad, x, None)
        scale = torch.tensor([0.0, 1.25], dtype=dtype, device=DEVICE)
        factor = scale.repeat_interleave(shape[0] // 2)[:, None]
        dx_scaled, out_scaled = triton_swiglu.swiglu_backward(grad, x, scale)
        assert rel(dx_scaled, dx.double() * factor) < bound
        assert rel(out_scaled, out.double() * factor) < bound
    for a, b in ((out, y.detach()), (again, y.detach()), (dx, expected)):
        assert a.dtype == dtype and rel(a, b) < bound


def _double(monkeypatch):
    """Kernels that compute in float64. Triton's interpreter alone can do that."""
    if DEVICE == "cuda":
        pytest.skip("needs the interpreter")
    import triton.language as tl

    for module in (triton_rows, triton_swiglu, triton_norm):
        monkeypatch.setattr(module, "ACC", tl.float64)
        monkeypatch.setattr(module, "SCRATCH", torch.float64, raising=False)
