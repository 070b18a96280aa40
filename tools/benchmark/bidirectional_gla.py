"""Time the operator at the shapes of all six models: against plain PyTorch, attention and FLA.

    python tools/benchmark/bidirectional_gla.py --shape 1 4096 3 32 64

On a CPU: the machine code against plain PyTorch, in float32 and bfloat16; fails where it is not as
many times as fast as it should be. On a GPU: the Triton kernels in bfloat16, forward, and forward
with backward, by `triton.testing.do_bench`, against plain PyTorch, torch's flash attention with
heads of the value width (left out where N^2 takes too long) and, with --fla, two passes of
flash-linear-attention's chunk_gla and of its recurrence; and the share of the bandwidth of copying
that the least possible traffic is, the time in a CUDA graph at batch 1, peak memory. Errors are
relative, of output and gradients, against plain PyTorch in float32, of the first and last image.
"""

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from shapes import MODELS, Shape, all_shapes, model_shapes
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.append(str(Path(__file__).resolve().parents[1] / "analysis_tools"))

import common  # noqa: E402
from common import Run  # noqa: E402

from vig_mm.kernels import bidirectional_gla  # noqa: E402

Operator = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
NAMES = ("out", "dq", "dk", "dv", "dgate_f", "dgate_b")
MAX_ERROR = 2e-2  # relative, of bfloat16 against float32; a wrong kernel is far beyond it
MAX_ATTENTION_FLOPS = 1e13  # a forward pass of 0.05 to 0.1 s on an H100
FLOORS = {  # how many times as fast the CPU's machine code is at least, forward and backward
    Shape(1, 65536, 3, 16, 32): (6, 4),
    Shape(1, 16384, 6, 16, 32): (6, 4),
    Shape(1, 4096, 12, 16, 32): (6, 4),
    Shape(1, 4096, 3, 32, 64): (4, 2.8),
}


def cpu_shapes() -> list[Shape]:
    models = (model_shapes(m, (x, x), 1) for x in (224, 512, 1024, 2048) for m in MODELS)
    return sorted({*FLOORS, *(shape for shapes in models for shape in shapes)})


def make_inputs(shape: Shape, dtype: torch.dtype, device: str) -> tuple[list[Tensor], Tensor]:
    """q, k, v and gate logits as the strided views that the mixer hands over, and do."""
    batch, tokens, heads, width, v_width = shape
    generator = torch.Generator(device).manual_seed(0)

    def randn(channels: int) -> Tensor:
        size = (batch, tokens, heads * channels)
        return torch.randn(size, generator=generator, device=device).to(dtype)

    parts = randn(2 * width + v_width).split([heads * w for w in (width, width, v_width)], dim=-1)
    views = [x.unflatten(-1, (heads, -1)) for x in (*parts, *randn(2 * width).chunk(2, dim=-1))]
    return views, randn(v_width).unflatten(-1, (heads, -1))


def minimum_bytes(shape: Shape, training: bool) -> int:
    """What a pass must move in bfloat16: every input read once, every output written once.

    Forward: q, k and two gates in, v in, o out: 8 K + 4 V bytes a token and head. Backward: these
    inputs and do in, five gradients out: 16 K + 6 V. Training is both.
    """
    batch, tokens, heads, k, v = shape
    return batch * tokens * heads * (8 * k + 4 * v + training * (16 * k + 6 * v))


def fla_operator(chunk_gla: Callable) -> Operator:
    """Both directions as the public ViG code calls it: log-gates in the logits' dtype, two flips.

    Args:
        chunk_gla: of q, k, v and log-gates ``[B, N, H, width]``; left to right, scaled by
            K^-1/2; returns the output first.
    """

    def run(q: Tensor, k: Tensor, v: Tensor, gate_f: Tensor, gate_b: Tensor) -> Tensor:
        forward = chunk_gla(q, k, v, F.logsigmoid(gate_f) / 16.0)[0]
        flipped = (x.flip(1) for x in (q, k, v))
        backward = chunk_gla(*flipped, F.logsigmoid(gate_b.flip(1)) / 16.0)[0]
        return (forward + backward.flip(1)) / 2

    return run


def attention(q: Tensor, k: Tensor, v: Tensor, *gates: Tensor) -> Tensor:
    """Softmax attention of v with itself, torch's flash kernel on a GPU. ``[B, N, H, V]``."""
    v = v.transpose(1, 2)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION) if v.is_cuda else contextlib.nullcontext():
        return F.scaled_dot_product_attention(v, v, v).transpose(1, 2)


