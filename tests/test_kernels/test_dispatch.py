"""Which backend runs, and what is said where it is not the fast one."""

import subprocess
import sys
import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from vig_mm.kernels import bidirectional_gla, dispatch, locality_gate, trace_time
from vig_mm.kernels.dispatch import choose_backend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ON_DEVICE = dict(device=DEVICE)
GPU = dict(
    plain="chunked",
    device="cuda",
    capability=(9, 0),
    dtype=torch.bfloat16,
    widths=dict(q=32, v=64),
    exporting=False,
)


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(trace_time, "_said", set())


@pytest.fixture
def gpu_is_cpu(monkeypatch):
    """Without a GPU, CPU tensors are treated as those on one; Triton interprets the kernels."""
    pytest.importorskip("triton")
    monkeypatch.setattr(dispatch, "GPU", DEVICE)


def gla_inputs(width=4, v_width=8, **options):
    sizes = (width, width, v_width, width, width)
    return [torch.randn(2, 5, 1, size, **ON_DEVICE | options) for size in sizes]


def gate_inputs(width=8, **options):
    weights = [torch.ones(width, **ON_DEVICE | options) for _ in range(2)]
    return [torch.randn(2, 5, 1, width, **ON_DEVICE | options) for _ in range(3)] + weights


# function, its inputs, its backend in plain PyTorch
OPERATORS = {
    "bidirectional_gla": (bidirectional_gla, gla_inputs, "chunked"),
    "locality_gate": (locality_gate, gate_inputs, "torch"),
}


@pytest.mark.parametrize(
    "change, name, words",
    [
        (dict(), "triton", None),
        (dict(dtype=torch.float32), "triton", None),
        (dict(capability=None), "triton", None),
        (dict(widths=dict(q=128, v=128)), "triton", None),
        (dict(device="cpu"), "chunked", None),
        (dict(device="xpu"), "chunked", None),
        (dict(exporting=True, dtype=torch.float64), "chunked", None),
        (dict(dtype=torch.float64), "chunked", ["float64", "bfloat16"]),
        (dict(widths=dict(q=32, v=129)), "chunked", ["v is 129 wide", "128"]),
        (dict(capability=(7, 5)), "chunked", ["7.5", "8.0"]),
    ],
)
def test_choice(change, name, words, monkeypatch):
    chosen, reason = choose_backend(**{**GPU, **change})
    assert chosen == name
    assert (reason is None) == (words is None)
    assert all(word in reason for word in words or ())
    monkeypatch.setattr(dispatch, "TRITON_INSTALLED", False)
    chosen, reason = choose_backend(**{**GPU, **change})
    assert chosen == "chunked" and (name == "chunked" or "pip install triton" in reason)


def label(func, args):
    """Name of an operator and its backend; without the default one, as only some torch state it."""
    backends = [x for x in args if isinstance(x, str) and x != "chunked"]
    return " ".join([func._schema.name.removeprefix("vig_mm::"), *backends])


def test_works_without_triton_and_numba():
    """In a process that cannot import them nothing needs them, and nothing is said."""
    code = """
import sys, warnings
sys.modules["triton"] = sys.modules["numba"] = None
warnings.simplefilter("error")
import torch
from vig_mm.kernels import bidirectional_gla, dispatch, locality_gate
x = torch.randn(1, 5, 1, 4)
locality_gate(x, x, x, x[0, 0, 0], x[0, 0, 0])
out = bidirectional_gla(x, x, x, x, x)
assert torch.equal(out, bidirectional_gla(x, x, x, x, x, backend="chunked"))
assert not dispatch.TRITON_INSTALLED and not dispatch.NUMBA_INSTALLED
"""
    subprocess.run([sys.executable, "-c", code], check=True)


