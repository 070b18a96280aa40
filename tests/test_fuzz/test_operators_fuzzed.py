"""Whatever the call, all backends agree with the float64 recurrence, entry by entry.

How many examples are drawn, and how to draw more: see conftest.
"""

import math
from dataclasses import dataclass
from importlib.util import find_spec

import pytest
import torch
from error_bounds import expectation, worst
from hypothesis import event, given, note, target
from hypothesis import strategies as st
from operator_cases import DTYPES, Call, Gates, Layout, calls, gates, layouts, times
from references import INPUTS, differentiated
from torch import Tensor

from vig_mm.kernels import bidirectional_gla, locality_gate

interpreted = pytest.mark.skipif(
    torch.cuda.is_available() or find_spec("triton") is None,
    reason="needs Triton's interpreter; tests/test_kernels has looser bounds for a GPU's tf32",
)
needs_numba = pytest.mark.skipif(find_spec("numba") is None, reason="needs numba")
HALF = (torch.bfloat16, torch.float16)
TOKENS = st.one_of(
    st.integers(1, 130),
    st.sampled_from([15, 16, 17, 63, 64, 65, 127, 128, 129, 197, 251, 256]),
    st.integers(1, 600),
)
FEW_TOKENS = st.one_of(st.integers(1, 40), st.integers(1, 140))  # the interpreter is slow
# In chunks, decays are 2^x with |x| up to 80 (float32) or 800 (float64) between a token and its
# anchor: a unit in the last place of x is that many times eps of the decay, and x is itself a sum.
CHUNKED_STEPS = {torch.float32: 2 * 80, torch.float64: 2 * 800}
CHUNKED_FLOOR = {torch.float32: -80 / 3, torch.float64: -800 / 3}
# A state goes through all tokens one by one, but every factor is at most 1 and most are below.
CPU_STEPS = 64
CPU_FLOOR = -126.0
# The kernels' trees of pairs add up to 64 tokens' log-gates, but no factor is above 1.
TRITON_STEPS = 64


def run(call: Call, backend: str) -> tuple[list[Tensor], Tensor, Tensor, dict[str, Tensor]]:
    """Inputs, the output's gradient, the output, and the gradients that the call asks for."""
    inputs, grad = call.tensors()
    leaves = [
        x.detach().requires_grad_(needed) for x, needed in zip(inputs, call.needed, strict=True)
    ]
    out = bidirectional_gla(*leaves, backend=backend, out_dtype=call.out_dtype)
    assert out.shape == inputs[2].shape and out.dtype == grad.dtype and out.is_contiguous()
    asked = {name: x for name, x in zip(INPUTS, leaves, strict=True) if x.requires_grad}
    assert out.requires_grad is bool(asked)
    found = torch.autograd.grad(out, list(asked.values()), grad) if asked else ()
    for x, leaf in zip(found, asked.values(), strict=True):
        assert x.shape == leaf.shape and x.dtype == leaf.dtype
    return inputs, grad, out.detach(), dict(zip(asked, found, strict=True))


def check(call: Call, backend: str, eps: float, steps: float, floor: float) -> None:
    inputs, grad, out, grads = run(call, backend)
    if call.size[0] == 0:
        event("empty batch")
        return
    bounds = zip(("out", *INPUTS), *expectation(inputs, grad, floor), strict=True)
    results = {"out": out, **grads}
    shares = {
        name: worst(results[name], true, scale, added, eps, steps)
        for name, true, scale, added in bounds
        if name in results
    }
    note(f"share of the allowed error: {shares}")
    target(min(max(shares.values()), 1e6), label="share of the allowed error")
    assert max(shares.values()) <= 1, shares


@times(3)
@given(calls(TOKENS, rows=4, width=33))
def test_chunked(call):
    double = torch.float64 in (call.dtype, call.gate_dtype)
    dtype = torch.float64 if double else torch.float32
    check(call, "chunked", torch.finfo(dtype).eps, CHUNKED_STEPS[dtype], CHUNKED_FLOOR[dtype])


@needs_numba
@times(1)
@given(calls(TOKENS, rows=4, width=33, dtypes=(torch.float32, *HALF)))
def test_cpu(call):
    check(call, "cpu", torch.finfo(torch.float32).eps, CPU_STEPS, CPU_FLOOR)


@interpreted
@times(1)
@given(calls(FEW_TOKENS, rows=2, width=40, dtypes=(torch.float32, *HALF)))
def test_triton(call):
    check(call, "triton", torch.finfo(torch.float32).eps, TRITON_STEPS, -math.inf)