def inference(operator: Operator, *inputs: Tensor) -> Tensor:
    with torch.inference_mode():
        return operator(*inputs)


def with_gradients(operator: Operator, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    """Output, and gradients of the inputs (None of those that do not matter)."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = operator(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad, allow_unused=True)]


def errors(operator: Operator, inputs: list[Tensor], grad: Tensor) -> dict[str, float]:
    """Relative errors of output and gradients, of the first and the last image."""
    ends = sorted({0, len(grad) - 1})
    exact = [x[ends].float() for x in (*inputs, grad)]
    plain = partial(bidirectional_gla, backend="chunked")
    expected = with_gradients(plain, exact[:-1], exact[-1])
    found = with_gradients(operator, inputs, grad)
    pairs = zip(NAMES, found, expected, strict=True)
    return {name: ((x[ends].float() - y).norm() / y.norm()).item() for name, x, y in pairs}


def time_kernels(runs: dict[str, Run]) -> dict[str, dict]:
    """Seconds and peak bytes of calls on a GPU, or ``missing``: why there is no figure."""
    from triton.testing import do_bench

    found = {}
    for name, run in runs.items():
        try:
            times = do_bench(run, quantiles=[0.5, 0.0, 1.0])
            found[name] = dict(zip(("median", "min", "max"), (x / 1e3 for x in times), strict=True))
            found[name]["peak_bytes"] = common.peak_bytes(run, "cuda")
        except Exception as error:
            found[name] = {"missing": common.problem(error)}
            torch.cuda.synchronize()  # raises where the device itself is lost
    return found


def copy_bandwidth() -> float:
    """Bytes a second, read plus written, of copying 1 GiB."""
    from triton.testing import do_bench

    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * 2**30 / (do_bench(lambda: target.copy_(source)) / 1e3)


def measure_gpu(shape: Shape, rivals: dict[str, Operator], bandwidth: float) -> dict:
    """One row: ours and its rivals in both modes, errors, share of the bandwidth, graph time."""
    from triton.testing import do_bench_cudagraph

    inputs, grad = make_inputs(shape, torch.bfloat16, "cuda")
    row: dict = {"shape": shape._asdict(), "error": errors(rivals["ours"], inputs, grad)}
    if 4 * shape.B * shape.H * shape.N**2 * shape.V > MAX_ATTENTION_FLOPS:
        rivals = {name: x for name, x in rivals.items() if name != "sdpa"}
    passes: dict[str, dict[str, Run]] = {
        "forward": {name: partial(inference, x, *inputs) for name, x in rivals.items()},
        "forward+backward": {
            name: partial(with_gradients, x, inputs, grad) for name, x in rivals.items()
        },
    }
    for mode, runs in passes.items():
        row[mode] = time_kernels(runs)
        if seconds := row[mode]["ours"].get("median"):
            least = minimum_bytes(shape, mode != "forward")
            row[mode]["ours"]["of_copy"] = least / seconds / bandwidth
            if shape.B == 1:
                row[mode]["ours"]["graph"] = do_bench_cudagraph(runs["ours"]) / 1e3
    return row


def measure_cpu(shape: Shape, dtype: torch.dtype, seconds: float) -> dict:
    """One row: the machine code ("ours") beside plain PyTorch, forward and backward pass."""
    inputs, grad = make_inputs(shape, dtype, "cpu")
    row: dict = {"shape": shape._asdict(), "dtype": str(dtype)[6:]}
    row["error"] = errors(partial(bidirectional_gla, backend="cpu"), inputs, grad)
    ops = torch.ops.vig_mm
    passes = (ops.bidirectional_gla, inputs), (ops.bidirectional_gla_backward, [grad, *inputs])
    for mode, (function, tensors) in zip(("forward", "backward"), passes, strict=True):
        runs = {
            name: partial(inference, function, *tensors, backend)
            for name, backend in (("ours", "cpu"), ("plain", "chunked"))
        }
        row[mode] = common.measure(runs, seconds, "cpu")
    return row


COLUMNS = ["shape and pass", "ours, ms", "others' time over ours", "% of copy", "graph ms", "MiB"]


def cells(row: dict) -> list[list[str]]:
    """A line a mode: milliseconds of ours, those of the rivals over ours."""
    lines = []
    for mode, times in row.items():
        if not isinstance(times, dict) or "ours" not in times:
            continue
        label, ours = (
            f"{Shape(**row['shape'])} {row.get('dtype', 'bfloat16')} {mode}",
            times["ours"],
        )
        if "median" not in ours:
            lines.append([label, ours["missing"], "", "", "", ""])
            continue
        ratios = (
            f"{name} {x['min'] / ours['min']:.2f}" if "min" in x else f"{name}: {x['missing']}"
            for name, x in times.items()
            if name != "ours"
        )
        share = f"{100 * ours['of_copy']:.0f}" if "of_copy" in ours else ""
        graph = f"{1e3 * ours['graph']:.3f}" if "graph" in ours else ""
        peak = f"{ours['peak_bytes'] / 2**20:.1f}"
        lines.append([label, f"{1e3 * ours['min']:.3f}", ", ".join(ratios), share, graph, peak])
    return lines


def is_right(row: dict) -> bool:
    """Whether ours ran, agreed with float32, and was as fast as it should be."""
    right = all(x <= MAX_ERROR for x in row["error"].values())
    floors = FLOORS.get(Shape(**row["shape"]), (1, 1)) if "dtype" in row else ()
    for mode, floor in zip(("forward", "backward"), floors, strict=False):
        right &= row[mode]["plain"]["min"] / row[mode]["ours"]["min"] >= floor
    return right and all("median" in x["ours"] for x in row.values() if "ours" in x)


def run_once(shape: Shape) -> None:
    with contextlib.suppress(Exception):  # reported where it is measured
        inputs, grad = make_inputs(shape, torch.bfloat16, "cuda")
        with_gradients(partial(bidirectional_gla, backend="triton"), inputs, grad)


def compile_all(shapes: list[Shape]) -> None:
    """In several processes: Triton keeps on disk what it compiles."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(8, os.cpu_count() or 1), context) as pool:
        list(pool.map(run_once, shapes))


def main() -> int:
    parser = common.make_parser(__doc__)
    parser.add_argument(
        "--shape", type=int, nargs=5, action="append", metavar=tuple("BNHKV"),
        help="instead of those of the models; may be given several times",
    )  # fmt: skip
    parser.add_argument("--fla", action="store_true", help="GPU: flash-linear-attention, too")
    parser.add_argument("--seconds", type=float, default=1.0, help="CPU: for a timing (1)")
    parser.add_argument("--minutes", type=float, help="start no shape after this time")
    parser.add_argument("--out", type=Path, metavar="JSON", help="work_dirs/benchmark/...")
    common.add_device(parser)
    args = parser.parse_args()
    common.set_device(parser, args)
    gpu, budget, places = args.device == "cuda", common.Budget(args.minutes), all_shapes()
    shapes = [Shape(*x) for x in args.shape or ()] or (list(places) if gpu else cpu_shapes())
    rivals: dict[str, Operator] = {
        "ours": partial(bidirectional_gla, backend="triton"),
        "plain": partial(bidirectional_gla, backend="chunked"),
        "sdpa": attention,
    }
    if args.fla:
        try:
            from fla.ops.gla import chunk_gla, fused_recurrent_gla
        except ImportError:
            parser.error("--fla needs flash-linear-attention (the package fla), not installed here")
        rivals["fla"] = fla_operator(chunk_gla)
        rivals["fla recurrent"] = fla_operator(fused_recurrent_gla)
    out = args.out or Path(f"work_dirs/benchmark/bidirectional_gla_{args.device}.json")
    about, results, bandwidth = common.machine(args.device), [], 0.0
    if gpu:
        compile_all(shapes)
        bandwidth = copy_bandwidth()
    for shape in shapes:
        if budget.over():
            print("time is up", flush=True)
            break
        rows = (
            [measure_gpu(shape, rivals, bandwidth)]
            if gpu
            else [measure_cpu(shape, x, args.seconds) for x in (torch.float32, torch.bfloat16)]
        )
        for row in rows:
            results.append({**row, "where": places.get(shape, [])})
            print(*(" | ".join(line) for line in cells(row)), sep="\n", flush=True)
        common.write_json(out, machine=about, copy_bandwidth=bandwidth, results=results)
    table = common.markdown(COLUMNS, [line for row in results for line in cells(row)])
    print(f"{common.describe(about)}\n{table}\nwritten: {out}")
    wrong = [str(Shape(**row["shape"])) for row in results if not is_right(row)]
    print("all right" if not wrong else f"WRONG, OR TOO SLOW: {', '.join(wrong)}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
