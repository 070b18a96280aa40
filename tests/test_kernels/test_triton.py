"""The Triton kernels against the float64 recurrence: on a GPU, or interpreted on a CPU."""

import math

import pytest
import torch
from triton_testing import DEVICE, check_nan, rel, surrounded

from vig_mm.kernels import bidirectional_gla, triton_utils
from vig_mm.kernels.gla.triton import launch, triton_backward, triton_forward

# float32 products are tf32 on a GPU and exact in the interpreter
BOUND = 3e-3 if DEVICE == "cuda" else 1e-6
NAMES = ("q", "k", "v", "gate_f", "gate_b")
LENGTHS = [1, 2, 15, 16, 17, 49, 64, 65, 130, 197]
WIDTHS = [(16, 32), (32, 64), (5, 7)]


def make_inputs(tokens, width=16, v_width=32, batch=1, heads=1, scale=1.0, shift=0.0, seed=0):
    """Strided views of two projections, as the mixer hands them over; float64."""
    g = torch.Generator().manual_seed(seed)

    def randn(channels):
        return torch.randn(batch, tokens, channels, generator=g, dtype=torch.float64).to(DEVICE)

    qkv = randn(heads * (2 * width + v_width))
    parts = qkv.split([heads * width, heads * width, heads * v_width], dim=-1)
    gates = (randn(2 * heads * width) * scale + shift).chunk(2, dim=-1)
    return [x.unflatten(-1, (heads, -1)) for x in (*parts, *gates)]


def cast(inputs, dtype=torch.float32):
    """In another dtype, still views of one projection."""
    channels = [x.shape[2] * x.shape[3] for x in inputs]
    parts = torch.cat([x.flatten(2) for x in inputs], dim=-1).to(dtype).split(channels, dim=-1)
    return [part.unflatten(-1, x.shape[2:]) for part, x in zip(parts, inputs, strict=True)]


def expectation(inputs):
    """Output, a gradient for it, and the gradients of the inputs, by the recurrence in float64."""
    leaves = [x.detach().double().requires_grad_() for x in inputs]
    out = bidirectional_gla(*leaves, backend="reference")
    g = torch.Generator().manual_seed(1)
    grad = torch.randn(out.shape, generator=g, dtype=torch.float64).to(DEVICE)
    return out.detach(), grad, torch.autograd.grad(out, leaves, grad)


def check(inputs, dtype=torch.float32, bound=BOUND, floor=1e-2, **options):
    """Compare both passes. Errors count against max(norm, floor): a gate that has hardly any
    effect has a gradient near 0, the difference of large terms."""
    low = cast(inputs, dtype)
    expected, grad, expected_grads = expectation(low)
    out = triton_forward(*low, **options)
    assert out.dtype == dtype and out.is_contiguous() and out.shape == expected.shape
    assert rel(out, expected) < bound
    grads = triton_backward(grad.to(dtype), *low, **options)
    for name, x, low_x, y in zip(NAMES, grads, low, expected_grads, strict=True):
        assert x.dtype == dtype and x.shape == low_x.shape, name
        assert x.isfinite().all(), name
        error = (x.double() - y).norm().item() / max(y.norm().item(), floor)
        assert error < 2 * bound, (name, error)


@pytest.mark.parametrize("width, v_width", WIDTHS)
@pytest.mark.parametrize("tokens", LENGTHS)
def test_forward_and_gradients(tokens, width, v_width):
    check(make_inputs(tokens, width, v_width))


@pytest.mark.parametrize("tokens", [40, 150])
def test_gradients_into_parts_of_joined_ones(tokens):
    """One chunk and several; nothing else is written."""
    inputs = [x.detach().float() for x in make_inputs(tokens, batch=2, heads=3)]
    q, _, v, *_ = inputs
    grad = torch.randn_like(v)
    expected = triton_backward(grad, *inputs)
    widths = [x[0, 0].numel() for x in (q, q, v)]
    room = torch.full((2, tokens, sum(widths) + 24), torch.nan, device=DEVICE)
    *parts, rest = room.split([*widths, 24], dim=-1)
    gates = torch.full((2, tokens, 2 * widths[0]), torch.nan, device=DEVICE).chunk(2, dim=-1)
    into = [x.unflatten(-1, (3, -1)) for x in (*parts, *gates)]
    torch.ops.vig_mm.bidirectional_gla_backward_into(grad, *inputs, *into, "triton")
    assert all(torch.equal(x, y) for x, y in zip(into, expected, strict=True))
    assert rest.isnan().all()
    odd = [torch.empty(2, tokens, 3, 2 * x.shape[-1], device=DEVICE)[..., ::2] for x in inputs]
    with pytest.raises(ValueError, match="cannot write to strides"):
        torch.ops.vig_mm.bidirectional_gla_backward_into(grad, *inputs, *odd, "triton")


