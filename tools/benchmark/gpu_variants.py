"""Time variants on a GPU: fused steps of a block beside their parts (`gpu_parts`), and the launch
settings of the GLA kernels: chunk, warps, type of the states.

    python tools/benchmark/gpu_variants.py [--minutes 4] [--out work_dirs/gpu_variants.json]

Every variant is first compared with float64, then all that are right are timed in turn, forward and
forward with backward, at five lengths with the models' heads. The table at the end names the best
of each shape and its share of the bandwidth of copying; `vig_mm.kernels.gla.triton.launch` is where
what it shows becomes the default.
"""

import argparse
import contextlib
import functools
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import gpu_parts
import torch
from common import Budget, report, save
from compile_ahead import run_workers
from gpu import Gpu
from gpu_operator import forward, forward_backward, make_sets, ours
from shapes import Shape
from targets import MODES, fastest, minimum_bytes

from vig_mm.kernels import bidirectional_gla

SHAPES = (
    Shape(128, 3136, 3, 16, 32),
    Shape(1, 66_800, 3, 16, 32),
    Shape(128, 196, 3, 32, 64),
    Shape(2, 16_700, 6, 16, 32),
    Shape(2, 4200, 12, 16, 32),
)
MAX_ERROR = 2e-2  # in bfloat16, of output and gradients in norm
CHECKED_TOKENS = 333
SECONDS = 0.1  # for a variant's timing
COLUMNS = ["shape and pass", "default ms", "best ms", "% of copy", "best"]


class Variant(NamedTuple):
    """Settings of one pass; None is the default of that setting."""

    chunk: int | None = None
    warps: int | None = None  # of the output or gradient kernel
    local_warps: int | None = None
    per_program: int | None = None  # chunks
    fp32_states: bool = False

    def __str__(self) -> str:
        changed = {name: x for name, x in self._asdict().items() if x}
        return ", ".join(f"{name} {x}" for name, x in changed.items()) or "default"


def variants() -> list[Variant]:
    """The default, and what differs from it, in the order of what is expected of it."""
    found = [Variant()]
    found += [Variant(chunk, warps) for chunk in (32, 64) for warps in (1, 2, 4)]
    found += [Variant(fp32_states=True), Variant(per_program=2), Variant(per_program=32)]
    found += [Variant(local_warps=1), Variant(local_warps=4)]
    return found


@contextlib.contextmanager
def settings(variant: Variant) -> Iterator[None]:
    """The launch code with a variant's settings."""
    from vig_mm.kernels.gla.triton import launch

    default = launch.options

    def options(kernel: str, plan: launch.Plan) -> dict[str, int]:
        chosen = default(kernel, plan)
        warps = variant.local_warps if kernel == "local" else variant.warps
        if warps and kernel != "exact":
            chosen["num_warps"] = warps
        if variant.per_program and "N" in chosen:
            chosen["N"] = variant.per_program
        return chosen

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(launch, "options", options))
        if variant.chunk:
            for name in ("CHUNK", "GRADIENT_CHUNK"):
                stack.enter_context(mock.patch.object(launch, name, variant.chunk))
        if variant.fp32_states:
            stack.enter_context(
                mock.patch.object(launch, "state_dtype", lambda dtype: torch.float32)
            )
        yield


def largest_error(variant: Variant, shape: Shape, gpu: Gpu) -> float:
    """Of output and gradients in norm, against float64, at the shape's heads and few tokens."""
    short = shape._replace(B=2, N=min(shape.N, CHECKED_TOKENS))
    one = make_sets(short, gpu, attention=False)[0]
    exact = [x.detach().double().requires_grad_() for x in one.plain]
    out = bidirectional_gla(*exact, backend="chunked")
    expected = (out, *torch.autograd.grad(out, exact, one.grad.double()))
    with settings(variant):
        out = ours(*one.leaves)
        found = (out, *torch.autograd.grad(out, one.leaves, one.grad))
    return max(
        ((x.double() - y).norm() / y.norm()).item() for x, y in zip(found, expected, strict=True)
    )


def run(variant: Variant, mode: str, sets: Iterator) -> object:
    with settings(variant):
        return (forward if mode == "forward" else forward_backward)(ours, sets)


