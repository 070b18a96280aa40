"""The locality gate: plain PyTorch and the Triton kernels against its formula in float64.

The kernels run on a GPU, or interpreted on a CPU.
"""

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from triton_testing import DEVICE, check_nan, rel, replayed, surrounded

from vig_mm.kernels import locality_gate
from vig_mm.kernels.triton import gate_backward, gate_forward, launch
from vig_mm.models.layers import GatedLinearAttention2d

EPS = 1e-6
NAMES = ("o", "local", "gate", "g_weight", "l_weight")
BACKENDS = ("torch", "triton")
# batch, tokens, heads, width
SHAPES = [
    (1, 1, 1, 32),
    (2, 17, 3, 32),
    (1, 300, 2, 32),
    (2, 65, 3, 64),
    (3, 50, 1, 5),
    (1, 33, 2, 33),
    (1, 40, 1, 128),
]


def make_inputs(batch=2, tokens=17, heads=3, width=32, dtype=torch.float64, seed=0):
    """o is contiguous, the others are parts of wider tensors, as the mixer may hand them over."""
    g = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(shape, generator=g, dtype=torch.float64).to(DEVICE, dtype)

    o = randn(batch, tokens, heads, width)
    local, gate = randn(batch, tokens, 2, heads, width).mul_(3).unbind(2)
    return [o, local, gate, randn(width), randn(width)]


def formula(o, local, gate, g_weight, l_weight, act=False):
    def norm(x, weight):
        return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight

    share = 1 / (1 + torch.exp(-gate))
    y = norm(o, g_weight) * share + norm(local, l_weight) * (1 - share)
    return y / (1 + torch.exp(-y)) if act else y


def expectation(inputs, act):
    """Output, a gradient for it, and the gradients of the inputs, in float64."""
    leaves = [x.detach().double().requires_grad_() for x in inputs]
    out = formula(*leaves, act=act)
    g = torch.Generator().manual_seed(1)
    grad = torch.randn(out.shape, generator=g, dtype=torch.float64).to(DEVICE)
    return out.detach(), grad, torch.autograd.grad(out, leaves, grad)


def check(inputs, act, backend, bound):
    expected, grad, expected_grads = expectation(inputs, act)
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = locality_gate(*leaves, act=act, backend=backend)
    assert out.dtype == inputs[0].dtype and out.is_contiguous() and out.shape == expected.shape
    assert rel(out, expected) < bound
    grads = torch.autograd.grad(out, leaves, grad.to(out.dtype))
    for name, x, leaf, y in zip(NAMES, grads, leaves, expected_grads, strict=True):
        assert x.dtype == leaf.dtype and x.shape == leaf.shape, name
        assert rel(x, y) < 2 * bound, name