def test_batch_and_heads():
    check(make_inputs(70, batch=2, heads=3))


@pytest.mark.parametrize("width, v_width", [(64, 16), (33, 65), (128, 128)])
def test_wide(width, v_width):
    """More key channels than one block, and all that padding does."""
    check(make_inputs(70, width, v_width))


@pytest.mark.parametrize("segments", [1, 2, 3, 4])
def test_segments(segments):
    """However a sequence is cut, the result is the same."""
    inputs = make_inputs(197, heads=2)
    assert launch.make_plan(inputs[0], inputs[2], segments).segments == segments
    check(inputs, segments=segments)


@pytest.mark.parametrize("tokens", [40, 150])
@pytest.mark.parametrize("gate", [-1e30, -500.0, -50.0, -20.0, 0.0, 20.0, 500.0])
def test_any_gate_is_safe(gate, tokens):
    """Fully closed to fully open gates, constant over the sequence."""
    check(make_inputs(tokens, scale=0.0, shift=gate), bound=2 * BOUND, floor=1.0)


@pytest.mark.parametrize("tokens", [60, 150])
@pytest.mark.parametrize(
    "gate", [-21.0, -22.0, -22.5, -44.0, -45.0, -60.0, -100.0, -300.0, -1000.0]
)
def test_around_and_beyond_the_anchored_range(gate, tokens):
    """Logits at which a half of 32 or 16 tokens leaves the range, and far below."""
    check(make_inputs(tokens, scale=0.2, shift=gate), bound=2 * BOUND, floor=1.0)


@pytest.mark.parametrize("shut", [-60.0, -100.0, -1000.0])
@pytest.mark.parametrize("width", [16, 40])
def test_open_and_shut_channels_in_a_chunk(shut, width):
    """Some channels shut for some chunks: these take the recurrence, the others do not."""
    inputs = make_inputs(260, width=width)
    for gate in inputs[3:]:
        gate[:, 70:130, :, ::3] = shut
    inputs[4][:, 200:, :, 5] = shut
    check(inputs, bound=2 * BOUND)


@pytest.mark.parametrize("shift, scale", [(0.0, 1.0), (-20.0, 5.0)])
def test_chunks_of_64(shift, scale, monkeypatch):
    """As bfloat16 has them forward, in float32's precision, in both passes."""
    monkeypatch.setattr(launch, "GRADIENT_CHUNK", 64)
    check(make_inputs(197, heads=2, shift=shift, scale=scale), bound=2 * BOUND)


