"""The operator on a GPU: ours against the recurrence and softmax attention, or against FLA.

bf16; inputs are the strided views that the mixer hands over. All rivals of a row run in turn over
the same sets of inputs, of which there are so many that the L2 cache holds none of them any more
when its turn comes again. Rows are written as they are measured.
"""

import functools
import itertools
import math
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from common import Budget, Tried, earlier_results, report, save
from gpu import Gpu, Run
from rivals import MAX_ATTENTION_FLOPS, Operator, attention_flops, flash_attention
from shapes import Shape, all_shapes
from targets import (
    FLA,
    MAX_ERROR,
    MODES,
    fastest,
    is_right,
    median,
    minimum_bytes,
    operator_targets,
)
from torch import Tensor

from vig_mm.kernels import bidirectional_gla

SECONDS = 0.15  # for a rival's timing in a mode
COLUMNS = [
    "shape", "ours ms", "% of copy", "graph ms", "x recurrent", "x FLA", "x SDPA",
    "MiB", "FLA MiB", "error",
]  # fmt: skip

ours = functools.partial(bidirectional_gla, backend="triton")


class Inputs(NamedTuple):
    """One set of inputs: plain, and as leaves that take gradients."""

    plain: list[Tensor]  # q, k, v, gate_f, gate_b
    leaves: list[Tensor]
    attention: list[Tensor]  # q, k, v of the value width, as leaves; empty where left out
    grad: Tensor


def make_sets(shape: Shape, gpu: Gpu, attention: bool) -> list[Inputs]:
    """Random sets that together exceed the L2 cache twice; at least two."""
    batch, tokens, heads, width, v_width = shape
    # a generator of its own: a failed graph capture leaves the default one unusable
    generator = torch.Generator(gpu.device).manual_seed(0)

    def randn(count: int, channels: int) -> Tensor:
        size = (count, batch, tokens, channels)
        return torch.randn(size, generator=generator, device=gpu.device, dtype=torch.bfloat16)

    bytes_of_one = 2 * batch * tokens * heads * (4 * width + v_width)
    count = max(math.ceil(2 * gpu.cache_bytes / bytes_of_one), 2)
    qkv = randn(count, heads * (2 * width + v_width))
    gates = randn(count, 2 * heads * width)
    grads = randn(count, heads * v_width)
    extra = randn(count, 3 * heads * v_width) if attention else None

    def split(x: Tensor, *widths: int) -> list[Tensor]:
        parts = x.split([heads * w for w in widths], dim=-1)
        return [part.unflatten(-1, (heads, -1)) for part in parts]

    sets = []
    for i in range(count):
        plain = [*split(qkv[i], width, width, v_width), *split(gates[i], width, width)]
        leaves = [x.detach().requires_grad_() for x in plain]
        qkv_i = split(extra[i], v_width, v_width, v_width) if attention else []
        qkv_i = [x.detach().requires_grad_() for x in qkv_i]
        sets.append(Inputs(plain, leaves, qkv_i, grads[i].unflatten(-1, (heads, -1))))
    return sets


def forward(operator: Operator, sets: Iterator[Inputs]) -> Tensor:
    with torch.inference_mode():
        return operator(*next(sets).plain)


def forward_backward(operator: Operator, sets: Iterator[Inputs]) -> tuple[Tensor, ...]:
    one = next(sets)
    return torch.autograd.grad(operator(*one.leaves), one.leaves, one.grad)


def attention_forward(sets: Iterator[Inputs]) -> Tensor:
    with torch.inference_mode():
        return flash_attention(*next(sets).attention)


def attention_forward_backward(sets: Iterator[Inputs]) -> tuple[Tensor, ...]:
    one = next(sets)
    return torch.autograd.grad(flash_attention(*one.attention), one.attention, one.grad)


def ends(x: Tensor) -> Tensor:
    """The first and the last image: enough to compare, as images do not depend on each other."""
    return x if x.shape[0] <= 2 else torch.stack((x[0], x[-1]))