@dataclass(frozen=True)
class GateCall:
    """One call of `locality_gate`; size: B, N, H, D; layouts: of o, local, gate, gradient."""

    size: tuple[int, int, int, int]
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype]  # of o, of local and gate, of the weights
    gate: Gates
    scale: float
    eps: float
    act: bool
    layouts: tuple[Layout, ...]
    seed: int

    def tensors(self) -> tuple[list[Tensor], Tensor]:
        """o, local, gate, both weights, and the output's gradient."""
        g = torch.Generator().manual_seed(self.seed)
        o, local, grad = (torch.randn(self.size, generator=g) * self.scale for _ in range(3))
        weights = torch.randn(2, self.size[-1], generator=g)
        gate = self.gate.sample(self.size, g)
        first, second, third = self.dtypes
        o, grad, local, gate = o.to(first), grad.to(first), local.to(second), gate.to(second)
        *inputs, grad = (
            layout.place(x) for x, layout in zip((o, local, gate, grad), self.layouts, strict=True)
        )
        return [*inputs, *weights.to(third)], grad


def gate_calls(
    dtypes: tuple[torch.dtype, ...], tokens: int, width: int
) -> st.SearchStrategy[GateCall]:
    """Args: tokens, width: N and D at most."""
    return st.builds(
        GateCall,
        size=st.tuples(
            st.integers(0, 3),
            st.one_of(st.integers(1, 20), st.integers(1, tokens)),
            st.integers(1, 4),
            st.one_of(st.integers(1, 8), st.integers(1, width)),
        ),
        dtypes=st.tuples(*[st.sampled_from(dtypes)] * 3),
        gate=gates,
        scale=st.sampled_from([1.0, 0.01, 30.0]),
        eps=st.sampled_from([1e-6, 1e-5]),
        act=st.booleans(),
        layouts=st.tuples(*[layouts()] * 4),
        seed=st.integers(0, 2**32 - 1),
    )


def gate_expectation(
    call: GateCall, inputs: list[Tensor], grad: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Output and gradients of the formula in float64, and the same over absolute values.

    The share of one input is 1 minus that of the other, so a share near 0 may be off by a rounding
    of 1: the absolute values are those of open gates.
    """
    leaves = [x.detach().double().requires_grad_() for x in inputs]
    o, local, gate, *weights = leaves
    inverse = [(x.square().mean(-1, keepdim=True) + call.eps).rsqrt() for x in (o, local)]
    normal = [x * r for x, r in zip((o, local), inverse, strict=True)]
    x, y = (n * w for n, w in zip(normal, weights, strict=True))
    share = torch.sigmoid(gate)
    out = x * share + y * torch.sigmoid(-gate)
    result = torch.nn.functional.silu(out) if call.act else out
    grad = grad.double()
    true = [result.detach(), *torch.autograd.grad(result, leaves, grad)]

    with torch.no_grad():
        scale = x.abs() + y.abs()
        # silu' is at most 1.1, and follows an error of its argument at half the rate at most
        slope = grad.abs() * (1.1 * (1 + scale) if call.act else 1.0)
        parts = []
        for n, r, w in zip(normal, inverse, weights, strict=True):
            passed = slope * w.abs()
            parts.append(r * (passed + n.abs() * (passed * n.abs()).mean(-1, keepdim=True)))
        parts.append(slope * scale)
        parts += [(slope * n.abs()).sum((0, 1, 2)) for n in normal]
    return true, [1.1 * scale, *parts]


def check_gate(call: GateCall, backend: str) -> None:
    inputs, grad = call.tensors()
    settings = dict(eps=call.eps, act=call.act, backend=backend)
    out, *grads = found = differentiated(lambda *t: locality_gate(*t, **settings), inputs, grad)
    assert out.shape == call.size and out.dtype == call.dtypes[0] and out.is_contiguous()
    assert [x.shape for x in grads] == [x.shape for x in inputs]
    if call.size[0] == 0:
        assert not any(x.any() for x in found[1:])
        return
    dtype = torch.float64 if torch.float64 in call.dtypes else torch.float32
    eps = torch.finfo(dtype).eps
    shares = {}
    for name, x, true, scale in zip(
        ("out", "o", "local", "gate", "g_weight", "l_weight"),
        found,
        *gate_expectation(call, inputs, grad),
        strict=True,
    ):
        # a sum over D channels, or for the weights over all rows, and a handful of roundings
        steps = 16 + 2 * (x.shape[-1] if x.dim() == 4 else math.prod(call.size[:3])) ** 0.5
        shares[name] = worst(x, true, scale, torch.zeros(()), eps, steps)
    note(f"share of the allowed error: {shares}")
    target(min(max(shares.values()), 1e6), label="share of the allowed error")
    assert max(shares.values()) <= 1, shares


@times(3)
@given(gate_calls(DTYPES, tokens=300, width=128))
def test_locality_gate(call):
    check_gate(call, "torch")


@needs_numba
@times(1)
@given(gate_calls((torch.float32, *HALF), tokens=100, width=64))
def test_locality_gate_cpu(call):
    check_gate(call, "cpu")


@interpreted
@times(1)
@given(gate_calls((torch.float32, *HALF), tokens=20, width=40))
def test_locality_gate_triton(call):
    check_gate(call, "triton")