def test_chunks_of_both_kinds_are_flagged():
    """The flags tell the chunks that leave the range from those that do not."""
    q, k, v, *gates = cast(make_inputs(300, heads=2))
    gates[1][:, 128:192, 1, 3] = -500.0
    plan = launch.make_plan(q, v)
    with triton_utils.device_of(q):
        flags = launch._states(k, v, gates, plan, 1.0).flags
    expected = torch.ones(2, plan.NT, 1, dtype=torch.int32)
    expected[1, 128 // plan.BT : 192 // plan.BT] = 0
    assert torch.equal(flags.cpu(), expected)


def test_states_in_bfloat16(monkeypatch):
    """What bfloat16 inputs keep on a GPU; the interpreter cuts off, up to a unit of 2^-7."""
    monkeypatch.setattr(launch, "state_dtype", lambda dtype: torch.bfloat16)
    check(make_inputs(330, heads=2), bound=2**-8)
    check(make_inputs(330, shift=-60.0, scale=20.0), bound=2**-8)


def test_grids_in_three_dimensions(monkeypatch):
    """As a sequence of more than 65 535 blocks has them, some of which are past its end."""
    monkeypatch.setattr(triton_utils, "GRID_LIMIT", 3)
    check(make_inputs(230, width=40, heads=2))


def test_splits_of_a_projection_are_not_copied():
    inputs = cast(make_inputs(70, batch=2, heads=3))
    assert all(triton_utils.by_tokens(x) is x for x in inputs)
    x = inputs[0]
    assert triton_utils.by_tokens(x[:1, 5:]).data_ptr() == x[:1, 5:].data_ptr()
    for y in (x[:, 5:], x[..., ::2], x.transpose(1, 2).contiguous().transpose(1, 2)):
        copied = triton_utils.by_tokens(y)
        assert copied.data_ptr() != y.data_ptr() and torch.equal(copied, y)


@pytest.mark.parametrize("scale", [50.0, 300.0])
def test_mixed_strong_gates(scale):
    check(make_inputs(150, scale=scale), bound=2 * BOUND)


@pytest.mark.parametrize("closed", [-100.0, -1e5, -3e38])
def test_closed_and_open_gates_side_by_side(closed):
    """A gate that shuts completely must not blur its open neighbours."""
    inputs = make_inputs(150, heads=2)
    g = torch.Generator().manual_seed(2)
    for gate in inputs[3:]:
        gate[torch.rand(gate.shape, generator=g) < 0.1] = closed
    check(inputs)


def test_flip_symmetry():
    """Swapping the gates and flipping the sequence flips the output."""
    q, k, v, gate_f, gate_b = cast(make_inputs(130))
    out = triton_forward(q, k, v, gate_f, gate_b)
    flipped = triton_forward(*(x.flip(1) for x in (q, k, v, gate_b, gate_f)))
    assert rel(flipped.flip(1), out) < BOUND


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    """No worse than the rounding of what is stored (and tf32's): sums and states are float32."""
    check(make_inputs(130), dtype, bound=max(BOUND, torch.finfo(dtype).eps))


def test_gates_of_another_dtype():
    inputs = cast(make_inputs(20), torch.bfloat16)
    inputs[3:] = [x.float() for x in inputs[3:]]
    expected, grad, _ = expectation(inputs)
    assert rel(triton_forward(*inputs), expected) < torch.finfo(torch.bfloat16).eps
    grads = triton_backward(grad.bfloat16(), *inputs)
    assert [x.dtype for x in grads] == [x.dtype for x in inputs]


def test_strides_do_not_matter():
    """Packed, split from a projection, and with the channels outermost."""
    strided = cast(make_inputs(70, heads=2))
    grad = torch.randn(1, 70, 2, 64, device=DEVICE)[..., ::2]
    assert not strided[0].is_contiguous() and not grad.is_contiguous()
    packed = [x.contiguous() for x in strided]
    odd = [x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0) for x in strided]
    out = triton_forward(*packed)
    grads = triton_backward(grad.contiguous(), *packed)
    for inputs in (strided, odd):
        assert torch.equal(triton_forward(*inputs), out)
        for x, y in zip(triton_backward(grad, *inputs), grads, strict=True):
            assert x.is_contiguous() and torch.equal(x, y)
    one = torch.ones((), device=DEVICE)  # what the gradient of a sum looks like
    expanded = triton_backward(one.expand(grad.shape), *packed)
    written_out = triton_backward(torch.ones_like(grad), *packed)
    assert all(torch.equal(x, y) for x, y in zip(expanded, written_out, strict=True))


@pytest.mark.parametrize("tokens", [5, 70])
def test_nothing_outside_the_inputs_is_used(tokens, nan_memory):
    """Tokens, heads and channels around the inputs are NaN, and so is fresh memory."""
    inputs = cast(make_inputs(tokens, width=5, v_width=7))
    grad = torch.ones_like(inputs[2])
    expected = (triton_forward(*inputs), *triton_backward(grad, *inputs))
    poisoned = [surrounded(x) for x in inputs]
    found = (triton_forward(*poisoned), *triton_backward(surrounded(grad), *poisoned))
    for x, y in zip(found, expected, strict=True):
        assert y.isfinite().all() and torch.equal(x, y)


def test_nan_stays_in_its_batch_entry():
    inputs = [x.clone() for x in cast(make_inputs(70, batch=2))]
    clean = triton_forward(*inputs)
    inputs[3][0, 5] = math.nan
    out = triton_forward(*inputs)
    assert out[0].isnan().any()
    assert torch.equal(out[1], clean[1])


