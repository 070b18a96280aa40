"""The kernels in machine code against the float64 recurrence; and when they are taken."""

import contextlib
import multiprocessing
import os
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from vig_mm.kernels import bidirectional_gla, cpu, dispatch, locality_gate, trace_time
from vig_mm.kernels.gla.naive import reference_bidirectional_gla

pytest.importorskip("numba")
pytestmark = pytest.mark.skipif(cpu.problem() is not None, reason=str(cpu.problem()))

ONE, TWO_SEGMENTS, HALVES = (1, 0), (2, 0), (2, 1)  # plans
NAMES = ("out", "dq", "dk", "dv", "dgate_f", "dgate_b")


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def many_threads(monkeypatch):
    """For the smallest call, too."""
    from vig_mm.kernels.cpu import launch

    monkeypatch.setattr(launch, "WORK", 1)


def make(size, dtype=torch.float32, gates=lambda z: z, seed=0):
    """q, k, v, both gates as parts of two projections, and the gradient of the result."""
    batch, tokens, heads, width, v_width = size
    g = torch.Generator().manual_seed(seed)

    def parts(*widths):
        x = torch.randn(batch, tokens, heads * sum(widths) + 3, generator=g)
        split = x.split([heads * w for w in widths] + [3], dim=-1)[:-1]
        return [y.to(dtype).unflatten(-1, (heads, -1)) for y in split]

    q, k, v = parts(width, width, v_width)
    gate_f, gate_b = (gates(z.float()).to(dtype) for z in parts(width, width))
    return [q, k, v, gate_f, gate_b], torch.randn(v.shape, generator=g).to(dtype)


def truth(inputs, grad):
    leaves = [x.detach().double().requires_grad_() for x in inputs]
    out = reference_bidirectional_gla(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.double())]


def results(inputs, grad, plan=None):
    """Of the kernels themselves."""
    from vig_mm.kernels.cpu.launch import run

    out = torch.empty(grad.shape, dtype=grad.dtype)
    grads = tuple(torch.empty_like(x) for x in inputs)
    run(tuple(inputs), (out,), plan)
    run((*inputs, grad), grads, plan and (plan[0], 0))
    return [out, *grads]


def error(x, expected, floor=1e-30):
    return ((x.double() - expected).norm() / expected.norm().clamp_min(floor)).item()


SIZES = [
    (1, 1, 1, 1, 1),
    (2, 15, 2, 16, 32),
    (1, 16, 3, 32, 64),
    (1, 17, 1, 5, 7),
    (3, 130, 1, 24, 40),
    (1, 300, 2, 16, 32),
    (1, 129, 1, 128, 128),
]


