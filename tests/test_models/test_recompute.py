"""Blocks that compute again instead of keeping: as autograd's own, in all the ways they are used.

`backend='torch'` is the reference: modules under plain autograd.
"""

import pytest
import torch
from small_backbones import build
from torch import nn

from vig_mm.nets import GatedLinearAttention2d, attention, ffn
from vig_mm.nets.hier_vig import HierBlock
from vig_mm.nets.vig import PlainBlock

HW = (30, 41)  # more tokens than a block has on a CPU
FAMILIES = ("ViG", "ViG with SiLU", "ViG-H")
BACKBONES = {
    "ViG": dict(depth=2, mixer_act=True, out_indices=(0, 1), drop_path_rate=0.0),
    "HierViG": dict(depths=(1, 1), num_heads=(1, 2), out_indices=(0, 1), drop_path_rate=0.0),
}


def block(family, backend, rate=0.0, dtype=torch.float32):
    torch.manual_seed(0)
    if family == "ViG-H":
        made = HierBlock(32, 2, rate, backend)
    else:
        made = PlainBlock(32, 2, "SiLU" in family, rate, backend)
    for parameter in made.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return made.to(dtype).train()


def tokens(batch=3, dtype=torch.float32):
    g = torch.Generator().manual_seed(1)
    return torch.randn(batch, HW[0] * HW[1], 32, generator=g, dtype=torch.float64).to(dtype)


def rel(x, y):
    return ((x.double() - y.double()).norm() / y.double().norm().clamp_min(1e-30)).item()


def step(module, x):
    """Output, and gradients of x and all parameters, of a loss that is no sum over samples."""
    x = x.detach().requires_grad_()
    torch.manual_seed(5)
    out = module(x, HW)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return [out, *torch.autograd.grad((out * weight).sum(), [x, *module.parameters()])]


def loss_of(maps):
    """With gradients of about one everywhere."""
    weights = (torch.linspace(-1, 1, out[0].numel()).view(out[0].shape) for out in maps)
    return sum((out.float() * w).sum() for out, w in zip(maps, weights, strict=True))


def node(out):
    return type(out.grad_fn).__name__


@pytest.mark.parametrize("rate", [0.0, 0.5])
@pytest.mark.parametrize("family", FAMILIES)
def test_block_equals_autograd_in_double(family, rate):
    x = tokens(batch=5, dtype=torch.float64)
    expected = step(block(family, "torch", rate, torch.float64), x)
    found = step(block(family, None, rate, torch.float64), x)
    assert node(found[0]) == "_FeedForwardBackward" and node(expected[0]) != node(found[0])
    if rate:  # some samples are dropped, and some are not
        kept = (expected[0] - x).flatten(1).abs().amax(1) > 0
        assert kept.any() and not kept.all()
    for a, b in zip(found, expected, strict=True):
        assert rel(a, b) < 1e-13