def expectation(one: Inputs) -> list[Tensor]:
    """Output and gradients of the plain PyTorch version in float32, for the `ends`."""
    exact = [ends(x.detach()).float().requires_grad_() for x in one.plain]
    out = bidirectional_gla(*exact, backend="chunked")
    return [out.detach(), *torch.autograd.grad(out, exact, ends(one.grad).float())]


def relative(x: Tensor, y: Tensor) -> float:
    return ((ends(x).float() - y).norm() / y.norm()).item()


def errors(one: Inputs, expected: list[Tensor]) -> dict[str, float]:
    """Relative errors of our output and gradients."""
    out = ours(*one.leaves)
    found = (out, *torch.autograd.grad(out, one.leaves, one.grad))
    names = ("out", "dq", "dk", "dv", "dgate_f", "dgate_b")
    return {name: relative(x, y) for name, x, y in zip(names, found, expected, strict=True)}


def check(row: dict, one: Inputs, gpu: Gpu, rivals: dict[str, Operator]) -> None:
    """Fill in ``error`` of ours and, of their outputs, ``rival_error``; or ``unchecked``."""
    expected: list[Tensor] = []
    problem = gpu.attempt(lambda: expected.extend(expectation(one)))
    if not problem:
        problem = gpu.attempt(lambda: row["error"].update(errors(one, expected)))
    if problem:
        row["unchecked"] = problem
    if not expected:
        return

    def check_rival(name: str) -> None:
        with torch.inference_mode():
            row["rival_error"][name] = relative(rivals[name](*one.plain), expected[0])

    for name in rivals:
        gpu.attempt(functools.partial(check_rival, name))
        if row["rival_error"].get(name, 0.0) > MAX_ERROR:
            print(f"{row['label']}: {name} computes something else", flush=True)


def graph_time(gpu: Gpu, run: Run, calls: int) -> dict:
    """Seconds of a call inside a CUDA graph; ``missing`` if it cannot be captured."""
    try:
        return {"median": gpu.graph_seconds(run, calls)}
    except RuntimeError as error:
        traceback.print_exc()
        gpu.synchronize()
        return {"missing": f"failed: {str(error).partition(chr(10))[0]}"}


def measure(shape: Shape, gpu: Gpu, bandwidth: float, fla: dict[str, Operator]) -> dict:
    """One row: ours and its rivals in both modes, peak memory, errors, graph time at batch 1.

    Args:
        bandwidth: of copying, bytes a second.
        fla: flash-linear-attention's operators; without any, the recurrence and attention.
    """
    attention = not fla and attention_flops(shape) <= MAX_ATTENTION_FLOPS
    all_sets = make_sets(shape, gpu, attention)
    sets = itertools.cycle(all_sets)
    row: dict = {
        "shape": shape._asdict(),
        "label": str(shape),
        "input_sets": len(all_sets),
        "copy_bandwidth": bandwidth,
        "error": {},
        "rival_error": {},
        "graph": {},
        "bandwidth_share": {},
    }
    forward_only: dict[str, Operator] = {}
    if not fla:
        from recurrent_gla import recurrent_gla

        forward_only["recurrent"] = recurrent_gla
    check(row, all_sets[0], gpu, {**fla, **forward_only})
    runs: dict[str, dict[str, Run]] = {
        "forward": {
            name: functools.partial(forward, operator, sets)
            for name, operator in {"ours": ours, **fla, **forward_only}.items()
        },
        "forward_backward": {
            name: functools.partial(forward_backward, operator, sets)
            for name, operator in {"ours": ours, **fla}.items()
        },
    }
    if attention:
        runs["forward"]["sdpa"] = functools.partial(attention_forward, sets)
        runs["forward_backward"]["sdpa"] = functools.partial(attention_forward_backward, sets)
    for mode, rivals in runs.items():
        row[mode] = gpu.time(rivals, SECONDS)
        for name, entry in row[mode].items():
            if "median" in entry:
                entry["peak_bytes"] = gpu.peak(rivals[name])
        if not fla and not attention:
            row[mode]["sdpa"] = {"missing": "left out: N^2 takes too long"}
        if "median" in row[mode]["ours"]:
            least = minimum_bytes(shape._asdict(), training=mode != "forward")
            seconds = row[mode]["ours"]["median"]
            row["bandwidth_share"][mode] = least / seconds / bandwidth
            if shape.B == 1:
                row["graph"][mode] = graph_time(gpu, rivals["ours"], len(all_sets))
    return row