def measure(shape: Shape, candidates: list[Variant], gpu: Gpu, bandwidth: float) -> dict:
    """Errors, and per mode the time of every variant that is right."""
    row: dict = {"shape": shape._asdict(), "label": str(shape), "error": {}, "wrong": {}}
    right = []
    for variant in candidates:
        name, errors = str(variant), row["error"]

        def check(variant: Variant = variant, name: str = name) -> None:
            row["error"][name] = largest_error(variant, shape, gpu)

        problem = gpu.attempt(check)
        if problem or not errors[name] <= MAX_ERROR:
            row["wrong"][name] = problem or f"error {errors.pop(name):.1e}"
        else:
            right.append(variant)
    sets = itertools.cycle(make_sets(shape, gpu, attention=False))
    for mode in MODES:
        rivals = {str(v): functools.partial(run, v, mode, sets) for v in right}
        row[mode] = gpu.time(rivals, SECONDS)
        best = fastest(row[mode], row[mode])
        if best:
            least = minimum_bytes(shape._asdict(), training=mode != "forward")
            share = least / row[mode][best]["median"] / bandwidth
            row[f"{mode}_best"] = {"variant": best, "bandwidth_share": share}
    return row


def cells(row: dict) -> list[list[str]]:
    lines = []
    for mode in MODES:
        best = row.get(f"{mode}_best")
        if best is None:
            lines.append([f"{row['label']} {mode}", "", "", "", "none is right"])
            continue
        times = {name: entry.get("median") for name, entry in row[mode].items()}
        default = times.get("default")
        lines.append([
            f"{row['label']} {mode}",
            f"{1e3 * default:.3f}" if default else "",
            f"{1e3 * times[best['variant']]:.3f}",
            f"{100 * best['bandwidth_share']:.0f}",
            best["variant"],
        ])  # fmt: skip
    return lines


def compile_ahead(seconds: float) -> None:
    """Run the variants once in many processes: Triton keeps what it compiles on disk."""
    run_workers(__file__, min(os.cpu_count() or 1, len(variants())), seconds)


def benchmark(
    gpu: Gpu, shapes: tuple[Shape, ...], candidates: list[Variant], out: str, budget: Budget
) -> bool:
    """Measure until the time is up, and write after each shape; whether the default is right."""
    bandwidth = gpu.copy_bandwidth()
    results: list[dict] = []
    title = "Launch settings of the GLA kernels, bf16"
    for shape in shapes:
        if budget.over():
            print("time is up", flush=True)
            break
        results.append(measure(shape, candidates, gpu, bandwidth))
        for line in cells(results[-1]):
            print(" | ".join(line), flush=True)
        rows = [line for row in results for line in cells(row)]
        data = {"copy_bandwidth": bandwidth, "results": results}
        put = report if len(results) == len(shapes) else save
        put(title, COLUMNS, rows, data, out, device=gpu.device.type)
    for row in results:
        for name, problem in row["wrong"].items():
            print(f"WRONG {row['label']} {name}: {problem}", flush=True)
    return all("default" in row["error"] for row in results)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=["cuda"])
    parser.add_argument("--minutes", type=float, default=4.0, help="time limit")
    parser.add_argument("--out", default="work_dirs/gpu_variants.json")
    parser.add_argument("--worker", type=int, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("needs a CUDA GPU, and torch sees none")
    if args.worker is not None:
        index, workers = args.worker
        for shape, variant in list(itertools.product(SHAPES, variants()))[index::workers]:
            with contextlib.suppress(Exception):  # reported where it is measured
                largest_error(variant, shape, Gpu())
        return 0
    budget = Budget(args.minutes)
    parts = str(Path(args.out).with_name(f"{Path(args.out).stem}_parts.json"))
    right = gpu_parts.benchmark(Gpu(), gpu_parts.SIZES, parts, budget)
    compile_ahead(seconds=60 * args.minutes / 3)
    return int(not (benchmark(Gpu(), SHAPES, variants(), args.out, budget) and right))


if __name__ == "__main__":
    sys.exit(main())
