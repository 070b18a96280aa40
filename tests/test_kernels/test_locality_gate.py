"""The locality gate: plain PyTorch and the Triton kernels against its formula in float64.

The kernels run on a GPU, or interpreted on a CPU; numba's form is in test_cpu.
"""

import pytest
import references
import torch
from references import check, differentiated, rel, truth
from torch.utils.checkpoint import checkpoint
from triton_testing import DEVICE, HALF, check_nan, randn, replayed

from vig_mm.kernels import locality_gate, triton_utils
from vig_mm.kernels.locality_gate import (
    gate_projection,
    gate_projection_backward,
    triton_projection,
)
from vig_mm.kernels.locality_gate import triton as kernels
from vig_mm.kernels.locality_gate.triton import gate_backward, gate_forward
from vig_mm.nets import GatedLinearAttention2d

EPS = 1e-6
NAMES = ("o", "local", "gate", "g_weight", "l_weight")
BACKENDS = ("torch", "triton")
ACT = pytest.mark.parametrize("act", [False, True], ids=["", "silu"])
# batch, tokens, heads, width
SHAPES = [
    (1, 1, 1, 32), (2, 17, 3, 32), (1, 300, 2, 32), (2, 65, 3, 64), (3, 50, 1, 5), (1, 33, 2, 33),
    (1, 40, 1, 128),
]  # fmt: skip
SMALL = SHAPES[1]


def make_inputs(batch, tokens, heads, width, dtype=torch.float32):
    """o is contiguous, the others are parts of wider tensors, as the mixer may hand them over; some
    gates are open or closed."""
    local, gate = randn(batch, tokens, 2, heads, width, seed=1, dtype=dtype).mul_(3).unbind(2)
    gate[:, ::9, :, 1], gate[:, 1::9, :, 2], gate[:, 2::9, :, 3] = 1e30, -1e30, -100.0
    weights = randn(2, width, seed=2, dtype=dtype).unbind()
    return [randn(batch, tokens, heads, width, dtype=dtype), local, gate, *weights]


def formula(*tensors, eps=EPS, act=False):
    return references.locality_gate(*tensors, eps, act)


def compare(inputs, act, backend, bound):
    grad = randn(*inputs[0].shape, seed=3, dtype=inputs[0].dtype)
    found = differentiated(lambda *t: locality_gate(*t, act=act, backend=backend), inputs, grad)
    assert found[0].is_contiguous()
    assert [x.dtype for x in found] == [x.dtype for x in (inputs[0], *inputs)]
    check(found, truth(lambda *t: formula(*t, act=act), inputs, grad), bound)


def both_passes(*inputs):
    """Output and gradients by the kernels; the last input is the output's gradient."""
    *inputs, grad = inputs
    return [gate_forward(*inputs, EPS, True), *gate_backward(grad, *inputs, EPS, True)]


@ACT
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_output_and_gradients(backend, shape, act):
    compare(make_inputs(*shape), act, backend, bound=2e-6)


@ACT
@pytest.mark.parametrize("backend", BACKENDS)
def test_in_double(backend, act, double_kernels):
    if backend == "triton":  # as no dtype of the public function is float64 there
        inputs, grad = make_inputs(2, 17, 1, 5, dtype=torch.float64), randn(2, 17, 1, 5).double()
        operator = torch.ops.vig_mm.locality_gate
        found = differentiated(lambda *t: operator(*t, EPS, act, backend), inputs, grad)
        check(found, truth(lambda *t: formula(*t, act=act), inputs, grad), 1e-13)
    else:
        compare(make_inputs(*SMALL, dtype=torch.float64), act, backend, 1e-13)


@pytest.mark.parametrize("float32", [(), (3, 4), (1, 3, 4)], ids=["", "weights", "local too"])
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision(backend, dtype, float32):
    """Inside all is float32: what is left is the rounding of the output and of its gradient.

    Some inputs may stay float32, as under autocast; the output is as o."""
    inputs = make_inputs(2, 100, 3, 32, dtype=dtype)
    inputs = [x.float() if i in float32 else x for i, x in enumerate(inputs)]
    compare(inputs, not float32, backend, bound=2 * torch.finfo(dtype).eps)


