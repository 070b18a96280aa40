"""tools/benchmark: rivals compute the right thing, figures are right, commands run without a GPU.

What needs a GPU runs here on the CPU: Triton's interpreter, and the CPU's clock as its timer.
"""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools" / "benchmark"))

import bidirectional_gla as operator
import common  # found by way of the one before
import gpu_variants
import shapes
from shapes import Shape

import vig_mm
from vig_mm.kernels import bidirectional_gla

BENCHMARK = Path(__file__).resolve().parents[2] / "tools" / "benchmark"
interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are compiled")


def cpu_timer(runs):
    return common.measure(runs, 0.0, "cpu")


@pytest.fixture
def without_gpu(monkeypatch):
    """The GPU's rows, measured on the CPU."""
    made = operator.make_inputs
    monkeypatch.setattr(operator, "make_inputs", lambda s, d, device: made(s, d, "cpu"))
    monkeypatch.setattr(operator, "time_kernels", cpu_timer)
    monkeypatch.setattr("triton.testing.do_bench_cudagraph", lambda run: 2.0)


def scan(q, k, v, log_gate):
    """What `chunk_gla` computes, token by token."""
    state, outputs = 0, []
    for t in range(q.shape[1]):
        state = log_gate[:, t].exp().unsqueeze(-1) * state
        state = state + k[:, t].unsqueeze(-1) * v[:, t].unsqueeze(-2)
        outputs.append((q[:, t].unsqueeze(-1) * state).sum(-2) * q.shape[-1] ** -0.5)
    return torch.stack(outputs, 1), None


def test_rivals_compute_what_they_should():
    inputs, grad = operator.make_inputs(Shape(2, 9, 2, 4, 6), torch.float64, "cpu")
    reference = partial(bidirectional_gla, backend="reference")
    expected = operator.with_gradients(reference, inputs, grad)
    found = operator.with_gradients(operator.fla_operator(scan), inputs, grad)
    torch.testing.assert_close(found, expected)
    v = inputs[2]
    weights = torch.einsum("bnhd,bmhd->bhnm", v, v).mul(6**-0.5).softmax(-1)
    expected = torch.einsum("bhnm,bmhd->bnhd", weights, v)
    torch.testing.assert_close(operator.attention(*inputs), expected)


@pytest.mark.parametrize("name", shapes.MODELS)
def test_shapes_are_those_of_a_forward_pass(name, monkeypatch):
    from vig_mm.nets import attention

    def record(q, k, v, *others):
        seen[Shape(*q.shape, v.shape[-1])] = None
        return v.clone()

    seen = {}
    monkeypatch.setattr(attention, "gla_forward", record)
    family = vig_mm.HierViG if "-H-" in name else vig_mm.ViG
    arch = {"T": "tiny", "S": "small", "B": "base"}[name[-1]]
    with torch.inference_mode(), torch.device("meta"):
        family(arch, backend="chunked").eval()(torch.empty(1, 3, 64, 96))
    assert list(seen) == shapes.model_shapes(name, (64, 96), 1)


def test_all_shapes_cover_what_is_worth_most():
    found = shapes.all_shapes()
    hier = [(128, 3136, 3), (128, 49, 24), (1, 66_800, 3), (1, 4200, 12), (1, 262_144, 4)]
    assert {*(Shape(*x, 16, 32) for x in hier), Shape(128, 196, 3, 32, 64)} <= set(found)
    assert "ViG-H-T 800x1333 stage 1" in found[Shape(1, 66_800, 3, 16, 32)]
    assert set(operator.FLOORS) <= set(operator.cpu_shapes())


def test_minimum_bytes():
    """By hand: 2 bytes of q, k, gates, v, o a token and head; backward also do and gradients."""
    shape = Shape(B=2, N=3, H=5, K=16, V=32)
    forward = 2 * (4 * 16 + 2 * 32)
    backward = 2 * (4 * 16 + 2 * 32 + 4 * 16 + 32)
    assert operator.minimum_bytes(shape, training=False) == 30 * forward == 7680
    assert operator.minimum_bytes(shape, training=True) == 30 * (forward + backward) == 21_120


@interpreted
def test_a_gpus_row(without_gpu, monkeypatch):
    """Errors, both modes, the share of the bandwidth; attention is left out where it is long."""
    shape = Shape(1, 17, 1, 16, 16)
    rivals = {
        "ours": partial(bidirectional_gla, backend="triton"),
        "sdpa": operator.attention,
        "fla": operator.fla_operator(scan),
    }
    row = operator.measure_gpu(shape, rivals, bandwidth=1e9)
    assert list(row["error"]) == list(operator.NAMES) and max(row["error"].values()) < 1e-2
    for mode, training in (("forward", False), ("forward+backward", True)):
        assert row[mode].keys() == rivals.keys()
        ours = row[mode]["ours"]
        least = operator.minimum_bytes(shape, training)
        assert ours["of_copy"] == pytest.approx(least / ours["median"] / 1e9)
        assert ours["graph"] == 2e-3
    assert operator.is_right(row)
    first, second = operator.cells(row)
    assert first[0] == f"{shape} bfloat16 forward" and "fla " in second[2] and second[4] == "2.000"
    monkeypatch.setattr(operator, "MAX_ATTENTION_FLOPS", 1)
    assert "sdpa" not in operator.measure_gpu(shape, rivals, 1e9)["forward"]


