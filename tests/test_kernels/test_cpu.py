"""The kernels in machine code against the float64 recurrence; and when they are taken.

Random calls, with any strides, are in tests/test_fuzz.
"""

import contextlib
import multiprocessing
import os
import subprocess
import sys

import pytest
import references
import torch
from references import GATES, check, differentiated, gla_inputs, gla_truth, rel, truth
from torch.utils.data import DataLoader, Dataset

from vig_mm.kernels import bidirectional_gla, cpu, dispatch, locality_gate, trace_time

pytest.importorskip("numba")
pytestmark = pytest.mark.skipif(cpu.problem() is not None, reason=str(cpu.problem()))

ONE, TWO_SEGMENTS, SEVEN, HALVES = (1, 0), (2, 0), (7, 0), (2, 1)
PLANS = pytest.mark.parametrize("plan", [ONE, TWO_SEGMENTS, SEVEN, HALVES], ids=str)
# tokens, K, V; less than a block of 16, and several
SHORT = [(1, 1, 1), (15, 16, 32), (16, 32, 64)]
LONG = [(17, 5, 7), (130, 24, 40), (300, 16, 32), (129, 128, 128)]
SIZES = [*SHORT, *LONG]


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


def results(inputs, grad, plan=None):
    """Output and gradients of the kernels themselves."""
    from vig_mm.kernels.cpu.launch import run

    out = torch.empty(grad.shape, dtype=grad.dtype)
    grads = tuple(torch.empty_like(x) for x in inputs)
    run(tuple(inputs), (out,), plan)
    run((*inputs, grad), grads, plan and (plan[0], 0))
    return [out, *grads]


def compare(inputs, grad, plan=None, bound=5e-7, gate_bound=2e-6, floor=1e-2):
    """Of one token the gates have no effect: their gradients are rounding beside the others."""
    found, expected = results(inputs, grad, plan), gla_truth(inputs, grad)
    check(found[:4], expected[:4], bound, floor)
    check(found[4:], expected[4:], gate_bound, floor)


@PLANS
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_float32(size, plan, many_threads):
    if plan != HALVES or size in LONG:  # one block has no halves
        compare(*gla_inputs(*size, batch=2, heads=2), plan)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@PLANS
def test_half_precision(dtype, plan, many_threads):
    """Rounded once: float32 inside. Also beside others in one call."""
    bound = torch.finfo(dtype).eps / 2  # float16's subnormal numbers have few digits
    for size in LONG if plan == HALVES else SIZES:
        inputs, grad = gla_inputs(*size, heads=2, dtype=dtype)
        compare(inputs, grad, plan, bound, bound)
        compare([*inputs[:3], *(x.float() for x in inputs[3:])], grad, plan, bound, bound)


@PLANS
@pytest.mark.parametrize("gates", GATES)
def test_any_gates(gates, plan, many_threads):
    """Gradients of closed gates are measured against the others' size."""
    inputs, grad = gla_inputs(150, heads=2, gates=GATES[gates])
    compare(inputs, grad, plan, bound=1e-6, gate_bound=5e-6, floor=1.0)


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
    for batch, tokens, heads in ((1, 700, 1), (1, 70, 3), (2, 20, 2)):
        compare(*gla_inputs(tokens, batch=batch, heads=heads))
    assert bool(used) is (openmp and count > 1) and max(used, default=1) <= count


def test_gates_near_one_over_many_tokens():
    """What rounding takes from each gate is not lost: 65536 errors of one sign would be 1e-3."""
    inputs, _ = gla_inputs(65536, 4, 8, gates=lambda z: z * 0 + 10)
    expected = bidirectional_gla(*(x.double() for x in inputs), backend="chunked")
    assert rel(bidirectional_gla(*inputs, backend="cpu"), expected) < 1e-5


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
    (q, k, v, gate_f, gate_b), grad = gla_inputs(100, batch=2, heads=2)
    clean = results([q, k, v, gate_f, gate_b], grad)
    gate_f = gate_f.clone()
    gate_f[0, 40, 1, 3] = torch.nan
    for plan in (ONE, TWO_SEGMENTS, HALVES):
        broken = results([q, k, v, gate_f, gate_b], grad, plan)
        out, dv, dgate_f = broken[0], broken[3], broken[4]
        assert out[0, 40:, 1].isnan().all() and not out[0, :40].isnan().any()
        assert dv[0, :40, 1].isnan().all() and dgate_f[0, 40, 1, 3].isnan()
        assert not any(x[:, :, 0].isnan().any() for x in broken)
        check((x[1] for x in broken), (x[1] for x in clean), 1e-6)
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
    (q, k, v, gate_f, gate_b), grad = gla_inputs(60, batch=2, heads=3)
    inputs = [q, k[:, :, :1].expand_as(k), v.transpose(1, 3).contiguous().transpose(1, 3)]
    inputs += [gate_f, gate_b[:1].expand_as(gate_b)]
    expected = gla_truth([x.contiguous() for x in inputs], grad)
    for plan in (ONE, TWO_SEGMENTS, HALVES):
        packed = torch.full((2, 60, 3 * 96 + 5), 7.0)
        *parts, rest = packed.split([48, 48, 96, 48, 48, 5], dim=-1)
        grads = [x.unflatten(-1, (3, -1)) for x in parts]
        torch.ops.vig_mm.bidirectional_gla_backward_into(grad, *inputs, *grads, "cpu")
        assert (rest == 7).all()
        check([results(inputs, grad, plan)[0], *grads], expected, 2e-6)