@pytest.mark.parametrize("plan", [None, ONE, TWO_SEGMENTS, (7, 0), HALVES], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_float32(size, plan, many_threads):
    if plan == HALVES and size[1] <= 16:
        pytest.skip("one block has no halves")
    inputs, grad = make(size)
    for name, x, y in zip(NAMES, results(inputs, grad, plan), truth(inputs, grad), strict=True):
        # of one token the gates have no effect: their gradients are rounding beside the others
        assert error(x, y, 1e-2) < (2e-6 if "gate" in name else 5e-7), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("plan", [ONE, TWO_SEGMENTS, HALVES], ids=str)
def test_half_precision(dtype, plan, many_threads):
    """Rounded once: float32 inside. Also beside others in one call."""
    for size in SIZES[3 if plan == HALVES else 0 :]:
        inputs, grad = make(size, dtype)
        for mixed in (inputs, [*inputs[:3], *(x.float() for x in inputs[3:])]):
            expected = truth(mixed, grad)
            for x, y in zip(results(mixed, grad, plan), expected, strict=True):
                # float16's subnormal numbers have few digits
                assert error(x, y, 1e-2) < torch.finfo(dtype).eps / 2


@pytest.mark.parametrize("openmp", [True, False], ids=["openmp", "python"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_threads(count, openmp, threads, many_threads, monkeypatch):
    """More of them than heads and directions, too; results differ by rounding alone."""
    from vig_mm.kernels.cpu import launch

    threads(count)
    used = []
    if openmp:
        run = launch.openmp()
        monkeypatch.setattr(launch, "openmp", lambda: lambda *x: (used.append(x[2]), run(*x)))
    else:
        monkeypatch.setattr(launch, "openmp", lambda: None)
    for size in ((1, 700, 1, 16, 32), (1, 70, 3, 16, 32), (2, 20, 2, 8, 8)):
        inputs, grad = make(size)
        for x, y in zip(results(inputs, grad), truth(inputs, grad), strict=True):
            assert error(x, y, 1e-2) < 2e-6
    assert bool(used) is (openmp and count > 1) and max(used, default=1) <= count


@pytest.mark.parametrize("plan", [ONE, (3, 0), HALVES], ids=str)
@pytest.mark.parametrize(
    "gates",
    [
        lambda z: z * 0 - 1000, lambda z: z * 0 - 3e38, lambda z: z * 0 - torch.inf,
        lambda z: z * 0 + torch.inf, lambda z: z * 0 + 20, lambda z: z * 30 - 45,
        lambda z: z * 300, lambda z: torch.where(z > 1, -torch.inf, z),
        lambda z: torch.where(z > 1, torch.inf, -1000),
    ],
)  # fmt: skip
def test_extreme_gates(gates, plan, many_threads):
    """Gradients of closed gates are measured against the others' size."""
    inputs, grad = make((1, 150, 2, 16, 32), gates=gates)
    for name, x, y in zip(NAMES, results(inputs, grad, plan), truth(inputs, grad), strict=True):
        assert x.isfinite().all(), name
        assert error(x, y, 1.0) < (5e-6 if "gate" in name else 5e-7), name


def test_gates_near_one_over_many_tokens():
    """What rounding takes from each gate is not lost: 65536 errors of one sign would be 1e-3."""
    inputs, grad = make((1, 65536, 1, 4, 8), gates=lambda z: z * 0 + 10)
    expected = bidirectional_gla(*(x.double() for x in inputs), backend="chunked")
    assert error(bidirectional_gla(*inputs, backend="cpu"), expected) < 1e-5


def test_alpha_and_its_slope():
    """The polynomials, logit by logit: out = alpha / 2 where a token reads the one before."""
    z = torch.cat([torch.linspace(-1390, 40, 20000), torch.linspace(-40, 20, 20000)])
    q = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1).expand(len(z), 2, 1, 1)
    k = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(len(z), 2, 1, 1)
    gates = z.view(-1, 1, 1, 1).expand(-1, 2, 1, 1).contiguous()
    out, *_, slope, _ = results([q, k, torch.ones_like(q), gates, gates], torch.ones_like(q))
    z = z.double()
    log_alpha = torch.nn.functional.logsigmoid(z) / 16
    bound = 1e-7 * (1 + log_alpha.abs())
    assert ((2 * out[:, 1].flatten().double() / log_alpha.exp() - 1).abs() < bound).all()
    expected = log_alpha.exp() * torch.sigmoid(-z) / 16
    found, normal = 2 * slope[:, 1].flatten().double(), expected > 1e-37
    bound += 4e-7 + 1e-7 * z.abs()
    assert ((found / expected - 1).abs() < bound)[normal].all()
    assert (found[~normal] < 1.1e-37).all()


def test_nan_and_inf(many_threads):
    """A gate that is NaN: the output from there on, in one head and batch entry, no other."""
    (q, k, v, gate_f, gate_b), grad = make((2, 100, 2, 16, 32))
    clean = results([q, k, v, gate_f, gate_b], grad)
    gate_f = gate_f.clone()
    gate_f[0, 40, 1, 3] = torch.nan
    for plan in (ONE, TWO_SEGMENTS, HALVES):
        broken = results([q, k, v, gate_f, gate_b], grad, plan)
        out, dv, dgate_f = broken[0], broken[3], broken[4]
        assert out[0, 40:, 1].isnan().all() and not out[0, :40].isnan().any()
        assert dv[0, :40, 1].isnan().all() and dgate_f[0, 40, 1, 3].isnan()
        assert all(not x[1].isnan().any() and not x[:, :, 0].isnan().any() for x in broken)
        assert all(error(x[1], y[1].double()) < 1e-6 for x, y in zip(broken, clean, strict=True))
    v = v.clone()
    v[0, 50, 0, 7] = torch.inf
    out = results([q, k, v, gate_b, gate_b], grad)[0]
    assert not out[0, :, 0, 7].isfinite().any() and out[0, :, 0, :7].isfinite().all()


def test_half_precision_is_rounded_as_torch_does():
    x = torch.randn(1, 1, 1, 4000) * torch.logspace(-36, 36, 4000)
    x[..., :3] = torch.tensor([torch.inf, -torch.inf, torch.nan])
    one = torch.ones(1, 1, 1, 16)
    for dtype in (torch.bfloat16, torch.float16):
        out = torch.empty(x.shape, dtype=dtype)
        cpu.cpu_forward(one, one / 4, x, one, one, out=out)  # x again
        torch.testing.assert_close(out, x.to(dtype), rtol=0, atol=0, equal_nan=True)


def test_memory_in_between_is_left_alone(many_threads):
    """Results go into parts of a packed tensor; any strides are read, also of copied dimensions."""
    (q, k, v, gate_f, gate_b), grad = make((2, 60, 3, 16, 32))
    inputs = [
        q, k[:, :, :1].expand_as(k), v.transpose(1, 3).contiguous().transpose(1, 3),
        gate_f, gate_b[:1].expand_as(gate_b),
    ]  # fmt: skip
    expected = truth([x.contiguous() for x in inputs], grad)
    for plan in (ONE, TWO_SEGMENTS, HALVES):
        packed = torch.full((2, 60, 3 * 96 + 5), 7.0)
        *parts, rest = packed.split([48, 48, 96, 48, 48, 5], dim=-1)
        grads = [x.unflatten(-1, (3, -1)) for x in parts]
        torch.ops.vig_mm.bidirectional_gla_backward_into(grad, *inputs, *grads, "cpu")
        assert (rest == 7).all()
        found = [results(inputs, grad, plan)[0], *grads]
        assert all(error(x, y) < 2e-6 for x, y in zip(found, expected, strict=True))


def test_scratch_memory_is_written_before_it_is_read(monkeypatch, many_threads):
    from vig_mm.kernels.cpu import launch

    def nan(size):
        return contextlib.nullcontext(torch.full((size,), 0xFF, dtype=torch.uint8))

    monkeypatch.setattr(launch, "scratch_memory", nan)
    for size in ((1, 100, 2, 5, 7), (1, 17, 1, 16, 32)):
        inputs, grad = make(size)
        for plan in (ONE, TWO_SEGMENTS, HALVES):
            assert all(x.isfinite().all() for x in results(inputs, grad, plan))


def test_empty_batch_and_other_dtypes():
    inputs, grad = make((0, 5, 2, 4, 8))
    assert [x.shape for x in results(inputs, grad)] == [x.shape for x in (grad, *inputs)]
    inputs, grad = make((1, 50, 2, 4, 8))
    expected = truth(inputs, grad)
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = bidirectional_gla(*leaves, backend="cpu", out_dtype=torch.float64)
    out.backward(grad.double())
    found = [out.detach(), *(x.grad for x in leaves)]
    assert out.dtype == torch.float64 and leaves[0].grad.dtype == torch.float32
    assert all(error(x, y) < 2e-6 for x, y in zip(found, expected, strict=True))


def test_opcheck():
    inputs, grad = make((1, 40, 2, 4, 8))
    leaves = [x.detach().requires_grad_() for x in inputs]
    torch.library.opcheck(torch.ops.vig_mm.bidirectional_gla.default, (*leaves, "cpu"))
    backward = torch.ops.vig_mm.bidirectional_gla_backward.default
    torch.library.opcheck(backward, (grad, *inputs, "cpu"))


@pytest.mark.parametrize("act", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_locality_gate(dtype, act):
    for batch, tokens, heads, width in ((2, 131, 3, 32), (1, 1, 1, 5), (0, 4, 2, 16)):
        o, local, gate = (
            torch.randn(3, batch, tokens, heads * width + 3).to(dtype)[..., :-3].unbind()
        )
        inputs = [x.unflatten(-1, (heads, -1)) for x in (o, local, gate * 10)]
        inputs += torch.rand(2, width).unbind()
        leaves = [x.detach().requires_grad_() for x in inputs]
        out = locality_gate(*leaves, eps=1e-5, act=act, backend="cpu")
        assert torch.equal(out, locality_gate(*inputs, eps=1e-5, act=act))
        assert out.dtype == dtype and out.is_contiguous()
        exact = [x.detach().double().requires_grad_() for x in inputs]
        expected = locality_gate(*exact, eps=1e-5, act=act)
        grad = torch.randn_like(out)
        found = [out, *torch.autograd.grad(out, leaves, grad)]
        true = [expected, *torch.autograd.grad(expected, exact, grad.double())]
        for x, y in zip(found, true, strict=True):
            bound = torch.finfo(x.dtype).eps
            if x is not out:  # plain PyTorch's, in which much may cancel
                bound += 4e-6
            assert error(x.detach(), y.detach(), grad.norm().item() or 1.0) < bound


def chosen(inputs):
    return dispatch.select_backend(
        None, ("chunked", "cpu", "triton"), "chunked", **dict(zip("qkv", inputs, strict=False))
    )


def test_choice(monkeypatch):
    inputs, _ = make((1, 20, 2, 4, 8))
    assert chosen(inputs) == "cpu"
    assert chosen([x.bfloat16() for x in inputs]) == "cpu"
    assert chosen([x.double() for x in inputs]) == "chunked"
    assert chosen([torch.randn(1, 3, 1, 129)]) == "chunked"
    assert chosen([torch.randn(1, 3, 1, 4, device="meta")]) == "chunked"
    traced = torch.jit.trace(bidirectional_gla, tuple(inputs), check_trace=False)
    assert '"chunked"' in str(traced.graph)
    with torch._subclasses.FakeTensorMode():
        assert chosen([torch.randn(1, 3, 1, 4)]) == "chunked"
    monkeypatch.setattr(dispatch, "NUMBA_INSTALLED", False)
    assert chosen(inputs) == "chunked"
    with pytest.raises(ImportError, match="pip install numba"):
        bidirectional_gla(*inputs, backend="cpu")


def test_what_it_does_not_take(monkeypatch):
    inputs, _ = make((1, 20, 2, 4, 8))
    with pytest.raises(ValueError, match="backend='cpu'.*float64"):
        bidirectional_gla(*(x.double() for x in inputs), backend="cpu")
    with pytest.raises(ValueError, match="q is 129 wide"):
        bidirectional_gla(*make((1, 20, 2, 129, 8))[0], backend="cpu")
    with pytest.raises(ValueError, match="CPU tensors, q is on meta"):
        bidirectional_gla(*(x.to("meta") for x in inputs), backend="cpu")
    monkeypatch.setattr(cpu, "problem", lambda: "a reason")
    monkeypatch.setattr(trace_time, "_said", set())
    with pytest.raises(RuntimeError, match="a reason"):
        bidirectional_gla(*inputs, backend="cpu")
    with pytest.warns(UserWarning, match="a reason.*backend='chunked'") as caught:
        bidirectional_gla(*inputs)
        bidirectional_gla(*inputs)
    assert len(caught) == 1 and caught[0].filename == __file__


def test_compiled_graphs_hold_plain_pytorch():
    inputs, _ = make((1, 20, 2, 4, 8))
    compiled = torch.compile(bidirectional_gla, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs), bidirectional_gla(*inputs, backend="chunked"))


def start(code, **environment):
    """Lines that another process prints."""
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, text=True, capture_output=True
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


def test_where_numba_cannot_compile(tmp_path):
    """Three reasons in turn, each a warning and the other backend."""
    code = """
import sys, warnings, torch
import vig_mm.kernels as kernels
assert "numba" not in sys.modules
from vig_mm.kernels import cpu
from vig_mm.kernels import trace_time
import numba
from pathlib import Path
x = torch.randn(1, 5, 1, 4)
def call():
    cpu.problem.cache_clear(), trace_time._said.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        out = kernels.bidirectional_gla(x, x, x, x, x)
    assert torch.equal(out, kernels.bidirectional_gla(x, x, x, x, x, backend="chunked"))
    (warning,) = caught
    return str(warning.message)
assert "NUMBA_DISABLE_JIT" in call()
numba.config.DISABLE_JIT = 0
from vig_mm.kernels.cpu import host
host.LANES = 0
assert "this CPU" in call()
host.LANES = host.lanes()
assert "NUMBA_CACHE_DIR" in call()
print("done")
"""
    file = tmp_path / "file"
    file.write_text("")
    assert start(code, NUMBA_DISABLE_JIT="1", NUMBA_CACHE_DIR=str(file / "folder")) == ["done"]


HASWELL = dict(NUMBA_CPU_NAME="haswell", NUMBA_CPU_FEATURES="+avx,+avx2,+fma,+f16c,+bmi,+bmi2")


def test_avx2_is_kept_on_disk(tmp_path):
    """In vectors of eight, compiled by one process and loaded by the next."""
    code = """
import sys, torch
sys.path.insert(0, sys.argv[-1]) if len(sys.argv) > 1 else None
from vig_mm.kernels import bidirectional_gla
from vig_mm.kernels.cpu import host
torch.manual_seed(0)
x = [torch.randn(2, 50, 2, w).bfloat16().float().requires_grad_() for w in (5, 5, 9, 5, 5)]
def gradients(dtype, backend):
    leaves = [y.detach().to(dtype).requires_grad_() for y in x]
    out = bidirectional_gla(*leaves, backend=backend)
    return out, *torch.autograd.grad(out.float().sum(), leaves)
for dtype, bound in ((torch.float32, 2e-6), (torch.bfloat16, 4e-3), (torch.float16, 5e-4)):
    for y, z in zip(gradients(dtype, "cpu"), gradients(torch.float64, "reference")):
        assert (y.double() - z).norm() < bound * z.norm(), dtype
from vig_mm.kernels.cpu.launch import gradient_kernel, output_kernel
codes = output_kernel().code, gradient_kernel().code
print(host.LANES, *(code.cache_hits for code in codes))
"""
    if "avx2" not in __import__("vig_mm.kernels.cpu.host", fromlist=["host"]).features():
        pytest.skip("no AVX2")
    environment = dict(HASWELL, NUMBA_CACHE_DIR=str(tmp_path))
    assert start(code, **environment) == ["8", "0", "0"]
    assert start(code, **environment) == ["8", "1", "1"]
    assert len(list(tmp_path.iterdir())) == 1


class Calls(Dataset):
    def __init__(self, inputs):
        self.inputs = inputs

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return cpu.cpu_forward(*self.inputs)[0]


def forked(inputs, expected, pipe):
    torch.set_num_threads(3)
    pipe.send(error(cpu.cpu_forward(*inputs), expected.double()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forked_processes(many_threads):
    """After threads have been used: workers of a DataLoader, and a bare fork with threads."""
    inputs, _ = make((1, 300, 3, 16, 32))
    expected = cpu.cpu_forward(*inputs)
    for out in DataLoader(Calls(inputs), num_workers=2, multiprocessing_context="fork"):
        assert error(out, expected.double()) < 1e-6
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=forked, args=(inputs, expected, theirs), daemon=True)
    process.start()
    assert ours.poll(60) and ours.recv() < 1e-6
    process.join(60)
    assert process.exitcode == 0


def test_without_numba():
    """Nothing is said where it is missing."""
    code = """
import sys, warnings
sys.modules["numba"] = None
warnings.simplefilter("error")
import torch
from vig_mm.kernels import bidirectional_gla
x = torch.randn(1, 5, 1, 4)
assert torch.equal(bidirectional_gla(x, x, x, x, x),
                   bidirectional_gla(x, x, x, x, x, backend="chunked"))
print("done")
"""
    assert start(code) == ["done"]