class Record(TorchDispatchMode):
    """Notes the operators of this package that are called."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "vig_mm":
            self.calls.append(label(func, args))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "device, dtype, calls",
    [
        ("cuda", torch.float32, ["bidirectional_gla auto", "locality_gate auto"]),
        ("cuda", torch.float16, ["bidirectional_gla auto", "locality_gate auto"]),
        ("cuda", torch.float64, ["bidirectional_gla"]),
        ("cpu", torch.float32, ["bidirectional_gla"]),
    ],
)
def test_devices(device, dtype, calls):
    """Fake tensors have a device without there being one."""
    with warnings.catch_warnings(), FakeTensorMode(), Record() as record:
        warnings.simplefilter("ignore")
        for function, make, _ in OPERATORS.values():
            out = function(*make(device=device, dtype=dtype))
            assert out.shape == (2, 5, 1, 8) and out.device.type == device
        assert record.calls == calls


def graph_calls(module):
    """This package's operators in a graph."""
    nodes = [n for m in module.modules() if hasattr(m, "graph") for n in m.graph.nodes]
    return [label(n.target, n.args) for n in nodes if "vig_mm" in str(n.target)]


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", OPERATORS)
def test_compiled_for_a_gpu(gpu_is_cpu, name, dynamic):
    """torch.compile must not be taken for torch.export."""
    function, make, _ = OPERATORS[name]
    inputs, graphs = make(), []

    def capture(module, inputs):
        graphs.append(module)
        return module

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend=capture, dynamic=dynamic)
    assert torch.equal(compiled(*inputs), function(*inputs, backend="triton"))
    assert graph_calls(graphs[0]) == [f"{name} auto"]


class Module(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", OPERATORS)
def test_exported_from_a_gpu(gpu_is_cpu, name, strict):
    """The graph asks for no Triton kernel; the locality gate is in it as plain operators."""
    function, make, plain = OPERATORS[name]
    inputs = make()
    program = torch.export.export(Module(function), tuple(inputs), strict=strict)
    assert graph_calls(program.graph_module) == [name] * (plain == "chunked")
    assert torch.equal(program.module()(*inputs), function(*inputs, backend=plain))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_traced_from_a_gpu(gpu_is_cpu):
    inputs = gla_inputs()
    traced = torch.jit.trace(Module(bidirectional_gla), inputs, check_trace=False)
    (node,) = traced.graph.findAllNodes("vig_mm::bidirectional_gla")
    assert "chunked" in [value.toIValue() for value in node.inputs()]
    assert torch.equal(traced(*inputs), bidirectional_gla(*inputs, backend="chunked"))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize(
    "name, options, reason",
    [
        ("bidirectional_gla", dict(dtype=torch.float64), "float64"),
        ("bidirectional_gla", dict(v_width=129), "v is 129 wide"),
        ("locality_gate", dict(dtype=torch.float64), "float64"),
        ("locality_gate", dict(width=130), "o is 130 wide"),
    ],
)
def test_one_warning_a_reason(gpu_is_cpu, name, options, reason, compiled):
    """It points at the call."""
    function, make, plain = OPERATORS[name]
    inputs = make(**options)
    if compiled:
        function = torch.compile(function, fullgraph=True, backend="aot_eager")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            function(*inputs)
            torch._dynamo.reset()
    (said,) = [w for w in caught if "vig_mm" in str(w.message)]
    assert all(word in str(said.message) for word in ("slower", reason, f"backend={plain!r}"))
    assert compiled or said.filename == __file__


@pytest.mark.parametrize("name", OPERATORS)
def test_a_backend_that_is_asked_for_says_what_it_cannot_do(name, monkeypatch):
    triton = pytest.importorskip("triton")
    function, make, _ = OPERATORS[name]

    def refused(error, words, backend="triton", **options):
        with pytest.raises(error, match=words):
            function(*make(**options), backend=backend)

    refused(ValueError, "'cuda'; choose one of .*triton", backend="cuda")
    refused(ValueError, "backend='triton'.*float64", dtype=torch.float64)
    refused(ValueError, "backend='triton': [qo] is 200 wide", width=200)
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    refused(ValueError, "need CUDA tensors, got cpu", device="cpu")
    monkeypatch.setattr(dispatch, "TRITON_INSTALLED", False)
    refused(ImportError, "pip install triton")
