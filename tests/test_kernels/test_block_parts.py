"""SwiGLU, norms and the norm with its depth-wise convolution: plain PyTorch and Triton kernels.

Against autograd's own in float64. The kernels run on a GPU, or interpreted on a CPU.
"""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from triton_testing import DEVICE, check_nan, rel, surrounded

from vig_mm.kernels import norm, norm_conv, swiglu
from vig_mm.kernels.triton import depthwise_conv, rows
from vig_mm.kernels.triton import norm as norm_kernels
from vig_mm.kernels.triton import swiglu as swiglu_kernels

BACKENDS = ("torch", "triton")
EPS = 1e-6
HALF = [torch.bfloat16, torch.float16]


@pytest.fixture
def double_rows(monkeypatch):
    """Kernels that compute in float64, for gradcheck. Triton's interpreter alone can do that."""
    if torch.cuda.is_available():
        pytest.skip("needs the interpreter")
    import triton.language as tl

    for module in (rows, swiglu_kernels, norm_kernels, depthwise_conv):
        monkeypatch.setattr(module, "ACC", tl.float64)
        monkeypatch.setattr(module, "SCRATCH", torch.float64, raising=False)


def randn(*shape, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=torch.float64).to(DEVICE, dtype)


def reference_norm(x, weight, bias=None):
    if bias is not None:
        return F.layer_norm(x, weight.shape, weight, bias, EPS)
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight


def reference_swiglu(x):
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


def reference_conv(x, weight, bias, taps, hw, act):
    y = reference_norm(x, weight, bias).unflatten(1, hw).permute(0, 3, 1, 2)
    y = F.conv2d(y, taps, padding=1, groups=len(taps)).permute(0, 2, 3, 1).flatten(1, 2)
    return F.silu(y) if act else y


def parts(dtype=torch.float32):
    """Name -> function of (backend, *tensors), reference of tensors, tensors."""
    found = {}
    for shape in ((3, 2, 10), (1, 70, 64), (2, 33, 352), (1, 5, 600)):
        found[f"swiglu {shape}"] = (
            lambda backend, x: swiglu(x, backend=backend),
            reference_swiglu,
            [randn(*shape, dtype=dtype)],
        )
    for shape in ((7, 5), (2, 65, 96), (1, 9, 768), (3, 1030, 16)):
        for kind, weights in (("layer", 2), ("rms", 1)):
            tensors = [randn(*shape, seed=1, dtype=dtype) + 0.5]
            tensors += [randn(shape[-1], seed=2 + i, dtype=dtype) for i in range(weights)]
            found[f"{kind} norm {shape}"] = (
                lambda backend, *t: norm(*t, eps=EPS, backend=backend),
                reference_norm,
                tensors,
            )
    for batch, hw, channels in (
        (1, (1, 1), 5),
        (2, (3, 5), 16),
        (2, (9, 12), 96),
        (1, (2, 40), 200),
    ):
        for kind in ("layer", "rms"):
            for act in (False, True):
                tensors = [randn(batch, hw[0] * hw[1], channels, seed=1, dtype=dtype) + 0.5]
                tensors += [randn(channels, seed=2, dtype=dtype)]
                tensors += [randn(channels, seed=3, dtype=dtype)] * (kind == "layer")
                tensors += [randn(channels, 1, 3, 3, seed=4, dtype=dtype) / 3]

                def split(*t):
                    return (*t[:2], t[2] if len(t) == 4 else None, t[-1])

                found[f"{kind} conv {batch} {hw} {channels}{' silu' * act}"] = (
                    lambda backend, *t, hw=hw, act=act: norm_conv(
                        *split(*t), hw, eps=EPS, act=act, backend=backend
                    ),
                    lambda *t, hw=hw, act=act: reference_conv(*split(*t), hw, act),
                    tensors,
                )
    return found


NAMES = list(parts())


def check(function, reference, tensors, bound):
    double = [x.double().requires_grad_() for x in tensors]
    expected = reference(*double)
    grad = randn(*expected.shape, seed=9, dtype=torch.float64)
    expected_grads = torch.autograd.grad(expected, double, grad)
    leaves = [x.detach().requires_grad_() for x in tensors]
    out = function(*leaves)
    assert out.dtype == tensors[0].dtype and out.shape == expected.shape and out.is_contiguous()
    assert rel(out, expected) < bound
    grads = torch.autograd.grad(out, leaves, grad.to(out.dtype))
    for i, (x, y, leaf) in enumerate(zip(grads, expected_grads, leaves, strict=True)):
        assert x.dtype == leaf.dtype and x.shape == leaf.shape
        assert rel(x, y) < 3 * bound, i


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_output_and_gradients(backend, name):
    function, reference, tensors = parts()[name]
    check(partial(function, backend), reference, tensors, 2e-6)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(
    "name", ["swiglu (2, 33, 352)", "layer norm (2, 65, 96)", "rms norm (2, 65, 96)",
             "layer conv 2 (9, 12) 96", "rms conv 2 (9, 12) 96 silu"],
)  # fmt: skip
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision(backend, name, dtype):
    """What is left is the rounding of the output and of its gradient."""
    function, reference, tensors = parts(dtype)[name]
    check(partial(function, backend), reference, tensors, torch.finfo(dtype).eps)


