"""Time the operator on the CPU against two flipped passes of a one-directional version.

Forward, and forward plus backward, in float32; inputs are the strided views that the mixer hands
over. The rivals run in turn in one process.
"""

import argparse

import torch
from common import machine, milliseconds, report, time_interleaved
from one_directional_gla import two_pass_gla
from rich.progress import track
from torch import Tensor

from vig_mm.kernels import bidirectional_gla

# batch, tokens, heads, key width, value width
SHAPES = (
    (1, 196, 3, 32, 64),  # ViG-T at 224
    (8, 196, 3, 32, 64),
    (1, 4096, 3, 32, 64),  # ViG-T at 1024
    (1, 16384, 3, 32, 64),  # ViG-T at 2048
    (1, 16700, 3, 16, 32),  # ViG-H-T stage 2 at 1333x800
    (1, 66800, 3, 16, 32),  # ViG-H-T stage 1 at 1333x800
)


def make_inputs(batch: int, tokens: int, heads: int, width: int, v_width: int) -> list[Tensor]:
    qkv = torch.randn(batch, tokens, heads * (2 * width + v_width))
    parts = qkv.split([heads * width, heads * width, heads * v_width], dim=-1)
    gates = torch.randn(batch, tokens, 2 * heads * width).chunk(2, dim=-1)
    return [x.unflatten(-1, (heads, -1)) for x in (*parts, *gates)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python tools/benchmark/bidirectional_gla.py --threads 2",
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--repeats", type=int, default=15, help="runs per figure (default 15)")
    parser.add_argument("--out", default="work_dirs/benchmark/bidirectional_gla.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    rows, results = [], []
    for shape in track(SHAPES, description="shapes"):
        inputs = make_inputs(*shape)
        grad = torch.randn(*shape[:3], shape[4])
        leaves = [x.detach().requires_grad_() for x in inputs]

        def forward(operator, inputs=inputs):
            with torch.inference_mode():
                operator(*inputs)

        def train(operator, leaves=leaves, grad=grad):
            torch.autograd.grad(operator(*leaves), leaves, grad)

        result = {"shape": dict(zip(("B", "N", "H", "K", "V"), shape, strict=True))}
        row = ["B{} N{} H{} K{} V{}".format(*shape)]
        for mode, run in (("forward", forward), ("forward_backward", train)):
            stats = time_interleaved(
                {
                    "ours": lambda run=run: run(bidirectional_gla),
                    "two_pass": lambda run=run: run(two_pass_gla),
                },
                args.repeats,
            )
            ratio = stats["two_pass"]["median"] / stats["ours"]["median"]
            result[mode] = {**stats, "ratio": ratio}
            row += [milliseconds(stats["ours"]), milliseconds(stats["two_pass"]), f"{ratio:.2f}"]
        rows.append(row)
        results.append(result)
    columns = ["shape", "forward ms", "two passes", "ratio", "fwd+bwd ms", "two passes", "ratio"]
    report(
        f"Bidirectional GLA, float32, {machine()['threads']} CPU threads: median (min-max)",
        columns, rows, {"results": results}, args.out,
    )


if __name__ == "__main__":
    main()
