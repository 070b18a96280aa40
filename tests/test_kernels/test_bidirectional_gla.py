"""The operator against its definition, the float64 recurrence."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vig_mm.kernels import BACKENDS, bidirectional_gla

LENGTHS = [1, 2, 15, 16, 17, 49, 63, 64, 65, 196, 197, 1050]
NAMES = ("q", "k", "v", "gate_f", "gate_b")


def make_inputs(
    batch=1, tokens=64, heads=2, width=8, v_width=16, gate_scale=1.0, gate_shift=0.0, seed=0
):
    """Strided views of two projections, as the mixer hands them over; float64."""
    g = torch.Generator().manual_seed(seed)

    def randn(channels):
        return torch.randn(batch, tokens, channels, generator=g, dtype=torch.float64)

    qkv = randn(heads * (2 * width + v_width))
    parts = qkv.split([heads * width, heads * width, heads * v_width], dim=-1)
    gates = (randn(2 * heads * width) * gate_scale + gate_shift).chunk(2, dim=-1)
    return [x.unflatten(-1, (heads, -1)) for x in (*parts, *gates)]


def cast(inputs, dtype):
    return [x.to(dtype) for x in inputs]


def rel(x, reference):
    return ((x.double() - reference).norm() / reference.norm().clamp_min(1e-30)).item()


def gradients(inputs, grad, backend):
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = bidirectional_gla(*leaves, backend=backend)
    return torch.autograd.grad(out, leaves, grad.to(out.dtype))


def test_reference_is_the_unrolled_sum():
    """The recurrence equals A v with A written out pair by pair (model.md)."""
    q, k, v, z_f, z_b = make_inputs(tokens=9, heads=1, width=3, v_width=4)
    log_f, log_b = (torch.nn.functional.logsigmoid(z[0, :, 0]) / 16 for z in (z_f, z_b))
    expected = torch.zeros(9, 4, dtype=torch.float64)
    for t in range(9):
        for s in range(9):
            for between, applies in ((log_f[s + 1 : t + 1], s <= t), (log_b[t:s], s >= t)):
                if applies:
                    decay = between.sum(0).exp()
                    expected[t] += (q[0, t, 0] * k[0, s, 0] * decay).sum() * v[0, s, 0]
    expected *= 3**-0.5 / 2
    assert rel(bidirectional_gla(q, k, v, z_f, z_b, backend="reference")[0, :, 0], expected) < 1e-14


@pytest.mark.parametrize("tokens", LENGTHS)
def test_forward_and_gradients(tokens):
    inputs = make_inputs(batch=2, tokens=tokens)
    expected = bidirectional_gla(*inputs, backend="reference")
    grad = torch.randn_like(expected)
    expected_grads = gradients(inputs, grad, "reference")
    for dtype, bound in ((torch.float64, 1e-13), (torch.float32, 2e-6)):
        low = cast(inputs, dtype)
        assert rel(bidirectional_gla(*low), expected) < bound
        for name, x, y in zip(NAMES, gradients(low, grad, None), expected_grads, strict=True):
            # one token: the gates have no effect, their gradients are exactly 0 in theory
            assert (x.double() - y).norm() < bound * max(y.norm().item(), 1e-2), name


@pytest.mark.parametrize("gate", [-1e30, -500.0, -50.0, -20.0, 0.0, 50.0, 500.0])
@pytest.mark.parametrize("tokens", [16, 150])
def test_any_gate_is_safe(gate, tokens):
    """Fully closed to fully open gates, constant over the sequence."""
    inputs = make_inputs(tokens=tokens, gate_scale=0.0, gate_shift=gate)
    expected = bidirectional_gla(*inputs, backend="reference")
    grad = torch.randn_like(expected)
    expected_grads = gradients(inputs, grad, "reference")
    for dtype, bound in ((torch.float64, 1e-11), (torch.float32, 5e-6)):
        low = cast(inputs, dtype)
        assert rel(bidirectional_gla(*low), expected) < bound
        for name, x, y in zip(NAMES, gradients(low, grad, None), expected_grads, strict=True):
            assert x.isfinite().all(), name
            # gradients of closed gates are tiny: measured against the others' size
            assert (x.double() - y).norm() < bound * max(y.norm().item(), 1.0), name


@pytest.mark.parametrize("scale", [10.0, 50.0, 300.0])
def test_mixed_strong_gates(scale):
    inputs = make_inputs(tokens=150, gate_scale=scale)
    expected = bidirectional_gla(*inputs, backend="reference")
    grad = torch.randn_like(expected)
    low = cast(inputs, torch.float32)
    assert rel(bidirectional_gla(*low), expected) < 2e-6
    for name, x, y in zip(
        NAMES, gradients(low, grad, None), gradients(inputs, grad, "reference"), strict=True
    ):
        assert rel(x, y) < 1e-5, name


@pytest.mark.parametrize("width, v_width", [(1, 1), (3, 5), (16, 32), (32, 64)])
def test_any_width(width, v_width):
    inputs = make_inputs(tokens=130, width=width, v_width=v_width)
    expected = bidirectional_gla(*inputs, backend="reference")
    assert rel(bidirectional_gla(*inputs), expected) < 1e-13


def test_float32_at_4096_tokens():
    inputs = make_inputs(tokens=4096, heads=1, width=16, v_width=32)
    expected = bidirectional_gla(*inputs, backend="reference")
    assert rel(bidirectional_gla(*cast(inputs, torch.float32)), expected) < 1e-5


@pytest.mark.parametrize("tokens", [1, 5, 67])
def test_gradcheck(tokens):
    inputs = make_inputs(tokens=tokens, heads=1, width=2, v_width=3)
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(bidirectional_gla, leaves)


def test_gradcheck_across_chunks():
    """Long enough for several groups of chunks; random directions instead of every entry."""
    inputs = make_inputs(tokens=330, heads=1, width=2, v_width=2)
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(bidirectional_gla, leaves, fast_mode=True)


def test_flip_symmetry():
    """Swapping the gates and flipping the sequence flips the output."""
    q, k, v, z_f, z_b = make_inputs(tokens=197)
    out = bidirectional_gla(q, k, v, z_f, z_b)
    flipped = bidirectional_gla(*(x.flip(1) for x in (q, k, v, z_b, z_f)))
    assert rel(flipped.flip(1), out) < 1e-13


def test_batch_entries_are_independent():
    inputs = make_inputs(batch=3, tokens=100)
    out = bidirectional_gla(*inputs)
    for b in range(3):
        assert rel(bidirectional_gla(*(x[b : b + 1] for x in inputs)), out[b : b + 1]) < 1e-13


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    """State and gates are float32: only the rounding of inputs and output remains."""
    inputs = cast(make_inputs(tokens=500), dtype)
    expected = bidirectional_gla(*cast(inputs, torch.float64), backend="reference")
    out = bidirectional_gla(*inputs)
    assert out.dtype == dtype
    assert rel(out, expected) < torch.finfo(dtype).eps
    for x, name in zip(gradients(inputs, torch.ones_like(out), None), NAMES, strict=True):
        assert x.dtype == dtype and x.isfinite().all(), name


def test_packed_and_strided_inputs_agree_and_output_is_contiguous():
    inputs = make_inputs(tokens=65)
    assert not inputs[0].is_contiguous()
    out = bidirectional_gla(*inputs)
    assert out.is_contiguous()
    assert torch.equal(bidirectional_gla(*(x.contiguous() for x in inputs)), out)


@pytest.mark.parametrize("backend", [None, *BACKENDS])
def test_empty_batch(backend):
    inputs = cast(make_inputs(batch=0), torch.float32)
    assert bidirectional_gla(*inputs, backend=backend).shape == (0, 64, 2, 16)


def test_nan_stays_in_its_batch_entry():
    inputs = [x.clone() for x in make_inputs(batch=2, tokens=70)]
    clean = bidirectional_gla(*inputs)
    inputs[3][0, 5] = float("nan")
    out = bidirectional_gla(*inputs)
    assert out[0].isnan().any()
    assert rel(out[1], clean[1]) < 1e-13


def test_opcheck():
    leaves = [x.detach().requires_grad_() for x in make_inputs(tokens=70)]
    torch.library.opcheck(torch.ops.vig_mm.bidirectional_gla.default, tuple(leaves))
    grad = torch.randn(1, 70, 2, 16, dtype=torch.float64)
    plain = [x.detach() for x in leaves]
    torch.library.opcheck(torch.ops.vig_mm.bidirectional_gla_backward.default, (grad, *plain))


def test_compile_fullgraph_and_export():
    inputs = cast(make_inputs(tokens=70), torch.float32)
    compiled = torch.compile(bidirectional_gla, fullgraph=True, backend="aot_eager", dynamic=True)
    expected = bidirectional_gla(*inputs, backend="chunked")
    assert torch.equal(compiled(*inputs), expected)

    class Module(torch.nn.Module):
        def forward(self, *args):
            return bidirectional_gla(*args)

    program = torch.export.export(Module(), tuple(inputs))
    assert torch.equal(program.module()(*inputs), expected)


def test_flop_counter_sees_the_operator():
    leaves = [x.detach().requires_grad_() for x in make_inputs(batch=2, tokens=70)]
    with FlopCounterMode(display=False) as counter:
        bidirectional_gla(*leaves).sum().backward()
    counts = counter.get_flop_counts()["Global"]
    forward = 8 * 2 * 70 * 2 * 8 * 16
    assert counts[torch.ops.vig_mm.bidirectional_gla] == forward
    assert counts[torch.ops.vig_mm.bidirectional_gla_backward] == 2 * forward


def _replaced(**kwargs):
    named = dict(zip(NAMES, cast(make_inputs(tokens=6), torch.float32), strict=True))
    for name, change in kwargs.items():
        named[name] = change(named[name])
    return named


@pytest.mark.parametrize(
    "change, error, words",
    [
        (dict(q=lambda x: x[0]), ValueError, ["q", "[B, N, H, width]", "(6, 2, 8)"]),
        (dict(q=lambda x: 1.0), TypeError, ["q", "tensor", "float"]),
        (dict(k=lambda x: x[:, :5]), ValueError, ["k", "(1, 6, 2, 8)", "(1, 5, 2, 8)"]),
        (dict(v=lambda x: x[:, :, :1]), ValueError, ["v", "(1, 6, 1, 16)"]),
        (dict(gate_b=lambda x: x[..., :3]), ValueError, ["gate_b", "(1, 6, 2, 3)"]),
        (dict(v=lambda x: x[..., :0]), ValueError, ["v", "width >= 1"]),
        (dict(v=lambda x: x.double()), TypeError, ["dtype", "float64"]),
        (dict(gate_f=lambda x: x.long()), TypeError, ["gate_f", "int64"]),
        (dict(k=lambda x: x.to("meta")), ValueError, ["k", "meta", "cpu"]),
    ],
)
def test_bad_input(change, error, words):
    with pytest.raises(error) as caught:
        bidirectional_gla(**_replaced(**change))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_no_tokens():
    with pytest.raises(ValueError, match="tokens >= 1"):
        bidirectional_gla(*(x[:, :0] for x in make_inputs()))
