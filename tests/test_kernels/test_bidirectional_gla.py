"""The function of bidirectional GLA, and its chunked form in plain PyTorch.

The other forms' own tests are in test_triton and test_cpu; random calls, in all dtypes, layouts and
with all gates, and empty batches, of every backend in tests/test_fuzz.
"""

import pytest
import torch
from references import (
    GATES,
    INPUTS,
    check,
    differentiated,
    gla_inputs,
    gla_truth,
    rel,
    require,
)
from torch.utils.flop_counter import FlopCounterMode

from vig_mm.kernels import bidirectional_gla

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BOUNDS = {torch.float64: 1e-13, torch.float32: 2e-6}
# tokens, K, V: about a chunk's length, and several groups of chunks
SIZES = [(1, 8, 16), (2, 1, 1), (17, 3, 5), (63, 16, 32), (65, 8, 16), (197, 8, 16), (1050, 8, 16)]


def test_reference_is_the_unrolled_sum():
    """The recurrence equals A v with A written out pair by pair (model.md)."""
    (q, k, v, *gates), _ = gla_inputs(9, 3, 4, dtype=torch.float64)
    log_f, log_b = (torch.nn.functional.logsigmoid(z[0, :, 0]) / 16 for z in gates)
    expected = torch.zeros(9, 4, dtype=torch.float64)
    for t in range(9):
        for s in range(9):
            for between, applies in ((log_f[s + 1 : t + 1], s <= t), (log_b[t:s], s >= t)):
                if applies:
                    decay = between.sum(0).exp()
                    expected[t] += (q[0, t, 0] * k[0, s, 0] * decay).sum() * v[0, s, 0]
    expected *= 3**-0.5 / 2
    assert rel(bidirectional_gla(q, k, v, *gates, backend="reference")[0, :, 0], expected) < 1e-14


def chunked(*inputs):
    return bidirectional_gla(*inputs, backend="chunked")


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_output_and_gradients(size, dtype):
    inputs, grad = gla_inputs(*size, batch=2, heads=2, dtype=dtype)
    # one token: the gates have no effect, their gradients are exactly 0 in theory
    found = differentiated(chunked, inputs, grad)
    check(found, gla_truth(inputs, grad), BOUNDS[dtype], floor=1e-2)


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("tokens", [16, 150])
def test_any_gates(gates, tokens):
    for dtype, bound in ((torch.float64, 1e-11), (torch.float32, 1e-5)):
        inputs, grad = gla_inputs(tokens, 8, 16, heads=2, gates=GATES[gates], dtype=dtype)
        found = differentiated(chunked, inputs, grad)
        check(found, gla_truth(inputs, grad), bound, floor=1.0)


def test_nan_stays_in_its_batch_entry():
    inputs, _ = gla_inputs(70, batch=2)
    clean = chunked(*inputs)
    inputs[3][0, 5] = torch.nan
    out = chunked(*inputs)
    assert out[0].isnan().any() and rel(out[1], clean[1]) < 1e-6


@pytest.mark.parametrize("backend", ["chunked", "cpu", "triton"])
def test_opcheck(backend):
    require(backend)
    device = DEVICE if backend == "triton" else "cpu"
    inputs, grad = gla_inputs(35, 4, 8, device=device)
    leaves = [x.requires_grad_() for x in inputs]
    bounds = dict(rtol=3e-3, atol=3e-3) if device == "cuda" else {}
    ops = torch.ops.vig_mm
    torch.library.opcheck(ops.bidirectional_gla.default, (*leaves, backend), **bounds)
    plain = [x.detach() for x in leaves]
    backward = ops.bidirectional_gla_backward.default
    torch.library.opcheck(backward, (grad, *plain, backend), **bounds)


def test_compile_fullgraph_and_export():
    """Graphs for a CPU hold plain PyTorch."""
    inputs, _ = gla_inputs(70)
    compiled = torch.compile(bidirectional_gla, fullgraph=True, backend="aot_eager", dynamic=True)
    assert torch.equal(compiled(*inputs), chunked(*inputs))

    class Module(torch.nn.Module):
        def forward(self, *args):
            return bidirectional_gla(*args)

    program = torch.export.export(Module(), tuple(inputs))
    assert torch.equal(program.module()(*inputs), chunked(*inputs))


def test_flop_counter_sees_the_operator():
    inputs, _ = gla_inputs(70, 8, 16, batch=2, heads=2)
    leaves = [x.requires_grad_() for x in inputs]
    with FlopCounterMode(display=False) as counter:
        bidirectional_gla(*leaves).sum().backward()
    counts = counter.get_flop_counts()["Global"]
    forward = 8 * 2 * 70 * 2 * 8 * 16
    assert counts[torch.ops.vig_mm.bidirectional_gla] == forward
    assert counts[torch.ops.vig_mm.bidirectional_gla_backward] == 2 * forward


@pytest.mark.parametrize(
    "name, change, error, words",
    [
        ("q", lambda x: x[0], ValueError, ["[B, N, H, width]", "(6, 2, 8)"]),
        ("q", lambda x: 1.0, TypeError, ["tensor", "float"]),
        ("q", lambda x: x[:, :0], ValueError, ["tokens >= 1"]),
        ("k", lambda x: x[:, :5], ValueError, ["(1, 6, 2, 8)", "(1, 5, 2, 8)"]),
        ("v", lambda x: x[:, :, :1], ValueError, ["(1, 6, 1, 16)"]),
        ("gate_b", lambda x: x[..., :3], ValueError, ["(1, 6, 2, 3)"]),
        ("v", lambda x: x[..., :0], ValueError, ["width >= 1"]),
        ("v", lambda x: x.double(), TypeError, ["dtype", "float64"]),
        ("gate_f", lambda x: x.long(), TypeError, ["int64"]),
        ("k", lambda x: x.to("meta"), ValueError, ["meta", "cpu"]),
    ],
)
def test_bad_input(name, change, error, words):
    inputs = dict(zip(INPUTS, gla_inputs(6, 8, 16, heads=2)[0], strict=True))
    inputs[name] = change(inputs[name])
    with pytest.raises(error) as caught:
        bidirectional_gla(**inputs)
    assert all(word in str(caught.value) for word in (name, *words)), str(caught.value)