@pytest.mark.parametrize("act", [False, True], ids=["", "silu"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_output_and_gradients(backend, shape, act):
    check(make_inputs(*shape, dtype=torch.float32), act, backend, bound=1e-6)


@pytest.mark.parametrize("act", [False, True], ids=["", "silu"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision(backend, dtype, act):
    """Inside all is float32: what is left is the rounding of the output and of its gradient."""
    check(make_inputs(tokens=100, dtype=dtype), act, backend, bound=torch.finfo(dtype).eps)


@pytest.mark.parametrize("backend", BACKENDS)
def test_mixed_dtypes(backend):
    """Half-precision activations and float32 weights, as under autocast; the output is as o."""
    *inputs, g_weight, l_weight = make_inputs(dtype=torch.bfloat16)
    inputs = [*inputs, g_weight.float(), l_weight.float()]
    check(inputs, False, backend, bound=torch.finfo(torch.bfloat16).eps)
    inputs[1] = inputs[1].float()
    check(inputs, False, backend, bound=torch.finfo(torch.bfloat16).eps)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gate", [-1e30, -100.0, 100.0, 1e30])
def test_closed_and_open_gates(gate, backend):
    inputs = make_inputs(dtype=torch.float32)
    inputs[2] = torch.full_like(inputs[2], gate)
    leaves = [x.requires_grad_() for x in inputs]
    out = locality_gate(*leaves, backend=backend)
    assert rel(out, formula(*(x.detach().double() for x in inputs))) < 1e-6
    grads = torch.autograd.grad(out.sum(), leaves)
    assert all(x.isfinite().all() for x in grads)
    assert grads[2].abs().max() < 1e-30


@pytest.mark.parametrize("act", [False, True], ids=["", "silu"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_into_a_joined_one(backend, dtype, act):
    """What a mixer takes: output and gradients times stochastic depth's scale, and a bias'."""
    if dtype == torch.float64 and backend == "triton":
        pytest.skip("the kernels take no float64")
    bound = {torch.float64: 1e-14, torch.float32: 1e-6}.get(dtype) or torch.finfo(dtype).eps
    operator = torch.ops.vig_mm.locality_gate_backward_into
    for scale in (None, torch.tensor([1.25, 0.0], dtype=dtype, device=DEVICE)):
        inputs = make_inputs(tokens=70, dtype=dtype)
        leaves = [x.detach().clone().double().requires_grad_() for x in inputs]
        expected = formula(*leaves, act=act)
        factor = 1.0 if scale is None else scale.double()[:, None, None, None]
        grad = make_inputs(tokens=70, dtype=dtype, seed=3)[0]
        grads = torch.autograd.grad(expected, leaves, grad.double() * factor)
        joined = torch.full((2, 70, 3 * 32 + 24), torch.nan, dtype=dtype, device=DEVICE)
        dgate = joined[..., 16:-8].unflatten(-1, (3, 32))
        out, do, dlocal, dbias, *dweights = operator(grad, *inputs, scale, dgate, EPS, act, backend)
        assert joined[..., :16].isnan().all() and joined[..., -8:].isnan().all()
        assert rel(out, expected.detach() * factor) < bound and out.dtype == dtype
        assert rel(dbias, grads[2].sum((0, 1)).flatten()) < 2 * bound
        for x, y in zip((do, dlocal, dgate, *dweights), grads, strict=True):
            assert x.dtype == dtype and rel(x, y) < 2 * bound
    args = (grad, *inputs, scale, dgate, EPS, act, backend)
    torch.library.opcheck(operator.default, args)


@pytest.mark.parametrize("act", [False, True], ids=["", "silu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_with_projection_and_residual(backend, dtype, act):
    bound = 2e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    for shape, channels, scaled in (((2, 70, 3, 32), 96, True), ((1, 33, 2, 5), 300, False)):
        inputs = make_inputs(*shape, dtype=dtype)
        g = torch.Generator().manual_seed(7)
        weight = torch.randn(channels, shape[2] * shape[3], generator=g).to(DEVICE, dtype) / 8
        x = torch.randn(*shape[:2], channels, generator=g).to(DEVICE)
        scale = torch.tensor([0.0, 1.25], device=DEVICE) if scaled else None
        args = (*inputs, weight, x, scale, EPS, act, backend)
        out = torch.ops.vig_mm.gate_projection(*args)
        y = formula(*(t.double() for t in inputs), act=act).flatten(2) @ weight.double().mT
        expected = x.double() + (y if scale is None else y * scale[:, None, None])
        assert out.dtype == x.dtype and rel(out, expected) < bound
    torch.library.opcheck(torch.ops.vig_mm.gate_projection.default, args)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_nan_is_not_lost(dtype):
    """Of the gate, its gradients and the projection behind it."""
    tensors = [t.contiguous() for t in make_inputs(1, 9, 2, 5, dtype=dtype)]
    tensors += [torch.ones(8, 10, device=DEVICE).to(dtype), torch.ones(1, 9, 8, device=DEVICE)]

    def found(*t):
        out = gate_forward(*t[:5], EPS, True)
        grads = gate_backward(torch.ones_like(out), *t[:5], EPS, True)
        return *grads, torch.ops.vig_mm.gate_projection(*t, None, EPS, True, "triton"), out

    def expected(*t):
        leaves = [x.requires_grad_() for x in t[:5]]
        out = formula(*leaves, act=True)
        grads = torch.autograd.grad(out, leaves, torch.ones_like(out))
        return *grads, t[6] + out.flatten(2) @ t[5].mT, out

    check_nan(found, expected, tensors)


def test_strides_that_cannot_be_written():
    inputs = make_inputs(dtype=torch.float32)
    dgate = torch.empty(2, 17, 3, 64, device=DEVICE)[..., ::2]
    with pytest.raises(ValueError, match="dgate has strides"):
        torch.ops.vig_mm.locality_gate_backward_into(
            inputs[0], *inputs, None, dgate, EPS, False, "triton"
        )


@pytest.mark.parametrize("act", [False, True], ids=["", "silu"])
def test_gradcheck_of_torch(act):
    leaves = [x.requires_grad_() for x in make_inputs(tokens=3, heads=2, width=5)]
    assert torch.autograd.gradcheck(
        lambda *x: locality_gate(*x, act=act, backend="torch"), leaves, fast_mode=False
    )


@pytest.mark.parametrize("act", [False, True], ids=["", "silu"])
def test_gradcheck_of_triton(act, double_kernels):
    leaves = [x.requires_grad_() for x in make_inputs(batch=1, tokens=3, heads=1, width=3)]
    operator = torch.ops.vig_mm.locality_gate
    assert torch.autograd.gradcheck(lambda *x: operator(*x, EPS, act), leaves)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_do_not_matter(backend):
    inputs = make_inputs(tokens=40, width=16, dtype=torch.float32)
    packed = [x.contiguous() for x in inputs]
    # channels outermost: a map that is not channels last
    odd = [x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0) for x in inputs[:3]]
    odd += [torch.stack([w, w], dim=1)[:, 0] for w in inputs[3:]]
    assert not any(x.is_contiguous() for x in odd)
    out = locality_gate(*packed, backend=backend)
    grad = torch.randn(2, 40, 3, 32, device=DEVICE)[..., ::2]
    grads = gate_backward(grad.contiguous(), *packed, EPS, True)
    for strided in (inputs, odd):
        again = locality_gate(*strided, backend=backend)
        # PyTorch sums in another order where the memory has another one
        assert torch.equal(again, out) if backend == "triton" else rel(again, out) < 1e-6
        for x, y in zip(gate_backward(grad, *strided, EPS, True), grads, strict=True):
            assert x.is_contiguous() and torch.equal(x, y)


@pytest.mark.parametrize("shape", [(1, 3, 2, 5), (2, 70, 1, 33)], ids=str)
def test_nothing_outside_the_inputs_is_used(shape, nan_memory):
    """Everything around the inputs is NaN, and so is fresh memory; also with no eps to help."""
    inputs = make_inputs(*shape, dtype=torch.float32)
    grad = torch.ones_like(inputs[0])
    for eps in (EPS, 0.0):
        expected = (gate_forward(*inputs, eps, True), *gate_backward(grad, *inputs, eps, True))
        poisoned = [surrounded(x) for x in inputs]
        found = (
            gate_forward(*poisoned, eps, True),
            *gate_backward(surrounded(grad), *poisoned, eps, True),
        )
        for x, y in zip(found, expected, strict=True):
            assert y.isfinite().all() and torch.equal(x, y)


def test_grids_in_three_dimensions(monkeypatch):
    """As a sequence of more than 65 535 blocks has them, some of which are past its end."""
    inputs = make_inputs(tokens=300, dtype=torch.float32)
    grad = torch.ones_like(inputs[0])
    expected = (gate_forward(*inputs, EPS, True), *gate_backward(grad, *inputs, EPS, True))
    monkeypatch.setattr(launch, "GRID_LIMIT", 3)
    found = (gate_forward(*inputs, EPS, True), *gate_backward(grad, *inputs, EPS, True))
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y)


def test_gradients_are_the_same_in_every_run():
    inputs = make_inputs(tokens=300, dtype=torch.float32)
    grad = torch.ones_like(inputs[0])
    first = gate_backward(grad, *inputs, EPS, True)
    for x, y in zip(gate_backward(grad, *inputs, EPS, True), first, strict=True):
        assert torch.equal(x, y)


def test_opcheck_and_compile():
    inputs = make_inputs(dtype=torch.float32)
    leaves = [x.requires_grad_() for x in inputs]
    torch.library.opcheck(torch.ops.vig_mm.locality_gate.default, (*leaves, EPS, True))
    plain = [x.detach() for x in leaves]
    grad = torch.randn_like(plain[0])
    operator = torch.ops.vig_mm.locality_gate_backward.default
    torch.library.opcheck(operator, (grad, *plain, EPS, True))
    for backend in BACKENDS:

        def run(*inputs, backend=backend):
            return locality_gate(*inputs, act=True, backend=backend)

        compiled = torch.compile(run, fullgraph=True, backend="aot_eager", dynamic=True)
        expected, out = run(*leaves), compiled(*leaves)
        gradients = [torch.autograd.grad(y, leaves, grad) for y in (out, expected)]
        # torch 2.9 differs in the last place when it compiles
        exact = {} if torch.__version__.startswith("2.9.") else dict(rtol=0, atol=0)
        torch.testing.assert_close((out, *gradients[0]), (expected, *gradients[1]), **exact)


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch(backend):
    leaves = [x.requires_grad_() for x in make_inputs(batch=0, dtype=torch.float32)]
    out = locality_gate(*leaves, backend=backend)
    assert out.shape == (0, 17, 3, 32)
    grads = torch.autograd.grad(out.sum(), leaves)
    assert [x.shape for x in grads] == [x.shape for x in leaves]
    assert not any(x.any() for x in grads)


@pytest.mark.parametrize(
    "change, error, words",
    [
        (dict(o=lambda x: x[0]), ValueError, ["o", "[B, N, H, width]", "(17, 3, 32)"]),
        (dict(local=lambda x: x[:, :5]), ValueError, ["local", "(2, 17, 3, 32)", "(2, 5, 3, 32)"]),
        (dict(gate=lambda x: x[..., :3]), ValueError, ["gate", "(2, 17, 3, 3)"]),
        (dict(gate=lambda x: x.long()), TypeError, ["gate", "int64"]),
        (dict(local=lambda x: None), TypeError, ["local", "tensor", "NoneType"]),
        (dict(g_weight=lambda x: x[:3]), ValueError, ["g_weight", "(32,)", "(3,)"]),
        (dict(l_weight=lambda x: x[None]), ValueError, ["l_weight", "(32,)", "(1, 32)"]),
        (dict(l_weight=lambda x: x.int()), TypeError, ["l_weight", "int32"]),
        (dict(l_weight=lambda x: x.to("meta")), ValueError, ["l_weight", "meta", DEVICE]),
        (dict(o=lambda x: x[:, :, :0]), ValueError, ["o", "heads >= 1"]),
    ],
)
def test_bad_input(change, error, words):
    named = dict(zip(NAMES, make_inputs(dtype=torch.float32), strict=True))
    for name, function in change.items():
        named[name] = function(named[name])
    with pytest.raises(error) as caught:
        locality_gate(**named)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def run_mixer(mixer, x, hw, saving=False):
    """Output and gradients of the input and of every parameter."""
    x = x.detach().requires_grad_()
    out = checkpoint(mixer, x, hw, use_reentrant=False) if saving else mixer(x, hw)
    return [out, *torch.autograd.grad(out.float().square().sum(), [x, *mixer.parameters()])]


@pytest.mark.parametrize("act", [False, True], ids=["", "silu"])
def test_mixer_with_the_kernels_equals_the_mixer_without(act):
    """The mixer as it runs on a GPU against the form for the CPU, with gradients."""
    torch.manual_seed(0)
    mixer = GatedLinearAttention2d(32, 2, act=act)
    x, hw = torch.randn(2, 70, 32), (7, 10)
    expected = run_mixer(mixer, x, hw)
    mixer.backend = "triton"
    mixer, x = mixer.to(DEVICE), x.to(DEVICE)
    bound = 1e-2 if DEVICE == "cuda" else 3e-6  # products of float32 are tf32 on a GPU
    # else cuDNN may sum up the gradient of the convolution's weight in any order
    with torch.backends.cudnn.flags(deterministic=True):
        plain, saving = run_mixer(mixer, x, hw), run_mixer(mixer, x, hw, saving=True)
    for a, b, y in zip(plain, saving, expected, strict=True):
        assert rel(a.cpu(), y) < bound
        assert torch.equal(a, b)
    with torch.no_grad():
        assert rel(mixer(x, hw), plain[0]) < 1e-6


def test_mixer_under_autocast():
    torch.manual_seed(0)
    mixer = GatedLinearAttention2d(32, 2).to(DEVICE)
    x, hw = torch.randn(2, 70, 32, device=DEVICE), (7, 10)
    expected = run_mixer(mixer, x, hw)
    mixer.backend = "triton"
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        found = run_mixer(mixer, x, hw)
    assert found[0].dtype == torch.bfloat16
    for a, y in zip(found, expected, strict=True):
        assert rel(a, y) < 0.02


@pytest.mark.gpu
def test_rows_beyond_32_bits():
    o = torch.randn(1, 1000, 8, 128, dtype=torch.bfloat16, device=DEVICE)
    big = o.repeat(2200, 1, 1, 1)
    assert big.numel() > 2**31
    weight = torch.ones(128, device=DEVICE)
    out = gate_forward(big, big, big, weight, weight, EPS, False)
    assert torch.equal(out[-1:], gate_forward(o, o, o, weight, weight, EPS, False))


@pytest.mark.gpu
def test_mixer_in_a_cuda_graph():
    """Neither operator waits for the device, in the forward or in the backward pass."""
    mixer = GatedLinearAttention2d(64, 2).to(DEVICE)
    x = torch.randn(2, 196, 64, device=DEVICE)

    def step():
        return run_mixer(mixer, x, (14, 14))

    for a, y in zip(replayed(step), step(), strict=True):
        assert rel(a, y) < 1e-5