@pytest.mark.parametrize(
    "name",
    [
        *("swiglu (3, 2, 10)", "layer norm (7, 5)", "rms norm (7, 5)"),
        *("layer conv 1 (1, 1) 5", "rms conv 1 (1, 1) 5 silu"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend, name, double_rows, monkeypatch):
    from vig_mm.kernels import dispatch

    monkeypatch.setattr(dispatch, "TRITON_DTYPES", (torch.float64,))
    function, _, tensors = parts(torch.float64)[name]
    leaves = [x.requires_grad_() for x in tensors]
    assert torch.autograd.gradcheck(partial(function, backend), leaves, fast_mode=True)


def test_gradcheck_of_a_map(double_rows, monkeypatch):
    from vig_mm.kernels import dispatch

    monkeypatch.setattr(dispatch, "TRITON_DTYPES", (torch.float64,))
    tensors = [randn(2, 6, 3), randn(3, seed=1), randn(3, seed=2), randn(3, 1, 3, 3, seed=3)]
    leaves = [x.double().requires_grad_() for x in tensors]
    for backend in BACKENDS:
        assert torch.autograd.gradcheck(
            lambda *t, backend=backend: norm_conv(*t, (2, 3), act=True, backend=backend), leaves
        )


@pytest.mark.parametrize(
    "name", ["swiglu (1, 70, 64)", "layer norm (2, 65, 96)", "layer conv 2 (3, 5) 16 silu"]
)
def test_nothing_outside_the_inputs_is_used(name, nan_memory):
    """Everything around the inputs is NaN, and so is fresh memory."""
    function, _, tensors = parts()[name]
    plain, poisoned = (
        [x.requires_grad_() for x in inputs] for inputs in (tensors, map(surrounded, tensors))
    )
    results = []
    for leaves in (plain, poisoned):
        out = function("triton", *leaves)
        results.append([out, *torch.autograd.grad(out, leaves, torch.ones_like(out))])
    for x, y in zip(*results, strict=True):
        assert y.isfinite().all() and torch.equal(x, y)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize(
    "name", ["swiglu (1, 70, 64)", "layer norm (7, 5)", "rms norm (7, 5)",
             "layer conv 2 (3, 5) 16", "rms conv 2 (3, 5) 16 silu"],
)  # fmt: skip
def test_nan_is_not_lost(name, dtype):
    function, reference, tensors = parts(dtype)[name]

    def run(forward):
        def both(*inputs):
            leaves = [x.requires_grad_() for x in inputs]
            out = forward(*leaves)
            return out, *torch.autograd.grad(out, leaves, torch.ones_like(out))

        return both

    check_nan(run(partial(function, "triton")), run(reference), tensors)


def test_product_saturates_in_float16():
    x = torch.tensor([[300.0, 300.0, 2.0, 300.0, -300.0, 3.0]], dtype=torch.float16, device=DEVICE)
    limit = torch.finfo(torch.float16).max
    for backend in BACKENDS:
        leaf = x.clone().requires_grad_()
        out = swiglu(leaf, backend=backend)
        assert out[0, :2].tolist() == [limit, -limit]
        (grad,) = torch.autograd.grad(out.float().sum(), leaf)
        assert grad.isfinite().all() and not grad[0, [0, 1, 3, 4]].any() and grad[0, [2, 5]].all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_swiglu_backward_scales_samples(backend):
    """As stochastic depth does; the output is that which the next layer's weight saw."""
    x, grad, scale = randn(3, 35, 44), randn(3, 35, 22, seed=1), torch.tensor([0.0, 2.0, 1.25])
    scale = scale.to(DEVICE)
    operator = torch.ops.vig_mm.swiglu_backward
    dx, out = operator(grad, x, scale, backend)
    expected = operator(grad * scale[:, None, None], x, None, backend)
    torch.testing.assert_close(dx, expected[0])
    torch.testing.assert_close(out, expected[1] * scale[:, None, None])
    rows = operator(grad.flatten(0, 1), x.flatten(0, 1), scale, backend)
    assert torch.equal(rows[0], dx.flatten(0, 1)) and torch.equal(rows[1], out.flatten(0, 1))


@pytest.mark.parametrize(
    "name",
    [
        *("swiglu (1, 70, 64)", "layer norm (7, 5)", "rms norm (7, 5)"),
        *("layer conv 2 (3, 5) 16", "rms conv 2 (3, 5) 16 silu"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck_and_compile(backend, name):
    function, _, tensors = parts()[name]
    leaves = [x.requires_grad_() for x in tensors]
    run = partial(function, backend)
    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager", dynamic=True)
    expected, out = run(*leaves), compiled(*leaves)
    grad = torch.randn_like(expected)
    gradients = [torch.autograd.grad(y, leaves, grad) for y in (out, expected)]
    torch.testing.assert_close((out, *gradients[0]), (expected, *gradients[1]), rtol=0, atol=1e-6)
    ops, x = torch.ops.vig_mm, leaves[0]
    plain = [t.detach() for t in leaves]
    if "swiglu" in name:
        torch.library.opcheck(ops.swiglu.default, (x, backend))
        args = (expected.detach(), plain[0], torch.ones(1, device=DEVICE), backend)
        torch.library.opcheck(ops.swiglu_backward.default, args)
    elif "norm (" in name:
        bias = [*leaves, None][2]
        torch.library.opcheck(ops.norm.default, (*leaves[:2], bias, EPS, x.dtype, backend))
        args = (expected.detach(), *plain[:2], [*plain, None][2], plain[0], EPS, backend)
        torch.library.opcheck(ops.norm_backward.default, args)
    else:
        act, center = "silu" in name, "layer" in name
        stats = ops.norm_statistics(plain[0], center, EPS, backend)
        torch.library.opcheck(ops.norm_statistics.default, (plain[0], center, EPS, backend))
        bias = leaves[2] if center else None
        args = (leaves[0], stats, leaves[1], bias, leaves[-1], 3, 5, EPS, act)
        torch.library.opcheck(ops.norm_conv.default, (*args, x.dtype, backend))
        plain_args = [t.detach() if isinstance(t, torch.Tensor) else t for t in args]
        args = (expected.detach(), *plain_args[:5], plain[0], *plain_args[5:], backend)
        torch.library.opcheck(ops.norm_conv_backward.default, args)


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch(backend):
    weight = torch.ones(8, device=DEVICE, requires_grad=True)
    taps = torch.ones(8, 1, 3, 3, device=DEVICE, requires_grad=True)
    x = torch.empty(0, 6, 8, device=DEVICE, requires_grad=True)
    for out in (
        swiglu(x, backend=backend),
        norm(x, weight, weight, backend=backend),
        norm_conv(x, weight, None, taps, (2, 3), backend=backend),
    ):
        grads = torch.autograd.grad(out.sum(), (x, weight, taps), allow_unused=True)
        assert all(g is None or not g.any() for g in grads)


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda x, w, t: swiglu(x[..., :3]), ValueError, ["2I", "(2, 6, 3)"]),
        (lambda x, w, t: swiglu(x.long()), TypeError, ["x", "int64"]),
        (lambda x, w, t: norm(x, w[:3]), ValueError, ["weight", "(4,)", "(3,)"]),
        (lambda x, w, t: norm(x, w, w[None]), ValueError, ["bias", "(4,)", "(1, 4)"]),
        (lambda x, w, t: norm(x, w.to("meta")), ValueError, ["weight", "meta"]),
        (lambda x, w, t: norm_conv(x, w, w, t, (2, 2)), ValueError, ["6 tokens", "(2, 2)"]),
        (lambda x, w, t: norm_conv(x[0], w, w, t, (2, 3)), ValueError, ["[B, h*w, C]", "(6, 4)"]),
        (lambda x, w, t: norm_conv(x, w, w, t[:2], (2, 3)), ValueError, ["(4, 1, 3, 3)"]),
        (lambda x, w, t: norm_conv(x, w, w, t, (2, 3), backend="a"), ValueError, ["'a'", "triton"]),
        (lambda x, w, t: norm_conv(x, w, w, t, (2, 3), dtype=torch.int8), TypeError, ["int8"]),
    ],
)
def test_bad_input(call, error, words):
    x, weight, taps = (torch.ones(s, device=DEVICE) for s in ((2, 6, 4), (4,), (4, 1, 3, 3)))
    with pytest.raises(error) as caught:
        call(x, weight, taps)
    assert all(word in str(caught.value) for word in words), str(caught.value)
