"""Time the operator, forward and forward plus backward, against what it replaces.

On a CPU: plain PyTorch in float32, against two flipped passes of a one-directional version; or,
with --backends, the machine code against plain PyTorch, over the shapes of all six models. On a GPU
(the default where there is one): bf16, the Triton kernels over the shapes of all six models,
against the recurrence and softmax attention, or flash-linear-attention, and the device's own copy
bandwidth. Inputs are the strided views that the mixer hands over; rivals run in turn.
"""

import argparse
import functools
import sys

import torch
from common import Budget, machine, milliseconds, report, time_interleaved
from one_directional_gla import two_pass_gla
from shapes import MODELS, Shape, all_shapes, model_shapes
from torch import Tensor

from vig_mm.kernels import bidirectional_gla

CPU_SHAPES = (
    Shape(1, 196, 3, 32, 64),  # ViG-T at 224
    Shape(8, 196, 3, 32, 64),
    Shape(1, 4096, 3, 32, 64),  # ViG-T at 1024
    Shape(1, 16384, 3, 32, 64),  # ViG-T at 2048
    Shape(1, 16700, 3, 16, 32),  # ViG-H-T stage 2 at 1333x800
    Shape(1, 66800, 3, 16, 32),  # ViG-H-T stage 1 at 1333x800
)
FLOORS = {  # how many times as fast the machine code is at least, forward and backward
    Shape(1, 65536, 3, 16, 32): (6, 4),
    Shape(1, 16384, 6, 16, 32): (6, 4),
    Shape(1, 4096, 12, 16, 32): (6, 4),
    Shape(1, 4096, 3, 32, 64): (4, 2.8),
}
PLAIN = functools.partial(bidirectional_gla, backend="chunked")


def make_inputs(batch: int, tokens: int, heads: int, width: int, v_width: int) -> list[Tensor]:
    qkv = torch.randn(batch, tokens, heads * (2 * width + v_width))
    parts = qkv.split([heads * width, heads * width, heads * v_width], dim=-1)
    gates = torch.randn(batch, tokens, 2 * heads * width).chunk(2, dim=-1)
    return [x.unflatten(-1, (heads, -1)) for x in (*parts, *gates)]


def cpu(shapes: list[Shape], repeats: int, out: str) -> None:
    rows, results = [], []
    for shape in shapes:
        inputs = make_inputs(*shape)
        grad = torch.randn(shape.B, shape.N, shape.H, shape.V)
        leaves = [x.detach().requires_grad_() for x in inputs]

        def forward(operator, inputs=inputs):
            with torch.inference_mode():
                operator(*inputs)

        def train(operator, leaves=leaves, grad=grad):
            torch.autograd.grad(operator(*leaves), leaves, grad)

        result: dict = {"shape": shape._asdict()}
        row = [str(shape)]
        for mode, run in (("forward", forward), ("forward_backward", train)):
            stats = time_interleaved(
                {
                    "ours": lambda run=run: run(PLAIN),
                    "two_pass": lambda run=run: run(two_pass_gla),
                },
                repeats,
            )
            ratio = stats["two_pass"]["median"] / stats["ours"]["median"]
            result[mode] = {**stats, "ratio": ratio}
            row += [milliseconds(stats["ours"]), milliseconds(stats["two_pass"]), f"{ratio:.2f}"]
        rows.append(row)
        results.append(result)
        print("measured:", *row, flush=True)
    columns = ["shape", "forward ms", "two passes", "ratio", "fwd+bwd ms", "two passes", "ratio"]
    report(
        f"Bidirectional GLA, float32, {machine()['threads']} CPU threads: median (min-max)",
        columns, rows, {"results": results}, out,
    )  # fmt: skip


