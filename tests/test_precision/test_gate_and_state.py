"""Gates and states are float32 whatever comes in: only the result is rounded.

Sequences over which a state, a gate or a sum of gates in half precision visibly drifts. That they
would is tested as well, with the recurrence of such a rival.
"""

from collections.abc import Callable

import pytest
import references
import torch
import torch.nn.functional as F
from references import check, differentiated, gla_truth, rel, require
from torch import Tensor

from vig_mm.kernels import GATE_LOGIT_NORMALIZER, bidirectional_gla
from vig_mm.nets import GatedLinearAttention2d, attention

pytest.importorskip("mmcv")

HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
TOKENS = {"chunked": 1500, "cpu": 1500, "triton": 600}  # interpreted on a CPU, the kernels are slow
Round = Callable[[Tensor], Tensor]


def make_inputs(tokens: int, device: str, dtype: torch.dtype) -> list[Tensor]:
    """q, k, v around 1, so that states grow, and gates that forget a sixth of a thousandth a token:
    less than half a step of float16 below 1."""
    g = torch.Generator().manual_seed(0)

    def around(mean: float, deviation: float, width: int) -> Tensor:
        x = mean + deviation * torch.randn(1, tokens, 1, width, generator=g)
        return x.to(device, dtype)

    gates = [around(6.0, 0.3, 8) for _ in range(2)]
    return [around(1.0, 0.2, 8), around(1.0, 0.2, 8), around(1.0, 0.2, 16), *gates]


def recurrence(inputs: list[Tensor], of_gate: Round | None, of_state: Round | None) -> Tensor:
    """The definition in float64, with gates and states rounded in between."""

    def scan(gate: Tensor, order: range) -> Tensor:
        alpha = (F.logsigmoid(gate) / GATE_LOGIT_NORMALIZER).exp()[..., None]
        alpha = of_gate(alpha) if of_gate else alpha
        kv = k[..., None] * v[..., None, :]
        state, outs = torch.zeros_like(kv[:, 0]), {}
        for t in order:
            state = alpha[:, t] * state + kv[:, t]
            state = of_state(state) if of_state else state
            outs[t] = (q[:, t, ..., None] * state).sum(dim=-2)
        return torch.stack([outs[t] for t in range(len(outs))], dim=1)

    q, k, v, gate_f, gate_b = (x.double().cpu() for x in inputs)
    tokens = q.shape[1]
    both = scan(gate_f, range(tokens)) + scan(gate_b, range(tokens)[::-1])
    return both * (0.5 * q.shape[-1] ** -0.5)


def largest_error(out: Tensor, expected: Tensor) -> float:
    """Relative; all that is expected is far from 0."""
    return ((out.cpu().double() - expected) / expected).abs().max().item()


@HALF
@pytest.mark.parametrize("backend", TOKENS)
def test_output_is_that_of_float32_rounded_once(backend, dtype, device):
    require(backend)
    inputs = make_inputs(TOKENS[backend], device, dtype)
    expected = recurrence(inputs, None, None)
    # Triton's interpreter cuts the last bits off; on a GPU its operands are rounded, too
    rounding = torch.finfo(dtype).eps / (1 if backend == "triton" else 2)
    bound = rounding * (4 if device == "cuda" and backend == "triton" else 1) + 1e-5
    out = bidirectional_gla(*inputs, backend=backend)
    assert out.dtype == dtype and largest_error(out, expected) < bound
    with torch.autocast(device, dtype=dtype):
        assert torch.equal(bidirectional_gla(*inputs, backend=backend), out)
    wide = bidirectional_gla(*inputs, backend=backend, out_dtype=torch.float32)
    assert wide.dtype == torch.float32
    assert largest_error(wide, expected) < (1e-5 if device == "cpu" else bound)

    # the same bound refuses the rivals
    def halved(x: Tensor) -> Tensor:
        return x.to(dtype).double()

    for rounded in ((None, halved), (halved, None)):
        assert largest_error(recurrence(inputs, *rounded), expected) > 2 * bound


@HALF
def test_gradients_are_those_of_float32_rounded_once(dtype, device):
    inputs = make_inputs(400, device, dtype)
    grad = torch.ones(1, 400, 1, 16, device=device, dtype=dtype) / 400
    found = differentiated(bidirectional_gla, inputs, grad)
    assert all(x.dtype == dtype for x in found)
    check(found, gla_truth(inputs, grad), torch.finfo(dtype).eps)


@HALF
@pytest.mark.parametrize("how", ["autocast", "cast"])
def test_mixer(how, dtype, device, monkeypatch):
    """In the mixer: the recurrence, and the gate between global and local features.

    What a layer gets is in half precision, and what it returns has been rounded once.
    """
    torch.manual_seed(0)
    mixer, x = GatedLinearAttention2d(32, 2), torch.randn(2, 15 * 20, 32)
    with torch.no_grad():
        mixer.gk_proj[1].bias.fill_(4)
        mixer.l_norm.weight.normal_()
    mixer, x = mixer.to(device), x.to(device)
    seen = {}  # what the mixer hands to its operator and its last projection

    def observe(*inputs: Tensor, **options) -> Tensor:
        seen.update(inputs=inputs, o=bidirectional_gla(*inputs, **options))
        return seen["o"]

    monkeypatch.setattr(attention, "bidirectional_gla", observe)
    mixer.g_proj.register_forward_hook(lambda _, args, out: seen.update(local=args[0], logits=out))
    mixer.o_proj.register_forward_pre_hook(lambda _, args: seen.update(y=args[0]))
    with torch.no_grad(), torch.autocast(device, dtype=dtype, enabled=how == "autocast"):
        mixer, x = (mixer.to(dtype), x.to(dtype)) if how == "cast" else (mixer, x)
        assert mixer(x, (15, 20)).dtype == dtype
    eps = torch.finfo(dtype).eps
    handed = (*seen["inputs"], seen["local"], seen["logits"], seen["y"])
    assert all(t.dtype == dtype for t in handed)
    # sums over many tokens may leave the range of float16
    bound = 1e-5 if dtype == torch.float16 and device == "cpu" else eps
    assert rel(seen["o"].cpu(), recurrence(seen["inputs"], None, None)) < bound

    maps = (seen[name].double().reshape(2, 300, 2, 16) for name in ("o", "local", "logits"))
    weights = mixer.g_norm.weight.double(), mixer.l_norm.weight.double()
    y = references.locality_gate(*maps, *weights, mixer.g_norm.eps).flatten(2)
    assert rel(seen["y"], y) < eps / 2