def test_wrong_results_are_not_reported_as_right(without_gpu):
    def wrong(q, k, v, *gates):
        return v * (q.sum() + k.sum() + gates[0].sum() + gates[1].sum())

    assert not operator.is_right(operator.measure_gpu(Shape(1, 3, 1, 16, 16), {"ours": wrong}, 1e9))
    right = {"shape": Shape(1, 4096, 12, 16, 32)._asdict(), "dtype": "float32", "error": {"out": 0}}
    for forward, backward, met in ((6.1, 4.1, True), (5.9, 4.1, False), (6.1, 3.9, False)):
        for mode, ratio in (("forward", forward), ("backward", backward)):
            right[mode] = {"ours": {"median": 1, "min": 1}, "plain": {"min": ratio}}
        assert operator.is_right(right) is met
    lost = {"shape": right["shape"], "error": right["error"]}
    lost["forward"] = {"ours": {"missing": "out of memory"}}
    assert not operator.is_right(lost) and operator.cells(lost)[0][1] == "out of memory"


@pytest.mark.parametrize("floor", [0, 1e9])  # no machine code is so fast
def test_operator_command_on_a_cpu(tmp_path, monkeypatch, capsys, floor):
    pytest.importorskip("numba")
    monkeypatch.setattr(common, "limit_memory", lambda: None)
    monkeypatch.setattr(operator, "FLOORS", {Shape(1, 70, 2, 16, 32): (floor, floor)})
    out, threads = tmp_path / "results.json", torch.get_num_threads()
    command = f"gla.py --device cpu --threads 1 --seconds 0 --shape 1 70 2 16 32 --out {out}"
    monkeypatch.setattr(sys, "argv", command.split())
    status = operator.main()
    torch.set_num_threads(threads)
    rows = json.loads(out.read_text())["results"]
    assert [row["dtype"] for row in rows] == ["float32", "bfloat16"]
    assert all(row[mode]["ours"]["median"] > 0 for row in rows for mode in ("forward", "backward"))
    printed = capsys.readouterr().out
    assert "| B1 N70 H2 K16 V32 float32 forward" in printed and f"written: {out}" in printed
    assert status == bool(floor) and ("WRONG, OR TOO SLOW: B1 N70" in printed) is bool(floor)


@interpreted
def test_variants_reach_the_launch_code():
    from vig_mm.kernels.gla.triton import launch

    q = torch.empty(1, 40, 1, 16, device="meta")
    with gpu_variants.settings(chunk=16, warps=1):
        assert launch.make_plan(q, q).BT == launch.make_plan(q, q, grad=True).BT == 16
        assert launch.options("output", launch.make_plan(q, q))["num_warps"] == 1
    assert launch.make_plan(q, q).BT == 64
    with gpu_variants.settings(fp32_states=True):
        assert launch.state_dtype(torch.bfloat16) == torch.float32


@interpreted
def test_variants_and_steps_are_compared(monkeypatch):
    """All agree with the first of them; what is wrong or breaks is named and not timed."""
    monkeypatch.setattr(gpu_variants, "VARIANTS", ({}, dict(chunk=16, warps=1)))
    found = gpu_variants.variant_runs(Shape(1, 40, 1, 16, 16), "cpu")
    found |= gpu_variants.step_runs(1, (4, 5), 32, "cpu")
    assert len(found) == 5
    for runs in found.values():
        row = gpu_variants.compare(runs, cpu_timer)
        assert row["times"].keys() == runs.keys() and row["wrong"] == {}
        assert max(row["error"].values()) < 1e-2
    broken = {**runs, "wrong": lambda: [2 * x for x in runs["parts"]()], "breaks": lambda: 1 / 0}
    row = gpu_variants.compare(broken, cpu_timer)
    assert row["wrong"] == {"wrong": "error 1.0e+00", "breaks": "failed: division by zero"}
    assert row["times"].keys() == runs.keys()
    line = gpu_variants.line({"what": "step", **row})
    assert line[0] == "step" and line[1].startswith("parts ") and "WRONG wrong: error" in line[3]


def run_gpu(*steps: str, **environment: str) -> subprocess.CompletedProcess:
    command = ["bash", str(BENCHMARK / "run_gpu.sh"), *steps]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_run_gpu_needs_a_gpu(tmp_path):
    """And does nothing else."""
    run = run_gpu(PYTHON=sys.executable, OUT=str(tmp_path / "out"))
    assert run.returncode == 2 and run.stdout == ""
    assert run.stderr.endswith("run_gpu.sh: needs a CUDA GPU, and torch sees none\n")
    assert not (tmp_path / "out").exists()
    run = run_gpu("tests", "speed")
    assert run.returncode == 2 and "unknown step 'speed'" in run.stderr
    run = run_gpu(PYTHON="no-python")
    assert run.returncode == 2 and "no interpreter 'no-python'" in run.stderr


PRETEND = """
import sys
if "-m" in sys.argv[1:2] or sys.argv[1].endswith(".py"):
    print("ran", *sys.argv[1:])
    sys.exit("cost_vs_resolution" in sys.argv[1])
exec(sys.argv[2].replace("import torch, triton", "pass").replace(
    "if not torch.cuda.is_available()", "if False").replace("import common", "sys.exit()"))
"""


def test_run_gpu_goes_on_after_a_failure(tmp_path):
    """The steps, with an interpreter that only says what it was asked to run."""
    (tmp_path / "pretend.py").write_text(PRETEND)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path}/pretend.py "$@"\n')
    python.chmod(0o755)
    run = run_gpu(PYTHON=str(python), OUT=str(tmp_path / "out"))
    ran = [line for line in run.stdout.splitlines() if line.startswith("ran ")]
    names = ("test_triton", "bidirectional_gla", "benchmark.py", "cost_vs_resolution", "variants")
    places = [next(i for i, line in enumerate(ran) if name in line) for name in names]
    assert places == sorted(places)
    assert "tests=0 operator=0 maps=0 classifiers=1 variants=0" in run.stdout
    assert run.returncode == 1