def test_scratch_memory_is_written_before_it_is_read(monkeypatch, many_threads):
    from vig_mm.kernels.cpu import launch

    def nan(size):
        return contextlib.nullcontext(torch.full((size,), 0xFF, dtype=torch.uint8))

    monkeypatch.setattr(launch, "scratch_memory", nan)
    for size in ((100, 5, 7), (17, 16, 32)):
        inputs, grad = gla_inputs(*size, heads=2)
        for plan in (ONE, TWO_SEGMENTS, HALVES):
            assert all(x.isfinite().all() for x in results(inputs, grad, plan))


def test_empty_batch():
    inputs, grad = gla_inputs(5, batch=0)
    assert [x.shape for x in results(inputs, grad)] == [x.shape for x in (grad, *inputs)]


@pytest.mark.parametrize("act", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_locality_gate(dtype, act):
    torch.manual_seed(0)
    for batch, tokens, heads, width in ((2, 131, 3, 32), (1, 1, 1, 5)):
        maps = torch.randn(4, batch, tokens, heads * width + 3).to(dtype)[..., :-3]
        o, local, gate, grad = maps.unflatten(-1, (heads, -1))
        inputs = [o, local, gate * 10, *torch.rand(2, width).unbind()]

        def run(*tensors, **backend):
            return locality_gate(*tensors, eps=1e-5, act=act, **backend)

        found = differentiated(lambda *t: run(*t, backend="cpu"), inputs, grad)
        assert torch.equal(found[0], run(*inputs))
        assert found[0].dtype == dtype and found[0].is_contiguous()
        expected = truth(lambda *t: references.locality_gate(*t, 1e-5, act), inputs, grad)
        for x, y in zip(found, expected, strict=True):
            # gradients are plain PyTorch's, in which much may cancel
            bound = 2 * torch.finfo(x.dtype).eps + (0 if x is found[0] else 4e-6)
            assert rel(x, y, floor=grad.float().norm().item()) < bound


def chosen(inputs):
    return dispatch.select_backend(
        None, ("chunked", "cpu", "triton"), "chunked", **dict(zip("qkv", inputs, strict=False))
    )


def test_choice(monkeypatch):
    inputs, _ = gla_inputs(20, 4, 8, heads=2)
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
    inputs, _ = gla_inputs(20, 4, 8, heads=2)
    with pytest.raises(ValueError, match="backend='cpu'.*float64"):
        bidirectional_gla(*(x.double() for x in inputs), backend="cpu")
    with pytest.raises(ValueError, match="q is 129 wide"):
        bidirectional_gla(*gla_inputs(20, 129, 8)[0], backend="cpu")
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
from vig_mm.kernels import cpu, trace_time
import numba
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
import torch
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
    from vig_mm.kernels.cpu import host

    if "avx2" not in host.features():
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
    pipe.send(rel(cpu.cpu_forward(*inputs), expected))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forked_processes(many_threads):
    """After threads have been used: workers of a DataLoader, and a bare fork with threads."""
    inputs, _ = gla_inputs(300, heads=3)
    expected = cpu.cpu_forward(*inputs)
    for out in DataLoader(Calls(inputs), num_workers=2, multiprocessing_context="fork"):
        assert rel(out, expected) < 1e-6
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=forked, args=(inputs, expected, theirs), daemon=True)
    process.start()
    assert ours.poll(60) and ours.recv() < 1e-6
    process.join(60)
    assert process.exitcode == 0
