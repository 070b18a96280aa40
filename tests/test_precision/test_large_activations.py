"""Activations up to 1e4: finite forward and backward, in all precisions.

In float16 products of such activations leave its range (65504). The operator's result is float32
then, and the product inside the MLP is held at the end of the range (its kernel's: see
test_kernels/test_feed_forward).
"""

import pytest
import torch
import torch.nn.functional as F
from references import check, differentiated, rel, require
from torch import Tensor

from vig_mm.kernels import bidirectional_gla, locality_gate

pytest.importorskip("mmcv")

from vig_mm.nets import RMSNorm, SwiGLU
from vig_mm.nets.hier_vig import HierBlock
from vig_mm.nets.vig import PlainBlock

LARGE = 1e4
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


def large(*shape: int, seed: int = 0) -> Tensor:
    """Uniform from -LARGE to LARGE."""
    g = torch.Generator().manual_seed(seed)
    return LARGE * (2 * torch.rand(shape, generator=g) - 1)


@DTYPES
@pytest.mark.parametrize("gate", [1.0, LARGE], ids="gates {}".format)
@pytest.mark.parametrize("backend", ["chunked", "cpu", "triton"])
def test_operator(backend, gate, dtype, device):
    """Also its gradients through the norm that follows it, against float64."""
    require(backend)
    inputs = [large(1, 100, 1, width, seed=width + i) for i, width in enumerate((8, 8, 16))]
    inputs += [large(1, 100, 1, 8, seed=seed) * (gate / LARGE) for seed in (1, 2)]
    inputs = [x.to(device, dtype) for x in inputs]

    double, ones = [x.double() for x in inputs], torch.ones(1, 100, 1, 16, device=device)

    def run(*tensors, backend=backend):
        wide = torch.promote_types(tensors[0].dtype, torch.float32)
        return bidirectional_gla(*tensors, backend=backend, out_dtype=wide)

    def normed(*tensors, **options):
        return F.rms_norm(run(*tensors, **options), (16,))

    expected = run(*double, backend="reference")
    assert expected.abs().max() > 1e11
    bound = 2 * torch.finfo(torch.bfloat16).eps if device == "cuda" else 1e-5
    assert rel(run(*inputs), expected) < bound
    _, *found = differentiated(normed, inputs, ones)
    assert all(x.isfinite().all() for x in found)
    # in float16 those of q and k, about 1e-5, are among the subnormal numbers
    if dtype != torch.float16:
        _, *grads = differentiated(lambda *t: normed(*t, backend="reference"), double, ones)
        check(found, grads, max(2 * bound, torch.finfo(dtype).eps), floor=1.0)

    plain = bidirectional_gla(*inputs, backend=backend)
    assert plain.dtype == dtype and not plain.isnan().any()
    assert plain.isfinite().all() or dtype == torch.float16


@DTYPES
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_locality_gate_and_norm(backend, dtype, device):
    require(backend)
    inputs = [large(2, 40, 2, 16, seed=seed) for seed in range(3)] + [torch.ones(16)] * 2
    inputs = [x.to(device, dtype) for x in inputs]
    ones = torch.ones_like(inputs[0])
    found = differentiated(lambda *t: locality_gate(*t, backend=backend), inputs, ones)
    expected = locality_gate(*(x.double() for x in inputs), backend="torch")
    norm = RMSNorm(16).to(device)
    normed = differentiated(norm, inputs[:1], ones)
    assert all(x.isfinite().all() for x in (*found, *normed))
    bound = max(torch.finfo(dtype).eps, 1e-6)
    assert rel(found[0], expected) < bound and normed[0].dtype == dtype
    assert rel(normed[0], F.rms_norm(inputs[0].double(), (16,), eps=norm.eps)) < bound


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
