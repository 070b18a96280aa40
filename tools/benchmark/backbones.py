"""Time whole models and measure their peak memory, against timm's DeiT.

On a CPU: float32, inference, batch 1, ViG-T against DeiT-T with torch's fused attention (SDPA) and,
for memory, also with plain softmax attention as in the paper. Timing: in turn in one process;
memory: one process a model, the growth of its resident size in its first forward pass.
On a GPU (the default where there is one): bf16, forward and training step of ViG and ViG-H in all
sizes against DeiT with both kinds of attention; see `gpu_backbones`. Random weights.
"""

import argparse
import multiprocessing
import sys
from pathlib import Path

import torch
from common import Budget, machine, milliseconds, report, time_interleaved
from rivals import deit

MODELS = ("ViG-T", "DeiT-T", "DeiT-T softmax")


def build(name: str, size: int) -> torch.nn.Module:
    if name == "ViG-T":
        import vig_mm

        return vig_mm.ViG("tiny").eval()
    return deit("tiny", size, softmax="softmax" in name).eval()


def _resident(key: str) -> int:
    """KiB of ``VmRSS`` or ``VmHWM`` (its high-water mark) of this process; Linux only."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1])
    raise RuntimeError(f"no {key} in /proc/self/status")


def _peak_memory(name: str, size: int, threads: int) -> float:
    torch.set_num_threads(threads)
    model, x = build(name, size), torch.randn(1, 3, size, size)
    with torch.inference_mode():
        build("ViG-T", 32)(torch.randn(1, 3, 32, 32))  # libraries that load on first use
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        before = _resident("VmRSS")
        model(x)
    return (_resident("VmHWM") - before) / 1024


def profile(size: int, out: Path) -> None:
    """Write where ViG-T's time goes, operation by operation."""
    model, x = build("ViG-T", size), torch.randn(1, 3, size, size)
    with torch.inference_mode():
        for _ in range(2):
            model(x)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            model(x)
    table = profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(f"ViG-T, {size}x{size}, one forward pass, {machine()}\n{table}\n")
    print(f"written: {out}")


def cpu(sizes: list[int], memory_size: int, threads: int, repeats: int | None, out: str) -> None:
    data: dict = {"time": {}, "memory": {}}
    rows = []
    for size in sizes:
        x = torch.randn(1, 3, size, size)
        rivals = {}
        for name in MODELS[:2]:
            model = build(name, size)
            rivals[name] = lambda model=model, x=x: model(x)
        with torch.inference_mode():
            stats = time_interleaved(rivals, repeats or max(3, 41 * 224**2 // size**2))
        ratio = stats["DeiT-T"]["median"] / stats["ViG-T"]["median"]
        data["time"][size] = {**stats, "ratio": ratio}
        times = map(milliseconds, stats.values())
        rows.append([f"time, ms, {size}x{size}", *times, f"{ratio:.2f}"])
        print("measured:", *rows[-1], flush=True)

    context = multiprocessing.get_context("spawn")
    peaks = {}
    for name in MODELS:
        with context.Pool(1) as pool:
            peaks[name] = pool.apply(_peak_memory, (name, memory_size, threads))
    data["memory"] = {"size": memory_size, "MiB": peaks}
    for name in MODELS[1:]:
        label = f"peak memory, MiB, {memory_size}x{memory_size}"
        label += ", softmax" if "softmax" in name else ""
        ratio = peaks[name] / peaks["ViG-T"]
        rows.append([label, f"{peaks['ViG-T']:.0f}", f"{peaks[name]:.0f}", f"{ratio:.2f}"])
    report(
        f"float32 inference, batch 1, {machine()['threads']} CPU threads: median (min-max)",
        ["", "ViG-T", "DeiT-T", "ratio"], rows, data, out,
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python tools/benchmark/backbones.py --sizes 224 1024",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 512, 1024, 2048])
    parser.add_argument("--memory-size", type=int, default=1024, help="CPU: size for peak memory")
    parser.add_argument("--threads", type=int, default=2, help="CPU: threads (default 2)")
    parser.add_argument("--repeats", type=int, help="CPU: runs a figure; default: fewer where slow")
    parser.add_argument("--minutes", type=float, help="GPU: start no comparison after this time")
    parser.add_argument(
        "--resume", action="store_true", help="GPU: keep what --out has, measure the rest"
    )
    parser.add_argument("--profile", type=int, metavar="SIZE", help="profile ViG-T there, only")
    parser.add_argument("--out", help="default: work_dirs/benchmark/backbones[_gpu].json")
    args = parser.parse_args()
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a CUDA GPU, and torch sees none")
    stem = "backbones" if device == "cpu" else "backbones_gpu"
    out = args.out or f"work_dirs/benchmark/{stem}.json"
    torch.manual_seed(0)
    if device == "cpu":
        torch.set_num_threads(args.threads)
        if args.profile:
            profile(args.profile, Path(out).with_suffix(".txt"))
        else:
            cpu(args.sizes, args.memory_size, args.threads, args.repeats, out)
        return 0

    import gpu_backbones
    from gpu import Gpu

    sizes = [args.profile] if args.profile else args.sizes
    if unknown := set(sizes) - set(gpu_backbones.BATCHES):
        known = ", ".join(map(str, gpu_backbones.BATCHES))
        parser.error(f"on a GPU the sizes are {known}; got {', '.join(map(str, unknown))}")
    torch.backends.cudnn.benchmark = True
    if args.profile:
        batch = gpu_backbones.BATCHES[args.profile]
        gpu_backbones.profile(Gpu(), args.profile, batch, Path(out).with_suffix(".txt"))
        return 0
    contests = [x for x in gpu_backbones.CONTESTS if x.size in sizes]
    ran = gpu_backbones.benchmark(Gpu(), contests, out, Budget(args.minutes), args.resume)
    return 0 if ran else 1


if __name__ == "__main__":
    sys.exit(main())
