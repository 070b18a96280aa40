"""A kernel that fails in the middle of a run gives way to plain PyTorch; errors stay errors."""

import warnings

import pytest
import torch
from references import check
from triton_testing import DEVICE

from vig_mm.kernels import __main__ as command
from vig_mm.kernels import bidirectional_gla, dispatch, locality_gate, trace_time
from vig_mm.nets.vig import PlainBlock

PUBLIC = ("bidirectional_gla", "locality_gate")  # which choose a backend themselves
BOUND = 3e-3 if DEVICE == "cuda" else 2e-6  # a GPU multiplies in tf32
ALL = range(1_000_000)


class Launches:
    """Counts the launches of kernels; those whose number is in ``fails`` raise ``error``."""

    def __init__(self, launch):
        self.launch = launch
        self.made, self.fails, self.error = 0, ALL, RuntimeError("Triton Error [CUDA]: a test")

    def __call__(self, *args, **settings):
        self.made += 1
        if self.made - 1 in self.fails:
            raise self.error
        return self.launch(*args, **settings)


@pytest.fixture
def launches(monkeypatch):
    """All launches raise; CPU tensors are treated as a GPU's, Triton interprets the kernels."""
    monkeypatch.setattr(dispatch, "GPU", DEVICE)
    monkeypatch.setattr(dispatch, "_failed", set())
    monkeypatch.setattr(trace_time, "_said", set())
    if DEVICE == "cuda":
        from triton.runtime.jit import JITFunction as Kernel

        method = "run"
    else:
        from triton.runtime.interpreter import GridExecutor as Kernel

        method = "__call__"
    launches = Launches(getattr(Kernel, method))
    monkeypatch.setattr(Kernel, method, lambda *args, **settings: launches(*args, **settings))
    return launches


@pytest.fixture
def said():
    """The texts of this package's warnings."""
    texts = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_: (
            texts.append(str(message)) if "vig_mm" in str(message) else None
        )
        yield texts


@pytest.mark.parametrize("name", command.OPERATORS)
def test_any_launch_fails(name, launches, said, nan_memory):
    """All, and one after the other: what is half written is written again, others still launch."""
    function, plain, shapes = command.OPERATORS[name]
    tensors = command.inputs(shapes, DEVICE, torch.float32)
    if name == "bidirectional_gla":  # interpreted slowly
        tensors = [t[:1, :, :1, :8] for t in tensors]
    default = None if name in PUBLIC else dispatch.AUTO
    expected = function(plain, *tensors)

    for _ in range(2):
        check(function(default, *tensors), expected, BOUND)
    (text,) = said
    words = ("Triton Error [CUDA]: a test", name.removesuffix("_wide"), "slower")
    assert all(word in text for word in words)
    with pytest.raises(RuntimeError, match="a test") as caught:
        function("triton", *tensors)
    assert caught.value is launches.error and len(said) == 1

    launches.made, launches.fails = 0, ()
    function("triton", *tensors)
    for number in range(launches.made):
        launches.made, launches.fails = 0, (number,)
        dispatch._failed.clear()
        trace_time._said.clear()
        said.clear()
        check(function(default, *tensors), expected, BOUND)
        assert len(said) == 1 and len(dispatch._failed) == 1


def gate(x, backend=None, weight=None):
    """The locality gate of x ``[B, N, H, D]`` with itself."""
    weight = torch.ones(x.shape[-1], device=DEVICE) if weight is None else weight
    return locality_gate(x, x, x, weight, weight, backend=backend)


def tokens(batch=2, width=16):
    return torch.randn(batch, 3, 2, width, device=DEVICE)


def test_a_failure_is_one_of_an_operator_and_a_shape_class(launches, said):
    x = tokens(5)
    for again in (x, x, x[:4]):
        gate(again)
        assert launches.made == 1  # not tried again
    for other in (x[..., :8].contiguous(), x.half(), x.repeat(4, 1, 1, 1)):
        made = launches.made
        gate(other)
        assert launches.made == made + 1
    bidirectional_gla(x, x, x, x, x)
    assert launches.made == made + 2
    assert len(said) == 1  # one a reason


def test_reasons_are_told_apart(launches, said):
    from triton.runtime.errors import OutOfResources

    gate(tokens())
    launches.error = OutOfResources(114688, 101376, "shared memory")
    gate(tokens(width=32))
    assert len(said) == 2 and "114688" in said[1]


def test_out_of_memory_stays_an_error(launches, said):
    launches.error = torch.OutOfMemoryError("CUDA out of memory")
    x = tokens()
    with pytest.raises(torch.OutOfMemoryError):
        gate(x)
    assert not said and not dispatch._failed
    launches.fails = ()
    check([gate(x)], [gate(x, backend="torch")], BOUND)


def test_an_error_in_the_inputs_stays_an_error(launches, said):
    """What neither form takes: no kernel is blamed."""
    x, weight = tokens(), torch.ones(15, device=DEVICE)
    with pytest.raises(ValueError, match="g_weight must be"):
        gate(x, weight=weight)
    assert launches.made == 0
    with pytest.raises(RuntimeError, match="must match"):
        torch.ops.vig_mm.locality_gate(x, x, x, weight, weight, 1e-6, False, dispatch.AUTO)
    assert launches.made == 1 and not said and not dispatch._failed


def test_a_lost_context_stays_an_error(launches, said, monkeypatch):
    """Every call on a GPU fails after an illegal access: its error, not a warning about Triton."""

    def synchronize(device):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        gate(tokens())
    assert not said and not dispatch._failed


def test_compiled(launches, said):
    x = tokens().requires_grad_()

    def step(function):
        out = function(x)
        return [out, *torch.autograd.grad(out.pow(3).sum(), x)]

    found = step(torch.compile(gate, fullgraph=True, backend="aot_eager"))
    check(found, step(lambda x: gate(x, backend="torch")), BOUND)
    assert len(said) == 1 and launches.made == 2


@pytest.mark.parametrize("channels, heads", [(32, 2), (288, 4)], ids=["fused", "unfused"])
def test_a_block(channels, heads, launches, said):
    """The model's own use of the operators, in training and inference."""
    torch.manual_seed(0)
    hw = (5, 7)
    x = torch.randn(2, 35, channels, device=DEVICE, requires_grad=True)

    def step(backend):
        block.attn.backend = backend
        out = block(x, hw)
        gradients = torch.autograd.grad(out.square().sum(), [x, *block.parameters()])
        with torch.no_grad():
            return [out, *gradients, block(x, hw)]

    block = PlainBlock(channels, heads, True, 0.0, None).to(DEVICE)
    expected = step("torch")
    assert launches.made == 0
    check(step(None), expected, BOUND)
    assert launches.made > 5 and len(said) == 1
    with pytest.raises(RuntimeError, match="a test"):
        step("triton")
