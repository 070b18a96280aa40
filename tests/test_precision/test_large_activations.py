"""Activations up to 1e4: finite forward and backward, in all precisions.

In float16 products of such activations leave its range (65504). The operator's result is float32
then, and the product inside the MLP is held at the end of the range.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vig_mm.kernels import bidirectional_gla, locality_gate

pytest.importorskip("mmcv")

from vig_mm.nets import RMSNorm, SwiGLU
from vig_mm.nets.hier_vig import HierBlock
from vig_mm.nets.vig import PlainBlock

LARGE = 1e4
DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda dtype: str(dtype)[6:]
)


def large(*shape: int, seed: int = 0) -> Tensor:
    """Uniform from -LARGE to LARGE."""
    g = torch.Generator().manual_seed(seed)
    return LARGE * (2 * torch.rand(shape, generator=g) - 1)


def rel(x: Tensor, expected: Tensor) -> float:
    return ((x.double() - expected).norm() / expected.norm()).item()


def available(backend: str) -> str:
    pytest.importorskip({"cpu": "numba", "triton": "triton"}.get(backend, "torch"))
    return backend


@DTYPES
@pytest.mark.parametrize("gate", [1.0, LARGE], ids="gates {}".format)
@pytest.mark.parametrize("backend", ["chunked", "cpu", "triton"])
def test_operator(backend, gate, dtype, device):
    """Also its gradients through the norm that follows it, against float64."""
    available(backend)
    inputs = [large(1, 100, 1, width, seed=width + i) for i, width in enumerate((8, 8, 16))]
    inputs += [large(1, 100, 1, 8, seed=seed) * (gate / LARGE) for seed in (1, 2)]
    leaves = [x.to(device, dtype).requires_grad_() for x in inputs]
    out = bidirectional_gla(*leaves, backend=backend, out_dtype=torch.float32)
    found = torch.autograd.grad(F.rms_norm(out, (16,)).sum(), leaves)
    double = [x.detach().double().requires_grad_() for x in leaves]
    expected = bidirectional_gla(*double, backend="reference")
    grads = torch.autograd.grad(F.rms_norm(expected, (16,)).sum(), double)
    assert expected.abs().max() > 1e11
    bound = 2 * torch.finfo(torch.bfloat16).eps if device == "cuda" else 1e-5
    assert rel(out, expected) < bound
    for x, y in zip(found, grads, strict=True):
        assert x.isfinite().all()
        # in float16 those of q and k, about 1e-5, are among the subnormal numbers
        if dtype != torch.float16:
            assert (x - y).norm() < max(2 * bound, torch.finfo(dtype).eps) * y.norm().clamp(min=1)

    plain = bidirectional_gla(*leaves, backend=backend)
    assert plain.dtype == dtype and not plain.isnan().any()
    assert plain.isfinite().all() or dtype == torch.float16


@DTYPES
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_locality_gate(backend, dtype, device):
    available(backend)
    inputs = [large(2, 40, 2, 16, seed=seed) for seed in range(3)] + [torch.ones(16)] * 2
    leaves = [x.to(device, dtype).requires_grad_() for x in inputs]
    out = locality_gate(*leaves, backend=backend)
    found = torch.autograd.grad(out.float().sum(), leaves)
    double = [x.detach().double().requires_grad_() for x in leaves]
    expected = locality_gate(*double, backend="torch")
    assert rel(out, expected) < max(torch.finfo(dtype).eps, 1e-6)
    assert all(x.isfinite().all() for x in found)


@DTYPES
def test_norm(dtype, device):
    norm = RMSNorm(32).to(device)
    x = large(4, 50, 32).to(device, dtype).requires_grad_()
    y = norm(x)
    expected = F.rms_norm(x.detach().double(), (32,), eps=norm.eps)
    assert y.dtype == dtype and rel(y, expected) < max(torch.finfo(dtype).eps, 1e-6)
    assert torch.autograd.grad(y.float().sum(), x)[0].isfinite().all()


def test_product_in_the_mlp_stays_in_the_range_of_float16(device):
    """It saturates: the right sign, and no gradient where nothing can grow any more."""
    mlp = SwiGLU(8, 8, ("in", "out")).to(device).half()
    seen = []
    mlp.out.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    width = mlp.out.in_features
    with torch.no_grad():
        getattr(mlp, "in").weight.fill_(0.125)
        getattr(mlp, "in").weight[width + 1] *= -1
    x = torch.full((1, 2, 8), LARGE, dtype=torch.float16, device=device)
    x[:, 1] = 1.0
    x.requires_grad_()
    y = mlp(x)
    hidden, limit = seen[0].detach(), torch.finfo(torch.float16).max
    assert (hidden[0, 0, 0], hidden[0, 0, 1]) == (limit, -limit)
    assert hidden[0, 1, :2].tolist() == pytest.approx([0.7311, -0.7311], abs=1e-3)  # as it is
    (grad,) = torch.autograd.grad(y.float().sum(), x)
    assert grad.isfinite().all() and (grad[:, 0] == 0).all() and (grad[:, 1] != 0).any()


def saturated_block(family: str) -> torch.nn.Module:
    """A block whose projections bring queries, keys, values, gates and hidden units to LARGE."""
    torch.manual_seed(0)
    if family == "ViG":
        block = PlainBlock(64, 2, True, 0.0, None)
        mixer, first = block.attn, block.mlp.gate_proj
    else:
        block = HierBlock(64, 2, 0.0, None)
        mixer, first = block.op, block.mlp.fc1
    for layer in block.mlp.children():
        torch.nn.init.trunc_normal_(layer.weight, std=0.02)  # as the backbones draw them
    mixer.draw_weights()

    def scale(module, args, out):
        factor = LARGE / out.abs().max()
        module.weight.mul_(factor)
        if module.bias is not None:
            module.bias.mul_(factor)
        return out * factor

    # both of the gate's, or the weights of one would leave the range of float16
    layers = (mixer.qkv_proj, *mixer.gk_proj, mixer.g_proj, first)
    hooks = [layer.register_forward_hook(scale) for layer in layers]
    with torch.no_grad():
        block(large(2, 12 * 12, 64), (12, 12))
    for hook in hooks:
        hook.remove()
    return block


@pytest.mark.parametrize("how", ["autocast", "cast"])
@DTYPES
@pytest.mark.parametrize("family", ["ViG", "ViG-H"])
def test_block(family, dtype, how, device):
    """Large activations come in, and arise inside."""
    block, x = saturated_block(family).to(device), large(2, 12 * 12, 64).to(device)
    if how == "cast":
        block, x = block.to(dtype), x.to(dtype)
    x.requires_grad_()
    with torch.autocast(device, dtype=dtype, enabled=how == "autocast" and dtype.itemsize == 2):
        out = block(x, (12, 12))
    assert out.dtype == x.dtype and out.isfinite().all()
    for grad in torch.autograd.grad(out.float().mean(), [x, *block.parameters()]):
        assert grad.isfinite().all()