def cells(row: dict) -> list[list[str]]:
    """The table's two lines of a row: forward, and forward and backward."""
    lines = []
    for mode in MODES:
        rivals = row[mode]
        own = rivals["ours"]
        line = [f"{row['label']} {'forward' if mode == 'forward' else '+ backward'}"]
        if "median" not in own:
            kind = own["missing"].partition(":")[0]
            lines.append([*line, kind, *[""] * (len(COLUMNS) - 2)])
            continue

        def ratio(name: str | None, rivals: dict = rivals) -> str:
            entry = rivals.get(name, {})
            if (time := median(entry)) is None:
                return entry.get("missing", "").partition(":")[0]
            return f"{time / rivals['ours']['median']:.2f}"

        fla_peaks = [rivals[x]["peak_bytes"] for x in FLA if "peak_bytes" in rivals.get(x, {})]
        worst = max(row["error"].values(), default=math.nan)
        lines.append([
            *line,
            f"{1e3 * own['median']:.3f}",
            f"{100 * row['bandwidth_share'][mode]:.0f}",
            f"{1e3 * x:.3f}" if (x := median(row["graph"].get(mode))) else "",
            ratio("recurrent"),
            ratio(fastest(rivals, FLA) or FLA[0]),
            ratio("sdpa"),
            f"{own['peak_bytes'] / 2**20:.1f}",
            f"{min(fla_peaks) / 2**20:.1f}" if fla_peaks else "",
            f"{worst:.1e}",
        ])  # fmt: skip
    return lines


def benchmark(
    gpu: Gpu,
    shapes: list[Shape],
    out: str | Path,
    budget: Budget,
    resume: bool = False,
    fla: dict[str, Operator] | None = None,
) -> bool:
    """Measure the shapes in order until the time is up, and write after each one.

    Args:
        resume: keep the rows that ``out`` has of this machine, measure only the others.
        fla: flash-linear-attention's operators, to compare with them and nothing else.

    Returns:
        Whether ours ran and was right in every shape, could be captured in a graph, and no shape
        ended an earlier run.
    """
    device = gpu.device.type
    places = all_shapes()
    results = earlier_results(out, device) if resume else []
    done = {row["label"] for row in results}
    tried = Tried(out, resume, done)
    bandwidth = gpu.copy_bandwidth()
    print(f"copy bandwidth {bandwidth / 1e12:.2f} TB/s", flush=True)
    title = "Bidirectional GLA, bf16: time of ours, times of others over ours, peak memory"

    def output(put: Callable) -> None:
        left_out = [str(x) for x in shapes if str(x) not in done]
        targets = [target._asdict() for target in operator_targets(results)]
        rows = [line for row in results for line in cells(row)]
        data = {"results": results, "not_measured": left_out, "targets": targets}
        put(title, COLUMNS, rows, data, out, device=device)

    for shape in shapes:
        if str(shape) in done | tried.lost:
            continue
        if budget.over():
            print("time is up", flush=True)
            break
        tried.begin(str(shape))
        row = measure(shape, gpu, bandwidth, fla or {})
        row["where"] = places.get(shape, [])
        results.append(row)
        done.add(row["label"])
        output(save)
        for line in cells(row):
            print(" | ".join(line), flush=True)
    tried.end()
    output(report)
    for target in operator_targets(results):
        print(target, flush=True)
    graphs = [entry for row in results for entry in row["graph"].values()]
    captured = not any("missing" in entry for entry in graphs)
    return all(map(is_right, results)) and captured and not tried.lost