@pytest.mark.parametrize("how", ["bf16 autocast", "fp16 autocast", "bf16", "fp16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision(family, how):
    """At most twice as far from float64 as plain autograd."""
    dtype = torch.bfloat16 if "bf16" in how else torch.float16
    x = tokens(dtype=dtype)
    expected = step(block(family, "torch", dtype=dtype).double(), x.double())
    errors = []
    for backend in ("torch", None):
        module = block(family, backend, dtype=dtype)
        if "autocast" in how:
            module, x = module.float(), x.float()
        with torch.autocast("cpu", dtype=dtype, enabled="autocast" in how):
            found = step(module, x)  # the backward pass too, as some do
        assert node(found[0]) == "_FeedForwardBackward" or backend == "torch"
        for leaf, grad in zip([x, *module.parameters()], found[1:], strict=True):
            assert grad.dtype == leaf.dtype and grad.isfinite().all()
        assert found[0].dtype == x.dtype
        errors.append([rel(a, b) for a, b in zip(found, expected, strict=True)])
    bound = torch.finfo(dtype).eps
    assert all(b < 2 * a + bound for a, b in zip(*errors, strict=True)), errors


@pytest.mark.parametrize("family", ["ViG", "ViG-H"])
def test_layouts_of_the_input(family):
    """Channels outermost, or a part of something wider."""
    module, x = block(family, None), tokens()
    expected = step(module, x)
    for odd in (x.mT.contiguous().mT, torch.cat([x, x], dim=2)[..., :32]):
        assert not odd.is_contiguous()
        for a, b in zip(step(module, odd), expected, strict=True):
            assert rel(a, b) < 1e-6


@pytest.mark.parametrize("family", ["ViG", "ViG-H"])
def test_some_parameters_frozen(family):
    module, x = block(family, None), tokens()
    expected = step(module, x)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_("mlp" in name)
    out = module(x, HW)  # the input needs no gradient either
    weight = torch.linspace(-1, 1, out.numel()).view(out.shape)
    (out * weight).sum().backward()
    for (name, parameter), b in zip(module.named_parameters(), expected[2:], strict=True):
        assert (parameter.grad is None) == ("mlp" not in name)
        assert parameter.grad is None or rel(parameter.grad, b) < 1e-5
    module.requires_grad_(False)
    assert module(x, HW).grad_fn is None


class Doubled(nn.Linear):
    """A layer of somebody else's."""

    def forward(self, x):
        return 2 * super().forward(x)


class OtherAttention(GatedLinearAttention2d):
    def forward(self, x, hw):
        return 1.5 * super().forward(x, hw)


class Wrapped(nn.Module):
    """As adapters are: the layer inside another module."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x) + x.mean()


class Marked(nn.Parameter):
    """As quantised weights are: a tensor of another type."""


def hook(path):
    def exchange(module):
        module.get_submodule(path).register_forward_hook(lambda m, args, out: out * 1.5)

    return exchange


def wrap(path):
    return lambda module: module.set_submodule(path, Wrapped(module.get_submodule(path)))


def become(path, kind):
    def exchange(module):
        module.get_submodule(path).__class__ = kind

    return exchange


def change(path, **attributes):
    return lambda module: vars(module.get_submodule(path)).update(attributes)


def parametrize(module):
    nn.utils.parametrizations.weight_norm(module.norm2, "weight", dim=None)


def add_bias(module):
    layer = module.op.qkv_proj
    layer.bias = nn.Parameter(torch.ones_like(layer.weight[:, 0]))


def mark(module):
    module.mlp.fc2.weight = Marked(module.mlp.fc2.weight.data)


# what is exchanged in a block, and which of its halves then runs as modules
EXCHANGES = {
    "hook on the attention": (hook("op"), "op"),
    "hook on a projection": (hook("op.g_proj"), "op"),
    "hook on the container of a projection": (hook("op.gk_proj"), "op"),
    "hook on the norm": (hook("norm"), "op"),
    "hook on the MLP": (hook("mlp"), "mlp"),
    "hook on stochastic depth": (hook("drop_path"), "both"),
    "exchanged layer": (become("op.o_proj", Doubled), "op"),
    "another attention": (become("op", OtherAttention), "op"),
    "adapter": (wrap("op.qkv_proj"), "op"),
    "adapter of the MLP": (wrap("mlp.fc1"), "mlp"),
    "norm of a head": (wrap("op.g_norm"), "op"),
    "other convolution": (change("op.in_proj.0", padding=(2, 2), dilation=(2, 2)), "op"),
    "more in a container": (lambda m: m.op.in_proj.append(nn.Tanh()), "op"),
    "a bias where there is none": (add_bias, "op"),
    "another eps": (change("op.l_norm", eps=1e-2), "op"),
    "parametrized": (parametrize, "mlp"),
    "weight of another type": (mark, "mlp"),
}


@pytest.mark.parametrize("what", EXCHANGES)
def test_modules_run_where_operators_would_pass_over_something(what, monkeypatch):
    """The results of all modules, with gradients and without; the other half has its operators."""
    exchange, where = EXCHANGES[what]
    x, ran = tokens(dtype=torch.float64), []
    for name, owner, function in (("op", attention, "_forward"), ("mlp", ffn, "feed_forward")):
        original = getattr(owner, function)

        def note(*args, name=name, original=original, **kwargs):
            ran.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, function, note)
    results = []
    for backend in ("torch", None):
        module = block("ViG-H", backend, dtype=torch.float64)
        exchange(module)
        ran.clear()
        out = step(module, x)
        with torch.no_grad():
            results.append([*out, module(x, HW)])
    for a, b in zip(*results, strict=True):
        assert rel(a, b) < 1e-12
    assert set(ran) == {"op", "mlp"} - ({"op", "mlp"} if where == "both" else {where})


def test_dtypes_that_do_not_fit_are_the_modules_error():
    module = block("ViG-H", None)
    for bad in (tokens().double(), tokens().half()):
        with pytest.raises(RuntimeError, match="dtype|type"):
            module(bad, HW)
    assert module(tokens()[:0], HW).shape == (0, HW[0] * HW[1], 32)


@pytest.mark.parametrize("family", BACKBONES)
def test_compiled_training_step(family):
    """The whole graph, without the functions: the compiler decides what it keeps."""
    backbone = build(family, **BACKBONES[family])
    x = torch.randn(2, 3, 64, 96)
    torch._dynamo.reset()
    compiled = torch.compile(backbone, fullgraph=True, backend="aot_eager")
    results = []
    for model in (compiled, backbone):
        backbone.zero_grad()
        loss_of(model(x)).backward()
        results.append([p.grad.clone() for p in backbone.parameters()])
    for a, b in zip(*results, strict=True):
        assert rel(a, b) < 1e-4


@pytest.mark.parametrize("family", BACKBONES)
@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
def test_backbone_with_and_without(family, autocast):
    """The stem as well; maps that lie channels last come to the same."""
    results = []
    for backend in ("torch", None):
        backbone = build(family, **BACKBONES[family], backend=backend)
        for memory_format in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(2, 3, 80, 96, generator=torch.Generator().manual_seed(2))
            x = x.to(memory_format=memory_format).requires_grad_()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                outs = backbone(x)
            loss = loss_of(outs)
            results.append([*outs, *torch.autograd.grad(loss, [x, *backbone.parameters()])])
    for other in results[1:]:
        for a, b in zip(other, results[0], strict=True):
            assert rel(a, b) < (0.2 if autocast else 1e-4)


def test_what_is_kept_for_the_backward_pass():
    """Of a token C wide: 6.2 C by the mixer and 1 + 2 I / C by the MLP (docs/measurements.md)."""

    def kept(backend):
        sizes = {}

        def pack(x):
            storage = x.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return x

        module, x = block("ViG-H", backend), tokens(1).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            module(x, HW)
        own = {p.untyped_storage().data_ptr() for p in module.parameters()}
        return sum(n for key, n in sizes.items() if key not in own) / (4 * x.numel())

    rank, width = 16 / 32, 2 * 96 / 32  # the MLP is 96 wide
    assert kept(None) == pytest.approx(5 + rank + 1 + width, abs=0.02)
    assert kept("torch") > 1.8 * kept(None)
