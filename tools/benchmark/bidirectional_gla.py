"""Time the operator, forward and forward plus backward, against what it replaces.

On a CPU: float32, against two flipped passes of a one-directional version. On a GPU (the default
where there is one): bf16, the Triton kernels over the shapes of all six models, against the
recurrence and softmax attention, or flash-linear-attention, and the device's own copy bandwidth.
Inputs are the strided views that the mixer hands over; rivals run in turn.
"""

import argparse
import sys

import torch
from common import Budget, machine, milliseconds, report, time_interleaved
from one_directional_gla import two_pass_gla
from shapes import Shape, all_shapes
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
                    "ours": lambda run=run: run(bidirectional_gla),
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
        "--out", help="default: work_dirs/benchmark/bidirectional_gla[_gpu[_fla]].json"
    )
    args = parser.parse_args()
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    shapes = [Shape(*shape) for shape in args.shape or ()]
    torch.manual_seed(0)
    if device == "cpu":
        torch.set_num_threads(args.threads)
        out = args.out or "work_dirs/benchmark/bidirectional_gla.json"
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
