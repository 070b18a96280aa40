"""The Triton kernels of bidirectional GLA against the float64 recurrence.

They run on a GPU, or interpreted on a CPU, where test_fuzz calls them at random, with any strides.
What only compiled code shows, such as races and addresses out of bounds, is for tests/emulator, its
size and spills for test_compile.
"""

import pytest
import torch
from references import GATES, check, gla_inputs, gla_truth, rel
from triton_testing import DEVICE, HALF, check_nan

from vig_mm.kernels import triton_utils
from vig_mm.kernels.gla.triton import launch, triton_backward, triton_forward

# float32 products are tf32 on a GPU and exact in the interpreter
BOUND = 3e-3 if DEVICE == "cuda" else 1e-6
# tokens, K, V: about a chunk's length; more key channels than a block, padding
SIZES = [
    (1, 5, 7), (2, 16, 32), (15, 32, 64), (16, 16, 32), (17, 5, 7), (49, 16, 32), (64, 32, 64),
    (65, 16, 32), (130, 5, 7), (197, 16, 32), (70, 64, 16), (70, 33, 65), (70, 128, 128),
]  # fmt: skip


def make(*size, **options):
    return gla_inputs(*size, device=DEVICE, **options)


def results(inputs, grad, **options):
    """Output and gradients."""
    out = triton_forward(*inputs, **options)
    assert out.is_contiguous() and out.dtype == grad.dtype
    return [out, *triton_backward(grad, *inputs, **options)]


def compare(inputs, grad, bound=2 * BOUND, floor=1e-2, **options):
    """Errors count against max(norm, floor): a gate that has hardly any effect has a gradient near
    0, the difference of large terms."""
    found = results(inputs, grad, **options)
    assert [x.dtype for x in found[1:]] == [x.dtype for x in inputs]
    check(found, gla_truth(inputs, grad), bound, floor)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_output_and_gradients(size):
    compare(*make(*size))


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("mixed", [False, True], ids=["", "float32 gates"])
def test_half_precision(dtype, mixed):
    """No worse than the rounding of what is stored (and tf32's): sums and states are float32."""
    inputs, grad = make(130, 16, 8, heads=2, dtype=dtype)
    if mixed:
        inputs[3:] = [x.float() for x in inputs[3:]]
    compare(inputs, grad, bound=2 * max(BOUND, torch.finfo(dtype).eps))


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("tokens", [60, 110])
def test_any_gates(gates, tokens):
    """In one chunk and in several."""
    compare(*make(tokens, 16, 8, gates=GATES[gates]), bound=4 * BOUND, floor=1.0)


@pytest.mark.parametrize("width", [16, 40])
def test_open_and_shut_channels_in_a_chunk(width):
    """Some channels shut for some chunks: these take the recurrence, the others do not."""
    inputs, grad = make(200, width, 8)
    for gate in inputs[3:]:
        gate[:, 70:130, :, ::3] = -100.0
    inputs[4][:, 180:, :, 5] = -1000.0
    compare(inputs, grad)


@pytest.mark.parametrize("segments", [1, 2, 3, 4])
def test_segments(segments):
    """However a sequence is cut, the result is the same."""
    inputs, grad = make(197, 16, 8)
    assert launch.make_plan(inputs[0], inputs[2], segments).segments == segments
    compare(inputs, grad, segments=segments)


@pytest.mark.parametrize(
    "module, name, value, bound",
    [
        # as bfloat16 has them forward, in float32's precision, in both passes
        (launch, "GRADIENT_CHUNK", 64, 4 * BOUND),
        # what bfloat16 inputs keep on a GPU; the interpreter cuts off, up to a unit of 2^-7
        (launch, "state_dtype", lambda dtype: torch.bfloat16, 2**-7),
        # grids of sequences with more than 65 535 blocks, some of which are past the end
        (triton_utils, "GRID_LIMIT", 3, 2 * BOUND),
    ],
    ids=["chunks of 64", "states in bfloat16", "3d grids"],
)
def test_launches_of_other_sizes(module, name, value, bound, monkeypatch):
    monkeypatch.setattr(module, name, value)
    compare(*make(150, 40, 5), bound)
    compare(*make(130, 16, 5, gates=lambda z: z * 20 - 60), bound, floor=1.0)


@pytest.mark.parametrize("tokens", [3, 70])
def test_in_double(tokens, double_kernels):
    """In one chunk and in two segments."""
    compare(*make(tokens, 4, 3, dtype=torch.float64), bound=1e-12)