@ACT
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_with_projection_and_residual(backend, dtype, act):
    """Output and gradients, that of the gate's logits into a part of a joined one."""
    if dtype == torch.float64 and backend == "triton":
        pytest.skip("the kernels take no float64")
    bound = {torch.float64: 1e-14, torch.float32: 6e-6}.get(dtype) or 6 * torch.finfo(dtype).eps
    settings = dict(eps=EPS, act=act, backend=backend)
    for shape, channels, scaled in (((2, 70, 3, 32), 96, True), ((1, 33, 2, 5), 300, False)):
        heads, width = shape[2:]
        inputs = make_inputs(*shape, dtype=dtype)
        weight = randn(channels, heads * width, seed=7, dtype=dtype) / 8
        stream = torch.promote_types(dtype, torch.float32)  # as under autocast
        x, grad = randn(2, *shape[:2], channels, seed=8, dtype=stream)
        scale = torch.tensor([0.0, 1.25], device=DEVICE, dtype=stream) if scaled else None

        factor = 1.0 if scale is None else scale.double()[:, None, None]

        def plain(*t, x=x, factor=factor):
            return x.double() + formula(*t[:5], act=act).flatten(2) @ t[5].mT * factor

        expected, *grads = truth(plain, [*inputs, weight], grad)
        out = gate_projection(*inputs, weight, x, scale, **settings)
        assert out.dtype == x.dtype and rel(out, expected) < bound
        joined = torch.full((*shape[:2], heads * width + 24), torch.nan, device=DEVICE, dtype=dtype)
        dgate = joined[..., 16:-8].unflatten(-1, (heads, width))
        do, dlocal, dbias, *dweights = gate_projection_backward(
            grad, *inputs, weight, scale, dgate, **settings
        )
        assert joined[..., :16].isnan().all() and joined[..., -8:].isnan().all()
        dbias_expected = grads[2].sum((0, 1)).flatten()
        check((do, dlocal, dgate, *dweights, dbias), (*grads, dbias_expected), bound)
    if backend == "triton":
        dgate = torch.empty(*shape[:3], 2 * width, device=DEVICE)[..., ::2]
        with pytest.raises(ValueError, match="dgate has strides"):
            kernels.gate_backward_into(inputs[0], *inputs, None, dgate, EPS, False)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
def test_nan_is_not_lost(dtype):
    """Of the gate, its gradients and the projection behind it."""
    tensors = [t.contiguous() for t in make_inputs(1, 9, 2, 5, dtype=dtype)]
    tensors += [torch.ones(8, 10, device=DEVICE).to(dtype), torch.ones(1, 9, 8, device=DEVICE)]

    def found(*t):
        out = triton_projection.gate_projection(*t, None, EPS, True)
        return *both_passes(*t[:5], torch.ones_like(t[0])), out

    def expected(*t):
        out, *grads = truth(lambda *t: formula(*t, act=True), t[:5], torch.ones_like(t[0]))
        return out, *grads, t[6] + out.flatten(2) @ t[5].mT

    check_nan(found, expected, tensors)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_do_not_matter(backend):
    inputs = make_inputs(2, 40, 3, 16)
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


def test_grids_in_three_dimensions(monkeypatch):
    """As a sequence of more than 65 535 blocks has them, some of which are past its end."""
    inputs = make_inputs(2, 300, 3, 32)
    expected = both_passes(*inputs, inputs[0])
    monkeypatch.setattr(triton_utils, "GRID_LIMIT", 3)
    torch.testing.assert_close(both_passes(*inputs, inputs[0]), expected)


