"""The benchmarks: rivals compute the right thing, figures and targets are right, scripts run.

What needs a GPU runs here on a stand-in that has the CPU's clock.
"""

import functools
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_package import BLOCK_ALL_BUT_TORCH

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools" / "benchmark"))

import common
import gpu as gpu_module
import gpu_backbones
import gpu_operator
import gpu_parts
import gpu_variants
import rivals
import shapes
import summary
import targets
from gpu import Gpu
from gpu_backbones import Contest
from shapes import Shape

from vig_mm.kernels import bidirectional_gla

BENCHMARK = Path(__file__).resolve().parents[2] / "tools" / "benchmark"
HIDDEN = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}


class CpuClock(Gpu):
    """A `Gpu` without one."""

    class Event:
        def record(self) -> None:
            self.time = time.perf_counter()

        def elapsed_time(self, end: "CpuClock.Event") -> float:
            return 1e3 * (end.time - self.time)

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.cache_bytes = 1000
        self.waited = 0

    def event(self) -> Event:
        return self.Event()

    def synchronize(self) -> None:
        self.waited += 1

    def peak(self, run) -> int:
        run()
        return 2**20

    def graph_seconds(self, run, calls: int) -> float:
        run()
        return 1e-3

    def copy_bandwidth(self) -> float:
        return 1e9


@pytest.fixture
def clock(monkeypatch):
    """A stand-in of the GPU that makes as few calls as it can."""
    for name in ("MAX_CALLS", "MIN_SAMPLES", "MAX_SAMPLES"):
        monkeypatch.setattr(gpu_module, name, 1)
    return CpuClock()