def backends(shapes: list[Shape], repeats: int, out: str) -> bool:
    """Forward and backward pass, float32 and bfloat16. Returns whether every floor is met."""
    rows, results, met = [], [], True
    for dtype in (torch.float32, torch.bfloat16):
        for shape in shapes:
            inputs = [x.to(dtype) for x in make_inputs(*shape)]
            grad = torch.randn(shape.B, shape.N, shape.H, shape.V).to(dtype)
            result = {"dtype": str(dtype)[6:], "shape": shape._asdict()}
            row = [f"{shape} {result['dtype']}"]
            passes = (
                ("forward", torch.ops.vig_mm.bidirectional_gla, inputs),
                ("backward", torch.ops.vig_mm.bidirectional_gla_backward, [grad, *inputs]),
            )
            for (name, function, tensors), floor in zip(
                passes, FLOORS.get(shape, (1, 1)), strict=True
            ):
                with torch.inference_mode():
                    rivals = {
                        backend: functools.partial(function, *tensors, backend)
                        for backend in ("cpu", "chunked")
                    }
                    stats = time_interleaved(rivals, repeats)
                best = [1e3 * stats[backend]["min"] for backend in rivals]
                ratio = best[1] / best[0]
                met &= ratio >= floor
                result[name] = {**stats, "ratio": ratio, "floor": floor}
                row += [f"{best[0]:.2f}", f"{best[1]:.2f}", f"{ratio:.1f}"]
                row.append(f"{floor} {'met' if ratio >= floor else 'MISSED'}")
            rows.append(row)
            results.append(result)
            print("measured:", *row, flush=True)
    columns = ["shape"]
    for name in ("forward", "backward"):
        columns += [f"{name} ms", "plain PyTorch", "ratio", "at least"]
    title = f"Bidirectional GLA in machine code, {machine()['threads']} CPU threads: best of"
    report(f"{title} {repeats}", columns, rows, {"results": results}, out)
    return met


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python tools/benchmark/bidirectional_gla.py --shape 1 4096 3 32 64",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    parser.add_argument(
        "--shape", type=int, nargs=5, action="append", metavar=tuple("BNHKV"),
        help="instead of the built-in shapes; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--backends", action="store_true", help="CPU: machine code against plain PyTorch"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU: threads (default 2)")
    parser.add_argument("--repeats", type=int, default=15, help="CPU: runs per figure (default 15)")
    parser.add_argument("--minutes", type=float, help="GPU: start no shape after this time")
    parser.add_argument(
        "--resume", action="store_true", help="GPU: keep what --out has, measure the rest"
    )
    parser.add_argument(
        "--fla", action="store_true",
        help="GPU: against flash-linear-attention only; its autotuning takes minutes",
    )  # fmt: skip
    parser.add_argument(
        "--out", help="default: work_dirs/benchmark/bidirectional_gla[_backends|_gpu[_fla]].json"
    )
    args = parser.parse_args()
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    shapes = [Shape(*shape) for shape in args.shape or ()]
    torch.manual_seed(0)
    if device == "cpu":
        torch.set_num_threads(args.threads)
        stem = "bidirectional_gla_backends" if args.backends else "bidirectional_gla"
        out = args.out or f"work_dirs/benchmark/{stem}.json"
        if args.backends:
            sizes = ((side, side) for side in (224, 512, 1024, 2048))
            models = [shape for size in sizes for m in MODELS for shape in model_shapes(m, size, 1)]
            return 0 if backends(shapes or sorted({*FLOORS, *models}), args.repeats, out) else 1
        cpu(shapes or list(CPU_SHAPES), args.repeats, out)
        return 0
    if not torch.cuda.is_available():
        parser.error("--device cuda needs a CUDA GPU, and torch sees none")
    from gpu import Gpu
    from gpu_operator import benchmark
    from rivals import flash_linear_attention

    stem = "bidirectional_gla_gpu"
    fla = None
    if args.fla:
        stem += "_fla"
        if not (fla := flash_linear_attention()):
            parser.error("--fla needs flash-linear-attention (the package fla), not installed here")
    out = args.out or f"work_dirs/benchmark/{stem}.json"
    shapes = shapes or list(all_shapes())
    right = benchmark(Gpu(), shapes, out, Budget(args.minutes), args.resume, fla)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