@pytest.mark.parametrize("tokens", [40, 90])
def test_gradients_into_parts_of_joined_ones(tokens):
    """One chunk and several; nothing else is written."""
    inputs, grad = make(tokens, 16, 8, batch=2, heads=2)
    widths = [x[0, 0].numel() for x in inputs]
    room = torch.full((2, tokens, sum(widths[:3]) + 24), torch.nan, device=DEVICE)
    *parts, rest = room.split([*widths[:3], 24], dim=-1)
    gates = torch.full((2, tokens, 2 * widths[3]), torch.nan, device=DEVICE).chunk(2, dim=-1)
    into = [x.unflatten(-1, (2, -1)) for x in (*parts, *gates)]
    backward_into = torch.ops.vig_mm.bidirectional_gla_backward_into
    backward_into(grad, *inputs, *into, "triton")
    for x, y in zip(into, triton_backward(grad, *inputs), strict=True):
        assert torch.equal(x, y)
    assert rest.isnan().all()
    odd = [torch.empty(2, tokens, 2, 2 * x.shape[-1], device=DEVICE)[..., ::2] for x in inputs]
    with pytest.raises(ValueError, match="cannot write to strides"):
        backward_into(grad, *inputs, *odd, "triton")


def test_chunks_of_both_kinds_are_flagged():
    """The flags tell the chunks that leave the range from those that do not."""
    (q, k, v, *gates), _ = make(300, heads=2)
    gates[1][:, 128:192, 1, 3] = -500.0
    plan = launch.make_plan(q, v)
    with triton_utils.device_of(q):
        flags = launch._states(k, v, gates, plan, 1.0).flags
    expected = torch.ones(2, plan.NT, 1, dtype=torch.int32)
    expected[1, 128 // plan.BT : 192 // plan.BT] = 0
    assert torch.equal(flags.cpu(), expected)


def test_splits_of_a_projection_are_not_copied():
    inputs, _ = make(70, batch=2, heads=3)
    assert all(triton_utils.by_tokens(x) is x for x in inputs)
    x = inputs[0]
    assert triton_utils.by_tokens(x[:1, 5:]).data_ptr() == x[:1, 5:].data_ptr()
    for y in (x[:, 5:], x[..., ::2], x.transpose(1, 2).contiguous().transpose(1, 2)):
        copied = triton_utils.by_tokens(y)
        assert copied.data_ptr() != y.data_ptr() and torch.equal(copied, y)


@pytest.mark.parametrize(
    "tokens, dtype, which",
    [
        *((20, dtype, None) for dtype in (torch.float32, *HALF)),
        (70, torch.float32, [3]),  # a gate; the recurrence is slow in the interpreter
    ],
)
def test_nan_is_not_lost(tokens, dtype, which):
    """And stays in its entry of the batch."""
    inputs, grad = make(tokens, 5, 7, batch=3, dtype=dtype)

    def found(*inputs):
        all_found = results(inputs, grad)
        assert not any(x[::2].isnan().any() for x in all_found)
        return all_found

    check_nan(found, lambda *inputs: gla_truth(inputs, grad), inputs, which)


def test_empty_batch():
    inputs, grad = make(5, batch=0)
    assert [x.shape for x in results(inputs, grad)] == [x.shape for x in (grad, *inputs)]


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
@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("width, v_width", [(16, 32), (32, 64), (64, 128)])
def test_long(tokens, dtype, width, v_width):
    bound = 2 * max(BOUND, torch.finfo(dtype).eps)
    compare(*make(tokens, width, v_width, batch=2, heads=3, dtype=dtype), bound)


@pytest.mark.gpu
def test_offsets_beyond_32_bits():
    batch, tokens, heads = 35, 20_000, 96
    needed, free = 22 * 2**30, torch.cuda.mem_get_info()[0]
    if free < needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of GPU memory, {free / 2**30:.1f} are free")
    (q, k, v, *gates), _ = make(tokens, heads=heads, dtype=torch.bfloat16)
    big = v.repeat(batch, 1, 1, 1)
    assert big.numel() > 2**31
    q_all, k_all, *all_gates = (x.expand(batch, -1, -1, -1) for x in (q, k, *gates))
    out = triton_forward(q_all, k_all, big, *all_gates)
    assert rel(out[-1:], triton_forward(q, k, v, *gates)) < 1e-2
