"""Gates and states are float32 whatever comes in: only the result is rounded.

Sequences over which a state, a gate or a sum of gates in half precision visibly drifts. That they
would is tested as well, with the recurrence of such a rival.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vig_mm.kernels import GATE_LOGIT_NORMALIZER, bidirectional_gla
from vig_mm.nets import GatedLinearAttention2d, attention

pytest.importorskip("mmcv")

HALF = pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16], ids=lambda dtype: str(dtype)[6:]
)
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


def recurrence(
    q: Tensor, k: Tensor, v: Tensor, gate_f: Tensor, gate_b: Tensor, of_gate: Round, of_state: Round
) -> Tensor:
    """The definition in float64, with gates and states rounded in between."""

    def scan(gate: Tensor, order: range) -> Tensor:
        alpha = of_gate((F.logsigmoid(gate) / GATE_LOGIT_NORMALIZER).exp())[..., None]
        kv = k[..., None] * v[..., None, :]
        state, outs = torch.zeros_like(kv[:, 0]), {}
        for t in order:
            state = of_state(alpha[:, t] * state + kv[:, t])
            outs[t] = (q[:, t, ..., None] * state).sum(dim=-2)
        return torch.stack([outs[t] for t in range(len(outs))], dim=1)

    q, k, v, gate_f, gate_b = (x.double().cpu() for x in (q, k, v, gate_f, gate_b))
    tokens = q.shape[1]
    both = scan(gate_f, range(tokens)) + scan(gate_b, range(tokens)[::-1])
    return both * (0.5 * q.shape[-1] ** -0.5)


def exact(x: Tensor) -> Tensor:
    return x


def largest_error(out: Tensor, expected: Tensor) -> float:
    """Relative; all that is expected is far from 0."""
    return ((out.cpu().double() - expected) / expected).abs().max().item()


@HALF
@pytest.mark.parametrize("backend", TOKENS)
def test_output_is_that_of_float32_rounded_once(backend, dtype, device):
    pytest.importorskip({"cpu": "numba", "triton": "triton"}.get(backend, "torch"))
    inputs = make_inputs(TOKENS[backend], device, dtype)
    expected = recurrence(*inputs, exact, exact)
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

    for rounded in ((exact, halved), (halved, exact)):
        assert largest_error(recurrence(*inputs, *rounded), expected) > 2 * bound


@HALF
def test_gradients_are_those_of_float32_rounded_once(dtype, device):
    inputs = make_inputs(400, device, dtype)
    leaves = [x.detach().requires_grad_() for x in inputs]
    grad = torch.ones(1, 400, 1, 16, device=device, dtype=dtype) / 400
    found = torch.autograd.grad(bidirectional_gla(*leaves), leaves, grad)
    leaves = [x.detach().double().requires_grad_() for x in inputs]
    out = bidirectional_gla(*leaves, backend="reference")
    expected = torch.autograd.grad(out, leaves, grad.double())
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == dtype
        assert (x.double() - y).norm() / y.norm() < torch.finfo(dtype).eps


class Observed:
    """What a mixer hands to its operator and its last projection."""

    def __init__(self, mixer: GatedLinearAttention2d, monkeypatch: pytest.MonkeyPatch) -> None:
        def observe(*inputs: Tensor, **options) -> Tensor:
            self.inputs = inputs
            self.o = bidirectional_gla(*inputs, **options)
            return self.o

        monkeypatch.setattr(attention, "bidirectional_gla", observe)
        mixer.g_proj.register_forward_hook(self.keep_gate)
        mixer.o_proj.register_forward_pre_hook(self.keep_y)

    def keep_gate(self, module, args, logits):
        self.local, self.logits = args[0], logits

    def keep_y(self, module, args):
        (self.y,) = args


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
    observed = Observed(mixer, monkeypatch)
    with torch.no_grad():
        if how == "cast":
            assert mixer.to(dtype)(x.to(dtype), (15, 20)).dtype == dtype
        else:
            with torch.autocast(device, dtype=dtype):
                assert mixer(x, (15, 20)).dtype == dtype
    eps = torch.finfo(dtype).eps
    assert all(t.dtype == dtype for t in (*observed.inputs, observed.local, observed.logits))
    expected = recurrence(*observed.inputs, exact, exact)
    error = (observed.o.cpu().double() - expected).norm() / expected.norm()
    # sums over many tokens may leave the range of float16
    assert error < (1e-5 if dtype == torch.float16 and device == "cpu" else eps)

    o, local, logits = (
        t.double().unflatten(-1, (2, -1)) if t.dim() == 3 else t.double()
        for t in (observed.o, observed.local, observed.logits)
    )
    norms = [
        F.rms_norm(t, (16,), norm.weight.double(), norm.eps)
        for t, norm in ((o, mixer.g_norm), (local, mixer.l_norm))
    ]
    y = torch.lerp(norms[1], norms[0], logits.sigmoid()).flatten(2)
    assert observed.y.dtype == dtype
    assert (observed.y.double() - y).norm() / y.norm() < eps / 2
