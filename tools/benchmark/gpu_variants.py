"""Time variants on a GPU: fused steps of a block beside their parts, each a launch of its own, and
the launch settings of the GLA kernels: chunk, warps, type of the states.

    python tools/benchmark/gpu_variants.py [--minutes 4] [--out work_dirs/gpu_variants.json]

Every variant is first compared with the default, then all that are right are timed
(`triton.testing.do_bench`), forward and forward with backward, at five lengths with the models'
heads. `vig_mm.kernels.gla.triton.launch` is where what it shows becomes the default.
"""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from bidirectional_gla import MAX_ERROR, make_inputs, time_kernels, with_gradients
from shapes import Shape
from torch import Tensor

# found by way of bidirectional_gla
from common import Budget, Run, machine, markdown, problem, write_json  # isort: skip

from vig_mm.kernels import bidirectional_gla

SHAPES = (
    Shape(128, 3136, 3, 16, 32),
    Shape(1, 66_800, 3, 16, 32),
    Shape(128, 196, 3, 32, 64),
    Shape(2, 16_700, 6, 16, 32),
    Shape(2, 4200, 12, 16, 32),
)
# images, grid, channels of the steps of a block
STEPS = ((128, (56, 56), 96), (128, (28, 28), 192), (128, (14, 14), 192), (32, (28, 28), 256))
HEAD = 32  # channels of a head


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


VARIANTS = (
    Variant(),
    *(Variant(chunk, warps) for chunk in (32, 64) for warps in (1, 2, 4)),
    *(Variant(fp32_states=True), Variant(per_program=2), Variant(per_program=32)),
    *(Variant(local_warps=1), Variant(local_warps=4)),
)


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
        for name in ("CHUNK", "GRADIENT_CHUNK") if variant.chunk else ():
            stack.enter_context(mock.patch.object(launch, name, variant.chunk))
        if variant.fp32_states:
            stack.enter_context(mock.patch.object(launch, "state_dtype", lambda x: torch.float32))
        yield


def variant_runs(shape: Shape, device: str) -> dict[str, dict[str, Run]]:
    """Per mode, what runs each variant and returns output, or output and gradients."""
    inputs, grad = make_inputs(shape, torch.bfloat16, device)
    ours = partial(bidirectional_gla, backend="triton")

    def forward(variant: Variant) -> list[Tensor]:
        with settings(variant), torch.inference_mode():
            return [ours(*inputs)]

    def training(variant: Variant) -> list[Tensor]:
        with settings(variant):
            return with_gradients(ours, inputs, grad)

    runs = {"forward": forward, "forward+backward": training}
    return {name: {str(v): partial(run, v) for v in VARIANTS} for name, run in runs.items()}


