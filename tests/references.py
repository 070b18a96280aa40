"""What the operators have to give: their formulas, differentiated by autograd in float64.

Shared by tests of kernels (test_kernels), of random calls (test_fuzz), of half precision
(test_precision) and of the compiled code (emulator).
"""

from collections.abc import Callable, Iterable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vig_mm.kernels.gla.naive import reference_bidirectional_gla

INPUTS = ("q", "k", "v", "gate_f", "gate_b")
# logits made of normal ones: open, closed, and around where an anchored chunk's range ends
GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda z: z,
    "halfway": lambda z: z * 0,
    "open": lambda z: z * 0 + 500,
    "strong": lambda z: z * 300,
    "32 tokens' range": lambda z: z / 5 - 22.5,
    "16 tokens' range": lambda z: z / 5 - 44.5,
    "closed": lambda z: z * 0 - 1000,
    "lowest": lambda z: z * 0 - 3e38,
    "some shut": lambda z: torch.where(z > 1, -torch.inf, z),
    "some open": lambda z: torch.where(z > 1, torch.inf, -1000),
}


def gla_inputs(
    tokens: int,
    width: int = 16,
    v_width: int = 32,
    *,
    batch: int = 1,
    heads: int = 1,
    gates: Callable[[Tensor], Tensor] = GATES["normal"],
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> tuple[list[Tensor], Tensor]:
    """q, k, v, both gates' logits, strided views of two projections as the mixer hands them over;
    and the gradient of the result."""
    g = torch.Generator().manual_seed(0)

    def split(*widths: int, change: Callable[[Tensor], Tensor]) -> list[Tensor]:
        x = change(torch.randn(batch, tokens, heads * sum(widths), generator=g))
        parts = x.to(device, dtype).split([heads * w for w in widths], dim=-1)
        return [part.unflatten(-1, (heads, -1)) for part in parts]

    inputs = split(width, width, v_width, change=GATES["normal"])
    inputs += split(width, width, change=gates)
    return inputs, torch.randn(inputs[2].shape, generator=g).to(device, dtype)


def differentiated(
    function: Callable[..., Tensor], inputs: Sequence[Tensor | None], grad: Tensor
) -> list[Tensor]:
    """A function's output and the gradients of all inputs that there are."""
    inputs = [None if x is None else x.detach().requires_grad_() for x in inputs]
    out = function(*inputs)
    leaves = [x for x in inputs if x is not None]
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


def truth(
    function: Callable[..., Tensor], inputs: Sequence[Tensor | None], grad: Tensor
) -> list[Tensor]:
    """`differentiated` in float64."""
    return differentiated(function, [None if x is None else x.double() for x in inputs], grad)


def gla_truth(inputs: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    """Output and gradients of bidirectional GLA by the recurrence."""
    return truth(reference_bidirectional_gla, inputs, grad)


def norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """LayerNorm; RMSNorm without a bias."""
    if bias is not None:
        return F.layer_norm(x, weight.shape, weight, bias, eps)
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def swiglu(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


def feed_forward(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    w_in: Tensor,
    w_out: Tensor,
    scale: Tensor | None,
    eps: float,
) -> Tensor:
    y = swiglu(norm(x, norm_weight, norm_bias, eps) @ w_in.mT) @ w_out.mT
    return x + (y if scale is None else y * scale.to(y)[:, None, None])


def norm_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    taps: Tensor,
    hw: tuple[int, int],
    act: bool,
    eps: float,
) -> Tensor:
    y = norm(x, weight, bias, eps).unflatten(1, hw).permute(0, 3, 1, 2)
    y = F.conv2d(y, taps, padding=1, groups=len(taps)).permute(0, 2, 3, 1).flatten(1, 2)
    return F.silu(y) if act else y


def locality_gate(
    o: Tensor,
    local: Tensor,
    gate: Tensor,
    g_weight: Tensor,
    l_weight: Tensor,
    eps: float,
    act: bool = False,
) -> Tensor:
    share = gate.sigmoid()
    y = norm(o, g_weight, None, eps) * share + norm(local, l_weight, None, eps) * (-gate).sigmoid()
    return F.silu(y) if act else y


def rel(x: Tensor, reference: Tensor, floor: float = 1e-30) -> float:
    """Relative error of x; of what is below ``floor``, as a share of that."""
    error = (x.detach().double() - reference.double()).norm()
    return (error / reference.norm().clamp_min(floor)).item()


def check(
    found: Iterable[Tensor], expected: Iterable[Tensor], bound: float, floor: float = 1e-30
) -> None:
    """Each result has the right shape and relative error below ``bound``, which NaN is not."""
    for i, (x, y) in enumerate(zip(found, expected, strict=True)):
        assert x.shape == y.shape, i
        assert rel(x, y, floor) < bound, (i, rel(x, y, floor))


def require(backend: str) -> None:
    """Skip a test where the package that a backend needs is missing."""
    pytest.importorskip({"cpu": "numba", "triton": "triton"}.get(backend, "torch"))