def test_registered_operators():
    inputs, x = make_inputs(*SMALL), torch.randn(2, 17, 96, device=DEVICE)
    leaves = [t.detach().requires_grad_() for t in inputs]
    o, weight, scale = inputs[0], torch.randn(96, 96, device=DEVICE), torch.ones(2, device=DEVICE)
    ops, opcheck = torch.ops.vig_mm, torch.library.opcheck
    for backend in BACKENDS:
        settings = (EPS, True, backend)
        opcheck(ops.locality_gate.default, (*leaves, *settings))
        opcheck(ops.locality_gate_backward.default, (o, *inputs, *settings))
    opcheck(triton_projection.gate_projection, (*inputs, weight, x, scale, EPS, True))
    opcheck(kernels.gate_backward_into, (o, *inputs, scale, o.clone(), EPS, True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch(backend):
    inputs = make_inputs(0, 17, 3, 32)
    out, *grads = differentiated(lambda *t: locality_gate(*t, backend=backend), inputs, inputs[0])
    assert [x.shape for x in (out, *grads)] == [x.shape for x in (inputs[0], *inputs)]
    assert not any(x.any() for x in grads)


@pytest.mark.parametrize(
    "name, change, error, words",
    [
        ("o", lambda x: x[0], ValueError, ["[B, N, H, width]", "(17, 3, 32)"]),
        ("o", lambda x: x[:, :, :0], ValueError, ["heads >= 1"]),
        ("local", lambda x: x[:, :5], ValueError, ["(2, 17, 3, 32)", "(2, 5, 3, 32)"]),
        ("local", lambda x: None, TypeError, ["tensor", "NoneType"]),
        ("gate", lambda x: x[..., :3], ValueError, ["(2, 17, 3, 3)"]),
        ("gate", lambda x: x.long(), TypeError, ["int64"]),
        ("g_weight", lambda x: x[:3], ValueError, ["(32,)", "(3,)"]),
        ("l_weight", lambda x: x[None], ValueError, ["(32,)", "(1, 32)"]),
        ("l_weight", lambda x: x.int(), TypeError, ["int32"]),
        ("l_weight", lambda x: x.to("meta"), ValueError, ["meta", DEVICE]),
    ],
)
def test_bad_input(name, change, error, words):
    inputs = dict(zip(NAMES, make_inputs(*SMALL), strict=True))
    inputs[name] = change(inputs[name])
    with pytest.raises(error) as caught:
        locality_gate(**inputs)
    assert all(word in str(caught.value) for word in (name, *words)), str(caught.value)


def run_mixer(mixer, x, hw, saving=False):
    """Output and gradients of the input and of every parameter."""
    x = x.detach().requires_grad_()
    out = checkpoint(mixer, x, hw, use_reentrant=False) if saving else mixer(x, hw)
    return [out, *torch.autograd.grad(out.float().square().sum(), [x, *mixer.parameters()])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@ACT
def test_mixer_with_the_kernels_equals_the_mixer_without(act, dtype):
    """The mixer as it runs on a GPU against the form for the CPU, with gradients."""
    torch.manual_seed(0)
    mixer = GatedLinearAttention2d(32, 2, act=act)
    x, hw = torch.randn(2, 35, 32), (5, 7)
    expected = run_mixer(mixer, x, hw)
    mixer.backend = "triton"
    mixer, x = mixer.to(DEVICE), x.to(DEVICE)
    # products of float32 are tf32 on a GPU
    bound = 0.02 if dtype != torch.float32 else 1e-2 if DEVICE == "cuda" else 3e-6
    # else cuDNN may sum up the gradient of the convolution's weight in any order
    with (
        torch.backends.cudnn.flags(deterministic=True),
        torch.autocast(DEVICE, dtype, enabled=dtype != torch.float32),
    ):
        plain, saving = run_mixer(mixer, x, hw), run_mixer(mixer, x, hw, saving=True)
        with torch.no_grad():
            assert rel(mixer(x, hw), plain[0]) < 1e-6
    assert plain[0].dtype == dtype
    check((a.cpu() for a in plain), expected, bound)
    assert all(torch.equal(a, b) for a, b in zip(plain, saving, strict=True))


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

    check(replayed(step), step(), 1e-5)