def step_runs(
    batch: int, hw: tuple[int, int], channels: int, device: str
) -> dict[str, dict[str, Run]]:
    """Per step of a block, its fused form and its parts; bfloat16, a float32 residual stream."""
    from vig_mm.kernels.feed_forward import triton as feed_forward
    from vig_mm.kernels.feed_forward.triton_norm import norm
    from vig_mm.kernels.locality_gate.triton import gate_forward
    from vig_mm.kernels.locality_gate.triton_projection import gate_projection
    from vig_mm.kernels.norm_conv.triton import conv, statistics

    half, eps, tokens = torch.bfloat16, 1e-6, hw[0] * hw[1]
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int, dtype: torch.dtype = half, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, generator=generator)).to(device, dtype)

    x = randn(batch, tokens, channels, dtype=torch.float32)
    rows, weight, bias = x.flatten(0, 1), *randn(2, channels, dtype=torch.float32)
    hidden = -(-(8 * channels // 3) // 32) * 32
    layers = (randn(2 * hidden, channels, scale=channels**-0.5),
              randn(channels, hidden, scale=hidden**-0.5))  # fmt: skip
    o, local, gate = randn(3, batch, tokens, channels // HEAD, HEAD)
    gated = (o, local, gate, *randn(2, HEAD, dtype=torch.float32))
    last = randn(channels, channels, scale=channels**-0.5)
    taps = randn(channels, 1, 3, 3, dtype=torch.float32, scale=1 / 3)

    def ffn() -> Tensor:
        return feed_forward.triton_feed_forward(rows, weight, bias, *layers, None, eps)[0]

    def ffn_in_parts() -> Tensor:
        with mock.patch.object(feed_forward, "MAX_CHANNELS", {}):
            return ffn()

    def conv_in_parts() -> Tensor:
        y = norm(x, weight, bias, eps, half).unflatten(1, hw).permute(0, 3, 1, 2)
        y = F.conv2d(y, taps.to(half), padding=1, groups=channels)
        return y.permute(0, 2, 3, 1).flatten(1, 2)

    def norm_conv() -> Tensor:
        return conv(x, statistics(x, True, eps), weight, bias, taps, *hw, False, half)

    steps: dict[str, tuple[Callable, Callable]] = {
        "feed-forward": (ffn_in_parts, ffn),
        "gate and projection": (
            lambda: x + gate_forward(*gated, eps, False).flatten(2) @ last.mT,
            lambda: gate_projection(*gated, last, x, None, eps, False),
        ),
        "norm and convolution": (conv_in_parts, norm_conv),
    }
    runs = {name: dict(zip(("parts", "fused"), pair, strict=True)) for name, pair in steps.items()}
    return {name: {k: partial(as_list, run) for k, run in x.items()} for name, x in runs.items()}


def as_list(run: Callable[[], Tensor]) -> list[Tensor]:
    with torch.inference_mode():
        return [run()]


def compare(runs: dict[str, Run], timer: Callable[[dict[str, Run]], dict]) -> dict:
    """Errors against the first of them; the time of all that are right; what is wrong."""
    errors, wrong, expected = {}, {}, None
    for name, run in runs.items():
        try:
            found = [x.float() for x in run()]
            expected = expected or found
            pairs = zip(found, expected, strict=True)
            errors[name] = max(((x - y).norm() / y.norm()).item() for x, y in pairs)
            if not errors[name] <= MAX_ERROR:
                wrong[name] = f"error {errors.pop(name):.1e}"
        except Exception as error:
            wrong[name] = problem(error)
    times = timer({name: runs[name] for name in errors})
    return {"error": errors, "wrong": wrong, "times": times}


def line(row: dict) -> list[str]:
    """Milliseconds of the first and of the best one, and which that is."""
    times = {name: x["median"] for name, x in row["times"].items() if "median" in x}
    wrong = "; ".join(f"WRONG {name}: {x}" for name, x in row["wrong"].items())
    if not times:
        return [row["what"], "", "", wrong]
    first, best = next(iter(times)), min(times, key=times.__getitem__)
    best_ms = f"{1e3 * times[best]:.3f}"
    return [row["what"], f"{first} {1e3 * times[first]:.3f}", f"{best} {best_ms}", wrong]


def jobs(device: str) -> Iterator[tuple[str, Callable[[], dict[str, dict[str, Run]]]]]:
    for batch, hw, channels in STEPS:
        label = f"{batch} x {hw[0]}x{hw[1]}, {channels} channels"
        yield label, partial(step_runs, batch, hw, channels, device)
    for shape in SHAPES:
        yield str(shape), partial(variant_runs, shape, device)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=["cuda"])
    parser.add_argument("--minutes", type=float, default=4.0, help="time limit")
    parser.add_argument("--out", type=Path, default="work_dirs/gpu_variants.json")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("needs a CUDA GPU, and torch sees none")
    budget, results = Budget(args.minutes), []
    for label, make in jobs(args.device):
        for name, runs in make().items():
            if budget.over():
                print("time is up", flush=True)
                break
            results.append({"what": f"{label}, {name}", **compare(runs, time_kernels)})
            write_json(args.out, machine=machine("cuda"), results=results)
            print(" | ".join(line(results[-1])), flush=True)
    print(markdown(["", "first, ms", "best, ms", "wrong"], [line(row) for row in results]))
    print(f"written: {args.out}")
    return int(any(row["wrong"] for row in results))


if __name__ == "__main__":
    sys.exit(main())