@pytest.mark.parametrize(
    "tokens, dtype, which",
    [
        *((20, dtype, None) for dtype in (torch.float32, torch.bfloat16, torch.float16)),
        (70, torch.float32, [3]),  # a gate; the recurrence is slow in the interpreter
        (70, torch.float16, [4]),
    ],
)
def test_nan_is_not_lost(tokens, dtype, which):
    grad = torch.ones(1, tokens, 2, 7, device=DEVICE)

    def found(*inputs):
        return triton_forward(*inputs), *triton_backward(grad.to(dtype), *inputs)

    def expected(*inputs):
        leaves = [x.requires_grad_() for x in inputs]
        out = bidirectional_gla(*leaves, backend="reference")
        return out, *torch.autograd.grad(out, leaves, grad.double())

    inputs = cast(make_inputs(tokens, width=5, v_width=7, heads=2), dtype)
    check_nan(found, expected, [x.contiguous() for x in inputs], which)


def test_behind_the_public_function():
    """Autograd, opcheck and torch.compile of the operator with this backend."""
    leaves = [x.requires_grad_() for x in cast(make_inputs(70))]
    _, grad, expected_grads = expectation(leaves)
    out = bidirectional_gla(*leaves, backend="triton")
    grads = torch.autograd.grad(out, leaves, grad.float())
    for x, y in zip(grads, expected_grads, strict=True):
        assert rel(x, y) < 2 * BOUND
    op, op_backward = (
        torch.ops.vig_mm.bidirectional_gla.default,
        torch.ops.vig_mm.bidirectional_gla_backward.default,
    )
    torch.library.opcheck(op, (*leaves, "triton"), rtol=BOUND, atol=BOUND)
    plain = [x.detach() for x in leaves]
    torch.library.opcheck(op_backward, (grad.float(), *plain, "triton"), rtol=BOUND, atol=BOUND)
    compiled = torch.compile(bidirectional_gla, fullgraph=True, backend="aot_eager", dynamic=True)
    assert torch.equal(compiled(*plain, backend="triton"), out)


def test_empty_batch():
    inputs = cast(make_inputs(5, batch=0))
    assert triton_forward(*inputs).shape == inputs[2].shape
    grads = triton_backward(inputs[2], *inputs)
    assert [x.shape for x in grads] == [x.shape for x in inputs]


@pytest.mark.parametrize("tokens, fast", [(1, False), (3, False), (70, True)])
def test_gradcheck(tokens, fast, double_kernels):
    """Of the operator itself, in one chunk and in two segments (in random directions)."""
    leaves = [x.requires_grad_() for x in make_inputs(tokens, width=2, v_width=3)]

    def operator(*inputs):
        return torch.ops.vig_mm.bidirectional_gla(*inputs, "triton")

    assert torch.autograd.gradcheck(operator, leaves, fast_mode=fast)
    expected = bidirectional_gla(*leaves, backend="reference")
    assert rel(operator(*leaves), expected) < 1e-7  # the factor K^-1/2 / 2 is float32


def test_a_run_of_segments_covers_every_chunk():
    """Plans of the sizes in use: no empty segment, no chunk left out, few more than asked for."""
    for tokens in (1, 16, 64, 65, 196, 3136, 66_800, 200_000):
        for heads in (1, 3, 24, 65_536):
            q = torch.empty(1, tokens, heads, 16, device="meta")
            plan = launch.make_plan(q, q)
            assert plan.BT * (plan.NT - 1) < tokens <= plan.BT * plan.NT
            assert plan.per_segment * (plan.segments - 1) < plan.NT
            assert plan.NT <= plan.per_segment * plan.segments
            assert plan.segments == 1 or (plan.segments - 1) * 2 * heads < launch.MIN_PROGRAMS


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1050, 4200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width, v_width", [(16, 32), (32, 64), (64, 128)])
def test_long(tokens, dtype, width, v_width):
    bound = max(BOUND, torch.finfo(dtype).eps)
    check(make_inputs(tokens, width, v_width, batch=2, heads=3), dtype, bound=bound)


@pytest.mark.gpu
def test_offsets_beyond_32_bits():
    batch, tokens, heads = 35, 20_000, 96
    needed, free = 22 * 2**30, torch.cuda.mem_get_info()[0]
    if free < needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of GPU memory, {free / 2**30:.1f} are free")
    v = torch.randn(1, tokens, heads, 32, dtype=torch.bfloat16, device=DEVICE)
    q = torch.randn(4, 1, tokens, heads, 16, dtype=torch.bfloat16, device=DEVICE)
    inputs = [q[0], q[1], v, q[2], q[3]]
    big = v.repeat(batch, 1, 1, 1)
    assert big.numel() > 2**31
    others = [x.expand(batch, -1, -1, -1) for x in inputs]
    out = triton_forward(others[0], others[1], big, *others[3:])
    assert rel(out[-1:], triton_forward(*inputs)) < 1e-2
