"""Whatever the call of bidirectional GLA, all backends agree with the float64 recurrence.

Entry by entry, in any layout in memory, with any gates and tokens of very different sizes, and of
the gradients those that are asked for; tests/test_kernels has the sizes at which a kernel's code
changes, and larger bounds. How many examples are drawn, and how to draw more: see conftest.
"""

import math
from importlib.util import find_spec

import pytest
import torch
from error_bounds import expectation, worst
from hypothesis import event, given, note, target
from hypothesis import strategies as st
from operator_cases import Call, calls, times
from references import INPUTS
from torch import Tensor

from vig_mm.kernels import bidirectional_gla

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
    pairs = zip(inputs, call.needed, strict=True)
    leaves = [x.detach().requires_grad_(needed) for x, needed in pairs]
    out = bidirectional_gla(*leaves, backend=backend, out_dtype=call.dtypes[2])
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
    double = torch.float64 in call.dtypes[:2]
    dtype = torch.float64 if double else torch.float32
    check(call, "chunked", torch.finfo(dtype).eps, CHUNKED_STEPS[dtype], CHUNKED_FLOOR[dtype])


@pytest.mark.skipif(find_spec("numba") is None, reason="needs numba")
@times(1)
@given(calls(TOKENS, rows=4, width=33, dtypes=(torch.float32, *HALF)))
def test_cpu(call):
    check(call, "cpu", torch.finfo(torch.float32).eps, CPU_STEPS, CPU_FLOOR)


@pytest.mark.skipif(
    torch.cuda.is_available() or find_spec("triton") is None,
    reason="needs Triton's interpreter; tests/test_kernels has looser bounds for a GPU's tf32",
)
@times(1)
@given(calls(FEW_TOKENS, rows=2, width=40, dtypes=(torch.float32, *HALF)))
def test_triton(call):
    check(call, "triton", torch.finfo(torch.float32).eps, TRITON_STEPS, -math.inf)
