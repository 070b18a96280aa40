"""Time variants on a GPU: fused steps of a block beside their parts, each a launch of its own, and
the launch settings of the GLA kernels: chunk, warps, type of the states.

    python tools/benchmark/gpu_variants.py [--minutes 4] [--out work_dirs/gpu_variants.json]

Every variant is first compared with the default, then all that are right are timed
(`triton.testing.do_bench`), forward and forward with backward, at five lengths with the models'
heads. `vig_mm.kernels.gla.triton.launch` is where what it shows becomes the default.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from unittest import mock

import bidirectional_gla as operator
import common  # found by way of the one before
import torch
import torch.nn.functional as F
from shapes import Shape
from torch import Tensor

from vig_mm.kernels import bidirectional_gla

Runs = dict[str, Callable[[], list[Tensor]]]
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
VARIANTS: tuple[dict[str, int], ...] = (  # see `settings`
    {},
    *(dict(chunk=chunk, warps=warps) for chunk in (32, 64) for warps in (1, 2, 4)),
    *(dict(fp32_states=True), dict(per_program=2), dict(per_program=32)),
    *(dict(local_warps=1), dict(local_warps=4)),
)


@contextlib.contextmanager
def settings(
    chunk: int | None = None,
    warps: int | None = None,
    local_warps: int | None = None,
    per_program: int | None = None,
    fp32_states: bool = False,
) -> Iterator[None]:
    """The launch code with other settings of a pass; None is the default of each.

    Args:
        warps: of the output or gradient kernel.
        per_program: chunks.
    """
    from vig_mm.kernels.gla.triton import launch

    default = launch.options

    def options(kernel: str, plan: launch.Plan) -> dict[str, int]:
        chosen = default(kernel, plan)
        own = local_warps if kernel == "local" else warps
        if own and kernel != "exact":
            chosen["num_warps"] = own
        if per_program and "N" in chosen:
            chosen["N"] = per_program
        return chosen

    changes = {"options": options}
    if chunk:
        changes |= {"CHUNK": chunk, "GRADIENT_CHUNK": chunk}
    if fp32_states:
        changes |= {"state_dtype": lambda x: torch.float32}
    with mock.patch.multiple(launch, **changes):
        yield


def variant_runs(shape: Shape, device: str) -> dict[str, Runs]:
    """Per mode, what runs each variant and returns output, or output and gradients."""
    inputs, grad = operator.make_inputs(shape, torch.bfloat16, device)
    ours = partial(bidirectional_gla, backend="triton")

    def forward(variant: dict) -> list[Tensor]:
        with settings(**variant):
            return [operator.inference(ours, *inputs)]

    def training(variant: dict) -> list[Tensor]:
        with settings(**variant):
            return operator.with_gradients(ours, inputs, grad)

    runs = {"forward": forward, "forward+backward": training}
    names = [common.describe(variant) or "default" for variant in VARIANTS]
    return {
        mode: {name: partial(run, v) for name, v in zip(names, VARIANTS, strict=True)}
        for mode, run in runs.items()
    }


def step_runs(batch: int, hw: tuple[int, int], channels: int, device: str) -> dict[str, Runs]:
    """Per step of a block, its fused form and its parts; bfloat16, a float32 residual stream."""
    from vig_mm.kernels.feed_forward import triton as feed_forward
    from vig_mm.kernels.feed_forward.triton_norm import norm
    from vig_mm.kernels.locality_gate.triton import gate_forward
    from vig_mm.kernels.locality_gate.triton_projection import gate_projection
    from vig_mm.kernels.norm_conv.triton import conv, statistics

    half, full, eps, tokens = torch.bfloat16, torch.float32, 1e-6, hw[0] * hw[1]
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int, dtype: torch.dtype = half, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, generator=generator)).to(device, dtype)

    x = randn(batch, tokens, channels, dtype=full)
    rows, weight, bias = x.flatten(0, 1), *randn(2, channels, dtype=full)
    hidden = -(-(8 * channels // 3) // 32) * 32
    first = randn(2 * hidden, channels, scale=channels**-0.5)
    second = randn(channels, hidden, scale=hidden**-0.5)
    o, local, gate = randn(3, batch, tokens, channels // HEAD, HEAD)
    gated = (o, local, gate, *randn(2, HEAD, dtype=full))
    last = randn(channels, channels, scale=channels**-0.5)
    taps = randn(channels, 1, 3, 3, dtype=full, scale=1 / 3)

    def ffn() -> Tensor:
        return feed_forward.triton_feed_forward(rows, weight, bias, first, second, None, eps)[0]

    def ffn_in_parts() -> Tensor:
        with mock.patch.object(feed_forward, "MAX_CHANNELS", {}):
            return ffn()

    def conv_in_parts() -> Tensor:
        y = norm(x, weight, bias, eps, half).unflatten(1, hw).permute(0, 3, 1, 2)
        y = F.conv2d(y, taps.to(half), padding=1, groups=channels)
        return y.permute(0, 2, 3, 1).flatten(1, 2)

    def norm_conv() -> Tensor:
        return conv(x, statistics(x, True, eps), weight, bias, taps, *hw, False, half)

    def gate_in_parts() -> Tensor:
        return x + gate_forward(*gated, eps, False).flatten(2) @ last.mT

    def gate_and_projection() -> Tensor:
        return gate_projection(*gated, last, x, None, eps, False)

    def as_list(run: Callable[[], Tensor]) -> list[Tensor]:
        return [operator.inference(run)]

    steps = {
        "feed-forward": {"parts": ffn_in_parts, "fused": ffn},
        "gate and projection": {"parts": gate_in_parts, "fused": gate_and_projection},
        "norm and convolution": {"parts": conv_in_parts, "fused": norm_conv},
    }
    return {name: {k: partial(as_list, x) for k, x in runs.items()} for name, runs in steps.items()}


def compare(runs: Runs, timer: Callable[[Runs], dict]) -> dict:
    """Errors against the first of them; the time of all that are right; what is wrong."""
    errors, wrong, expected = {}, {}, None
    for name, run in runs.items():
        try:
            found = [x.float() for x in run()]
            expected = expected or found
            pairs = zip(found, expected, strict=True)
            errors[name] = max(((x - y).norm() / y.norm()).item() for x, y in pairs)
            if not errors[name] <= operator.MAX_ERROR:
                wrong[name] = f"error {errors.pop(name):.1e}"
        except Exception as error:
            wrong[name] = common.problem(error)
    times = timer({name: runs[name] for name in errors})
    return {"error": errors, "wrong": wrong, "times": times}


def line(row: dict) -> list[str]:
    """Milliseconds of the first and of the best one, and which that is."""
    times = {name: x["median"] for name, x in row["times"].items() if "median" in x}
    wrong = "; ".join(f"WRONG {name}: {x}" for name, x in row["wrong"].items())
    ends = (next(iter(times)), min(times, key=times.__getitem__)) if times else ()
    shown = [f"{name} {1e3 * times[name]:.3f}" for name in ends] or ["", ""]
    return [row["what"], *shown, wrong]


def main() -> int:
    parser = common.make_parser(__doc__, "work_dirs/gpu_variants.json")
    parser.add_argument("--device", default="cuda", choices=["cuda"])
    parser.add_argument("--minutes", type=float, default=4.0, help="time limit (4)")
    common.set_device(parser, args := parser.parse_args())
    budget, results = common.Budget(args.minutes), []
    jobs = {f"{n} x {hw}, {c} channels": partial(step_runs, n, hw, c) for n, hw, c in STEPS}
    jobs |= {str(shape): partial(variant_runs, shape) for shape in SHAPES}
    for label, make in jobs.items():
        for name, runs in make("cuda").items():
            if budget.over():
                print("time is up", flush=True)
                break
            results.append({"what": f"{label}, {name}", **compare(runs, operator.time_kernels)})
            common.write_json(args.out, machine=common.machine("cuda"), results=results)
            print(" | ".join(line(results[-1])), flush=True)
    columns = ["", "first, ms", "best, ms", "wrong"]
    print(
        common.markdown(columns, [line(row) for row in results]), f"written: {args.out}", sep="\n"
    )
    return int(any(row["wrong"] for row in results))


if __name__ == "__main__":
    sys.exit(main())