def make_inputs(shape, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    batch, tokens, heads, width, v_width = shape
    widths = (width, width, v_width, width, width)
    return [torch.randn(batch, tokens, heads, w, generator=g, dtype=dtype) for w in widths]


def rel(x, reference):
    return ((x.double() - reference).norm() / reference.norm()).item()


# --- rivals


@pytest.mark.parametrize("widths", [(16, 32), (5, 40)], ids=str)
@pytest.mark.parametrize("tokens", [1, 2, 17, 32])
def test_recurrent_baseline_equals_the_reference(tokens, widths):
    """Odd and even lengths, one and two blocks of value channels; interpreted without a GPU."""
    pytest.importorskip("triton")
    from recurrent_gla import recurrent_gla

    inputs = make_inputs((2, tokens, 2, *widths))
    expected = bidirectional_gla(*inputs, backend="reference")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # views of one tensor, as the mixer hands them over
    low = torch.cat([x.flatten(2) for x in inputs], -1).float().to(device)
    parts = low.split([x.shape[2] * x.shape[3] for x in inputs], -1)
    out = recurrent_gla(*(x.unflatten(-1, (2, -1)) for x in parts))
    assert rel(out.cpu(), expected) < 1e-6


def scan(q, k, v, log_gate):
    """What `chunk_gla` computes, token by token."""
    state, outputs = 0, []
    for t in range(q.shape[1]):
        state = log_gate[:, t].exp().unsqueeze(-1) * state
        state = state + k[:, t].unsqueeze(-1) * v[:, t].unsqueeze(-2)
        outputs.append((q[:, t].unsqueeze(-1) * state).sum(-2) * q.shape[-1] ** -0.5)
    return torch.stack(outputs, 1), None


@pytest.mark.parametrize("name", targets.FLA)
def test_fla_in_both_directions_equals_the_reference(name):
    leaves = [x.requires_grad_() for x in make_inputs((2, 9, 2, 4, 6))]
    expected = bidirectional_gla(*leaves, backend="reference")
    out = rivals.fla_operators(scan)[name](*leaves)
    assert rel(out, expected) < 1e-12
    grad = torch.randn_like(out)
    found, wanted = (torch.autograd.grad(x, leaves, grad) for x in (out, expected))
    for x, y in zip(found, wanted, strict=True):
        assert rel(x, y) < 1e-12


def test_flash_attention_is_attention():
    q, k, v, *_ = make_inputs((2, 9, 3, 8, 8), torch.float32)
    weights = torch.einsum("bnhd,bmhd->bhnm", q, k).mul(8**-0.5).softmax(-1)
    expected = torch.einsum("bhnm,bmhd->bnhd", weights, v)
    torch.testing.assert_close(rivals.flash_attention(q, k, v), expected)


def test_fla_warm_up_shares_the_configurations(monkeypatch):
    triton = pytest.importorskip("triton")
    from fla_warm import every_nth
    from triton.runtime.autotuner import Autotuner

    monkeypatch.setattr(Autotuner, "__init__", Autotuner.__init__)  # to be restored

    @triton.jit
    def kernel(x):
        pass

    configs = [triton.Config({}, num_warps=2**i) for i in range(4)]
    every_nth(1, 3)
    assert triton.autotune(configs, key=[])(kernel).configs == [configs[1]]
    assert triton.autotune(configs[:1], key=[])(kernel).configs == configs[:1]


# --- shapes, figures and targets


@pytest.mark.parametrize("name", ["ViG-T", "ViG-H-T"])
def test_shapes_are_those_of_a_forward_pass(name, monkeypatch):
    from vig_mm.nets import attention

    seen = {}

    def record(q, k, v, *gates_and_options):
        seen[Shape(*q.shape, v.shape[-1])] = None
        return v.clone()

    monkeypatch.setattr(attention, "gla_forward", record)
    monkeypatch.setattr(gpu_backbones, "BACKEND", "chunked")
    with torch.inference_mode():
        gpu_backbones.build(name, 224).eval()(torch.randn(1, 3, 64, 96))
    assert list(seen) == shapes.model_shapes(name, (64, 96), 1)


@pytest.mark.parametrize("name", shapes.MODELS)
def test_heads_are_those_of_the_model(name):
    import vig_mm

    family = vig_mm.HierViG if "-H-" in name else vig_mm.ViG
    settings = family.arch_zoo[gpu_backbones.ARCHS[name[-1]]]
    heads, channels = settings["num_heads"], settings["embed_dims"]
    first = heads if isinstance(heads, int) else heads[0]
    assert shapes.MODELS[name].heads == ((heads,) if isinstance(heads, int) else heads)
    assert shapes.MODELS[name].widths == (channels // 2 // first, channels // first)


def test_all_shapes_cover_the_design_table():
    found = shapes.all_shapes()
    hier = [(128, 3136, 3), (128, 49, 24), (1, 66_800, 3), (1, 4200, 12), (1, 262_144, 4)]
    for shape in (*((*x, 16, 32) for x in hier), (128, 196, 3, 32, 64)):
        assert Shape(*shape) in found
    assert "ViG-H-T 1333x800 stage 1" in found[Shape(1, 66_800, 3, 16, 32)]


def test_minimum_bytes():
    """By hand: 2 bytes of q, k, gates, v, o a token and head; backward also do and gradients."""
    shape = dict(B=2, N=3, H=5, K=16, V=32)
    forward = 2 * (4 * 16 + 2 * 32)
    backward = 2 * (4 * 16 + 2 * 32 + 4 * 16 + 32)
    assert targets.minimum_bytes(shape, training=False) == 30 * forward == 7680
    assert targets.minimum_bytes(shape, training=True) == 30 * (forward + backward) == 21_120


def row(shape, ours=1.0, share=0.7, error=1e-3, graph=None, **others):
    """A row of the operator's results: every time in seconds, every peak ten bytes a second."""
    entries = {name: {"median": x, "peak_bytes": 10 * x} for name, x in others.items()}
    rival = {"ours": {"median": ours, "peak_bytes": 10 * ours}, **entries}
    return {
        "shape": Shape(*shape)._asdict(),
        "label": str(Shape(*shape)),
        "error": {"out": error},
        "graph": {"forward": graph} if graph else {},
        "bandwidth_share": {"forward": share, "forward_backward": share},
        "forward": rival,
        "forward_backward": rival,
    }


def verdicts(rows):
    return [target.reached for target in targets.operator_targets(rows)]


def test_operator_targets():
    """In the order: right, FLA forward and training for long sequences, the same for all, FLA
    memory, recurrence, bandwidth, graphs."""
    small, long, large = (1, 196, 3, 32, 64), (1, 4096, 3, 32, 64), (128, 3136, 3, 16, 32)
    fast = {"fla two passes": 3.0, "fla batched": 2.6}
    assert verdicts([]) == [None] * 9
    assert verdicts([row(small)]) == [True, *[None] * 8]
    assert verdicts([row(small, **fast)]) == [True, None, None, True, True, True, None, None, None]
    assert verdicts([row(small, **{**fast, "fla batched": 2.4})])[3:6] == [False, False, True]
    assert verdicts([row(small, **{**fast, "fla batched": 1.9})])[3:6] == [False, False, False]
    assert verdicts([row(long, **fast)])[1:5] == [False, False, True, True]
    faster = {"fla two passes": 4.1, "fla batched": 4.2}
    assert verdicts([row(long, **faster), row(small, **fast)])[1:5] == [True] * 4
    assert verdicts([row(small, recurrent=2.0)])[6] is None  # too short to count
    assert verdicts([row(long, recurrent=9.9)])[6] is False
    assert verdicts([row(long, recurrent=10.1)])[6] is True
    assert verdicts([row(large, share=0.34)])[7] is False
    assert verdicts([row(large, share=0.36), row(small, share=0.1)])[7] is True
    graphs = row(small, graph={"median": 1.0}), row(long, graph={"missing": "failed: waits"})
    assert verdicts(graphs[:1])[8] is True and verdicts(graphs)[8] is False
    for wrong in (1.0, float("nan")):
        assert verdicts([row(small), row(long, error=wrong)])[0] is False
    failed = row(small)
    failed["forward_backward"] = {"ours": {"missing": "out of memory"}}
    assert verdicts([failed])[0] is False
    (target, *_) = targets.operator_targets([row(small), failed])
    assert str(target).startswith("MISSED") and "1 of 2" in str(target)


def test_backbone_targets():
    def entry(speed, peak):
        return {"median": 1 / speed, "images_per_s": speed, "peak_bytes": peak}

    def verdict(vig_t, softmax, sdpa, deit_b):
        rows = [
            {"size": 1024, "mode": "forward",
             "models": {"ViG-T": vig_t, "DeiT-T softmax": softmax, "DeiT-T": sdpa}},
            {"size": 224, "mode": "forward",
             "models": {"ViG-S": entry(100.0, 1), "DeiT-B": deit_b, "DeiT-B softmax": softmax}},
            {"size": 224, "mode": "training", "models": {"ViG-S": entry(1.0, 1)}},
        ]  # fmt: skip
        return [target.reached for target in targets.backbone_targets(rows)]

    reached = verdict(entry(48.0, 10), entry(10.0, 100), entry(32.0, 9), entry(50.0, 1))
    assert reached == [True, True, True, True]
    missed = verdict(entry(47.9, 11), entry(10.0, 100), entry(31.0, 9), entry(50.1, 1))
    assert missed == [False, True, False, False]
    open_ = verdict(entry(47.9, 11), {"missing": "out of memory"}, entry(10.0, 1), entry(50.0, 1))
    assert open_ == [None, True, None, True]
    assert "out of memory" in targets.backbone_targets(
        [{"size": 1024, "mode": "forward",
          "models": {"ViG-T": entry(1, 1), "DeiT-T softmax": {"missing": "out of memory"}}}]
    )[0].found  # fmt: skip


# --- measuring


def test_a_rival_that_fails_is_noted_and_the_others_go_on(clock, capsys):
    def out_of_memory():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    def broken():
        raise ValueError("bad\nworse")

    runs = {"big": out_of_memory, "broken": broken, "good": lambda: time.sleep(1e-3)}
    results = clock.time(runs, seconds=0.01)
    assert list(results) == list(runs)
    assert results["big"] == {"missing": "out of memory"}
    assert results["broken"] == {"missing": "failed: ValueError: bad"}
    assert "worse" in capsys.readouterr().err
    assert 1e-3 <= results["good"]["min"] <= results["good"]["median"] < 0.1


def test_a_lost_device_ends_the_run(clock):
    def broken():
        clock.synchronize = broken
        raise RuntimeError("illegal memory access")

    with pytest.raises(RuntimeError, match="illegal"):
        clock.time({"ours": broken}, seconds=0.01)


def test_rivals_run_in_turn(monkeypatch):
    """A slow one less often, evenly spread."""
    monkeypatch.setattr(gpu_module, "MAX_SAMPLES", 6)
    calls = []

    def run(name, seconds):
        calls.append(name)
        time.sleep(seconds)

    rivals_ = {x: functools.partial(run, x, s) for x, s in (("fast", 2e-3), ("slow", 0.02))}
    CpuClock().time(rivals_, seconds=0.06)
    runs = [(name, len(list(group))) for name, group in itertools.groupby(calls[4:])]
    assert calls.count("slow") - 2 == 3 and calls.count("fast") - 2 == 6
    assert runs == [("fast", 2), ("slow", 1)] * 3


def test_operator_benchmark_on_a_stand_in(clock, tmp_path, monkeypatch):
    """All of a GPU's run but the GPU: rows, checks, files, resuming, time limit."""
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("the kernels are not interpreted")
    out = tmp_path / "results.json"
    monkeypatch.setattr(rivals, "MAX_ATTENTION_FLOPS", 1)
    first, second = Shape(1, 17, 1, 16, 16), Shape(3, 5, 1, 16, 16)
    assert gpu_operator.benchmark(clock, [first], out, common.Budget(None))
    data = json.loads(out.read_text())
    (result,) = data["results"]
    assert result["label"] == str(first) and data["machine"]["torch"] == torch.__version__
    assert max(result["error"].values()) < 1e-2 and len(result["error"]) == 6
    assert result["rival_error"]["recurrent"] < 1e-2
    for mode, names in (("forward", {"ours", "recurrent", "sdpa"}),
                        ("forward_backward", {"ours", "sdpa"})):  # fmt: skip
        assert result[mode].keys() == names
        assert all(entry["median"] > 0 for entry in result[mode].values())
        assert result["graph"][mode] == {"median": 1e-3}
    seconds = result["forward"]["ours"]["median"]
    share = targets.minimum_bytes(result["shape"], training=False) / seconds / 1e9
    assert result["bandwidth_share"]["forward"] == pytest.approx(share)
    assert [target["reached"] for target in data["targets"]] == [True, *[None] * 7, True]
    assert f"| {first} forward" in out.with_suffix(".md").read_text()

    # no time: the row that is there is kept, the other one is named
    gpu_operator.benchmark(clock, [first, second], out, common.Budget(0), resume=True)
    data = json.loads(out.read_text())
    assert data["results"] == [result] and data["not_measured"] == [str(second)]
    # against flash-linear-attention: nothing else is measured
    fla = rivals.fla_operators(scan)
    assert gpu_operator.benchmark(clock, [second], out, common.Budget(None), fla=fla)
    (result,) = json.loads(out.read_text())["results"]
    assert result["forward"].keys() == result["forward_backward"].keys() == {"ours", *fla}
    assert max(result["rival_error"].values()) < 2e-2 and result["graph"] == {}


def test_what_ends_a_run_is_left_out_of_the_next(clock, tmp_path, monkeypatch, capsys):
    """An illegal access of a kernel ends the process; the other shapes still get measured."""
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("the kernels are not interpreted")
    out = tmp_path / "results.json"
    first, second = Shape(1, 17, 1, 16, 16), Shape(3, 5, 1, 16, 16)
    measure = gpu_operator.measure

    def lost(shape, *args):
        if shape == first:
            raise RuntimeError("an illegal memory access was encountered")
        return measure(shape, *args)

    monkeypatch.setattr(gpu_operator, "measure", lost)
    unlimited = common.Budget(None)
    with pytest.raises(RuntimeError, match="illegal"):
        gpu_operator.benchmark(clock, [first, second], out, unlimited)
    for _ in range(2):
        assert not gpu_operator.benchmark(clock, [first, second], out, unlimited, resume=True)
        assert f"left out, as it ended an earlier run: {first}" in capsys.readouterr().out
        data = json.loads(out.read_text())
        assert [row["label"] for row in data["results"]] == [str(second)]
        assert data["not_measured"] == [str(first)]
    monkeypatch.setattr(gpu_operator, "measure", measure)  # all anew
    assert gpu_operator.benchmark(clock, [first, second], out, unlimited)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["results.json", "results.md"]


def test_wrong_results_are_not_reported_as_right(clock, tmp_path, monkeypatch):
    def wrong(q, k, v, *gates):
        return v * (q.sum() + k.sum() + gates[0].sum() + gates[1].sum())

    monkeypatch.setattr(gpu_operator, "ours", wrong)
    out = tmp_path / "results.json"
    fla = rivals.fla_operators(scan)
    assert not gpu_operator.benchmark(
        clock, [Shape(1, 3, 1, 16, 16)], out, common.Budget(None), fla=fla
    )
    assert json.loads(out.read_text())["targets"][0]["reached"] is False


def test_variants_on_a_stand_in(clock, tmp_path, monkeypatch):
    """Each variant reaches the launch code, is checked, and what is wrong is not timed."""
    launch = pytest.importorskip("vig_mm.kernels.gla.triton.launch")
    if torch.cuda.is_available():
        pytest.skip("the kernels are not interpreted")
    default, other = gpu_variants.Variant(), gpu_variants.Variant(chunk=16, warps=1)
    q = torch.empty(1, 40, 1, 16, device="meta")
    with gpu_variants.settings(other):
        assert launch.make_plan(q, q).BT == launch.make_plan(q, q, grad=True).BT == 16
        assert launch.options("output", launch.make_plan(q, q))["num_warps"] == 1
    assert launch.make_plan(q, q).BT == 64
    slim = gpu_variants.Variant(fp32_states=True)
    with gpu_variants.settings(slim):
        assert launch.state_dtype(torch.bfloat16) == torch.float32
    errors = {other: 1.0}
    original = gpu_variants.largest_error
    monkeypatch.setattr(
        gpu_variants, "largest_error", lambda v, *x: errors.get(v) or original(v, *x)
    )
    out = tmp_path / "variants.json"
    shape = Shape(1, 40, 1, 16, 16)
    assert gpu_variants.benchmark(
        clock, (shape,), [default, other, slim], str(out), common.Budget(None)
    )
    (result,) = json.loads(out.read_text())["results"]
    assert result["wrong"] == {"chunk 16, warps 1": "error 1.0e+00"}
    assert result["error"].keys() == {"default", "fp32_states True"}
    assert max(result["error"].values()) < 1e-2
    for mode in ("forward", "forward_backward"):
        assert result[mode].keys() == result["error"].keys()
        best = result[f"{mode}_best"]
        share = targets.minimum_bytes(result["shape"], training=mode != "forward")
        share /= result[mode][best["variant"]]["median"] * result_bandwidth(out)
        assert best["bandwidth_share"] == pytest.approx(share)
    assert str(shape) in out.with_suffix(".md").read_text()


def test_fused_steps_beside_their_parts_on_a_stand_in(clock, tmp_path, monkeypatch):
    """Both forms are computed and agree; a fused form that is wrong is not timed."""
    pytest.importorskip("vig_mm.kernels.gla.triton.launch")
    if torch.cuda.is_available():
        pytest.skip("the kernels are not interpreted")
    out, sizes = tmp_path / "parts.json", ((1, (4, 5), 32),)
    assert gpu_parts.benchmark(clock, sizes, str(out), common.Budget(None))
    results = json.loads(out.read_text())["results"]
    assert len(results) == 3 and all(0 < row["error"] < 2e-2 for row in results)
    assert all(row["times"].keys() == {"fused", "parts"} for row in results)
    monkeypatch.setattr(gpu_parts, "MAX_ERROR", 1e-9)
    assert not gpu_parts.benchmark(clock, sizes, str(out), common.Budget(None))
    results = json.loads(out.read_text())["results"]
    assert all("error" in row["problem"] and "times" not in row for row in results)


def result_bandwidth(out):
    return json.loads(out.read_text())["copy_bandwidth"]


def test_long_attention_is_left_out():
    assert rivals.attention_flops(Shape(1, 16_384, 3, 32, 64)) < rivals.MAX_ATTENTION_FLOPS
    assert rivals.attention_flops(Shape(1, 262_144, 3, 16, 32)) > rivals.MAX_ATTENTION_FLOPS


def test_backbones_benchmark_on_a_stand_in(clock, tmp_path, monkeypatch):
    pytest.importorskip("timm")
    monkeypatch.setattr(gpu_backbones, "BACKEND", "chunked")
    build = gpu_backbones.build

    def build_or_fail(name, size):
        if name == "DeiT-T softmax":
            raise torch.OutOfMemoryError("CUDA out of memory")
        if name == "ViG-B":
            raise RuntimeError("broken")
        return build(name, size)

    monkeypatch.setattr(gpu_backbones, "build", build_or_fail)
    out = tmp_path / "results.json"
    run = functools.partial(gpu_backbones.benchmark, clock, out=out, batches={32: 2})
    contests = [Contest(32, ("ViG-T", "DeiT-T", "DeiT-T softmax"))]
    assert run(contests, budget=common.Budget(None))
    rows = json.loads(out.read_text())["results"]
    assert [row["mode"] for row in rows] == ["forward", "training"]
    for result in rows:
        assert result["models"]["DeiT-T softmax"] == {"missing": "out of memory"}
        for name in ("ViG-T", "DeiT-T"):
            entry = result["models"][name]
            assert entry["images_per_s"] == pytest.approx(2 / entry["median"])
    weights = sum(4 * x.numel() for x in build("ViG-T", 32).parameters())
    images = 4 * 2 * 3 * 32 * 32
    forward, training = (row["models"]["ViG-T"]["peak_bytes"] for row in rows)
    assert forward == weights + images + 2**20
    assert 3 * weights + images + 2**20 <= training < 3.01 * weights + images + 2**20  # Adam's two
    table = out.with_suffix(".md").read_text()
    assert "DeiT-T softmax 32x32 training, batch 2" in table and "out of memory" in table

    assert run(contests, budget=common.Budget(0), resume=True)  # all is there
    assert json.loads(out.read_text())["results"] == rows
    assert not run([Contest(32, ("ViG-B",))], budget=common.Budget(None))


def test_classifiers_have_the_public_size():
    for name, parameters in (("ViG-T", 5_834_536), ("ViG-H-T", 28_600_680)):
        model = gpu_backbones.build(name, 224)
        assert sum(x.numel() for x in model.parameters()) == parameters


def test_profile(clock, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_backbones, "BACKEND", "chunked")
    out = tmp_path / "profile.txt"
    gpu_backbones.profile(clock, 32, 1, out)
    text = out.read_text()
    assert text.startswith("ViG-T, 32x32, batch 1, bf16 autocast")
    about, forward, training = text.split("CPU time total: ")
    assert "\nforward\n" in about and "\ntraining\n" in forward


# --- scripts


def run_script(*arguments, environment=HIDDEN, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(x) for x in arguments], env=environment, capture_output=True, text=True, **options
    )


def test_operator_script_on_a_cpu(tmp_path):
    out = tmp_path / "results.json"
    shape = "--shape 1 70 2 16 32".split()
    script = BENCHMARK / "bidirectional_gla.py"
    run = run_script(sys.executable, script, "--repeats", 1, *shape, "--out", out)
    assert run.returncode == 0, run.stderr
    (result,) = json.loads(out.read_text())["results"]
    assert result["shape"] == dict(B=1, N=70, H=2, K=16, V=32)
    assert result["forward"]["ratio"] > 0 and result["forward_backward"]["ours"]["median"] > 0
    table = out.with_suffix(".md").read_text()
    assert "| B1 N70 H2 K16 V32 |" in table and table.split("\n\n")[1] in run.stdout


def test_backbones_script_on_a_cpu(tmp_path):
    pytest.importorskip("timm")
    out = tmp_path / "results.json"
    options = "--sizes 64 --memory-size 64 --repeats 1 --threads 1".split()
    run = run_script(sys.executable, BENCHMARK / "backbones.py", *options, "--out", out)
    assert run.returncode == 0, run.stderr
    data = json.loads(out.read_text())
    assert data["time"]["64"]["ratio"] > 0
    assert data["memory"]["MiB"].keys() == {"ViG-T", "DeiT-T", "DeiT-T softmax"}
    assert "time, ms, 64x64" in out.with_suffix(".md").read_text()


@pytest.mark.parametrize("script", ["bidirectional_gla.py", "backbones.py"])
def test_cuda_without_a_gpu_is_one_clear_error(script):
    run = run_script(sys.executable, BENCHMARK / script, "--device", "cuda")
    assert run.returncode == 2
    assert run.stderr.endswith("--device cuda needs a CUDA GPU, and torch sees none\n")


def test_models_without_mmengine(tmp_path):
    """The same weights from the same seed, and the same outputs, as with the real mmengine."""
    import vig_mm

    expected = {}
    for name, options in (("ViG", dict(depth=2)), ("HierViG", dict(depths=(1, 1, 1, 1)))):
        torch.manual_seed(0)
        model = getattr(vig_mm, name)("tiny", **options).eval()
        x = torch.randn(1, 3, 64, 96)
        with torch.inference_mode():
            expected[name] = (options, model.state_dict(), x, model(x)[-1].clone())
    torch.save(expected, tmp_path / "expected.pt")
    code = """
import importlib.util, torch, without_mm
assert importlib.util.find_spec("mmengine") is None
assert without_mm.stand_in() == ["mmengine", "mmcv"]
assert without_mm.stand_in() == []
import vig_mm
for name, (options, state, x, y) in torch.load("expected.pt").items():
    torch.manual_seed(0)
    model = getattr(vig_mm, name)("tiny", **options).eval()
    assert all(torch.equal(a, state[k]) for k, a in model.state_dict().items()), name
    with torch.inference_mode():
        torch.testing.assert_close(model(x)[-1], y)
    model.train()(x)[-1].sum().backward()
    print(name)
try:
    vig_mm.ViG("tiny", init_cfg=[{"type": "Kaiming"}]).init_weights()
except RuntimeError as error:
    print(error)
"""
    environment = {**HIDDEN, "PYTHONPATH": str(BENCHMARK)}
    run = run_script(
        sys.executable, "-c", BLOCK_ALL_BUT_TORCH + code, environment=environment, cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr
    vig, hier, error = run.stdout.splitlines()
    assert (vig, hier) == ("ViG", "HierViG")
    assert "initialize" in error and "mmengine is not installed" in error


def test_stand_ins_leave_what_is_installed_alone():
    import without_mm

    finders = list(sys.meta_path)
    assert without_mm.stand_in() == []
    assert sys.meta_path == finders


def test_drop_path_of_the_stand_ins():
    from without_mm import DropPath

    x = torch.ones(400, 2, 3)
    torch.manual_seed(0)
    y = DropPath(0.25)(x)
    assert y.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (y[:, 0, 0] == 0).float().mean() == pytest.approx(0.25, abs=0.06)
    assert torch.equal(y, y[:, :1, :1].expand_as(y))
    assert torch.equal(DropPath(0.25).eval()(x), x)


def test_an_uninstalled_checkout_can_be_imported(tmp_path):
    tree = tmp_path / "tree"
    run = run_script(sys.executable, BENCHMARK / "source_tree.py", tree)
    assert run.returncode == 0, run.stderr
    code = "import vig_mm.kernels.gla.chunk as x; print(x.__file__); x.chunked_forward"
    environment = {**HIDDEN, "PYTHONPATH": str(tree)}
    run = run_script(sys.executable, "-c", code, environment=environment, cwd=tmp_path)
    assert run.stdout.strip() == str(tree / "vig_mm" / "kernels" / "gla" / "chunk.py"), run.stderr


def test_run_gpu_needs_a_gpu(tmp_path):
    """And does nothing else."""
    script = BENCHMARK / "run_gpu.sh"
    assert run_script("bash", "-n", script).returncode == 0
    environment = {**HIDDEN, "PYTHON": sys.executable, "OUT": str(tmp_path / "out")}
    run = run_script("bash", script, environment=environment)
    assert run.returncode == 2 and run.stdout == ""
    assert run.stderr == "run_gpu.sh: needs a CUDA GPU, and torch sees none\n"
    assert not (tmp_path / "out").exists()
    run = run_script("bash", script, "tests", "speed", environment=environment)
    assert run.returncode == 2 and "unknown step 'speed'" in run.stderr
    run = run_script("bash", script, environment={**environment, "PYTHON": "no-python"})
    assert run.returncode == 2 and "no interpreter 'no-python'" in run.stderr


def test_shards_share_the_tests(tmp_path):
    tests = "".join(f"def test_{i}():\n    pass\n" for i in range(5))
    (tmp_path / "test_it.py").write_text(tests)
    found = []
    for i in range(2):
        environment = {"TEST_SHARD": f"{i}/2", "PYTHONPATH": str(BENCHMARK)}
        command = (sys.executable, "-m", "pytest", "-v", "-p", "shard", tmp_path)
        run = run_script(*command, environment={**os.environ, **environment})
        outcomes = summary.outcomes(run.stdout)
        assert run.returncode == 0 and set(outcomes.values()) == {"PASSED"}, run.stdout
        found += [name.rpartition("::")[2] for name in outcomes]
    assert sorted(found) == [f"test_{i}" for i in range(5)] and found[:2] == ["test_0", "test_2"]


LOG = """
tests/a.py::test_plain PASSED                                            [ 10%]
tests/a.py::test_plain[a b] FAILED                                       [ 20%]
tests/a.py::test_skip SKIPPED (needs a CUDA device)                      [ 30%]
[gw1] [ 40%] PASSED tests/b.py::test_x[1]
[gw0] [ 50%] FAILED tests/b.py::test_x[2]
tests/b.py::test_cut_off
=========================== short test summary info ============================
FAILED tests/b.py::test_x[2] - assert 1 == 2
ERROR tests/c.py - ImportError: no module
"""


def test_summary(tmp_path, capsys):
    assert summary.outcomes(LOG) == {
        "tests/a.py::test_plain": "PASSED",
        "tests/a.py::test_plain[a b]": "FAILED",
        "tests/a.py::test_skip": "SKIPPED",
        "tests/b.py::test_x[1]": "PASSED",
        "tests/b.py::test_x[2]": "FAILED",
        "tests/c.py": "ERROR",
    }
    (tmp_path / "run.log").write_text(LOG)
    assert summary.main(tmp_path, {"tests": 1, "operator": 124}) == 1
    out = capsys.readouterr().out
    assert "tests: 2 passed, 2 failed, 1 skipped, 1 error" in out and "b.py::test_x[2]" in out
    assert "step operator: OUT OF TIME" in out

    (tmp_path / "run.log").write_text("tests/a.py::test_plain PASSED     [100%]\n")
    results = [row((1, 4096, 3, 32, 64), recurrent=12.0)]
    data = {"machine": {"gpu": "some GPU"}, "results": results}
    (tmp_path / "bidirectional_gla_gpu.json").write_text(json.dumps(data))
    assert summary.main(tmp_path, {"tests": 0, "operator": 0}) == 0
    out = capsys.readouterr().out
    assert "1 rows; gpu some GPU" in out and "reached  forward >= 10x the recurrence" in out
    assert "DeiT" not in out  # the models were not asked for
    assert summary.main(tmp_path, {"tests": 0, "operator": 1}) == 1
