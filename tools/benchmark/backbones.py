"""Time ViG-T against timm's DeiT-T on the CPU, and measure both models' peak memory.

float32, inference, batch 1, random weights. DeiT-T runs with torch's fused attention (SDPA) and,
for memory, also with plain softmax attention as in the paper. Timing: in turn in one process;
memory: one process a model, the growth of its resident size in its first forward pass.
"""

import argparse
import multiprocessing
from pathlib import Path

import timm
import torch
from common import machine, milliseconds, report, time_interleaved
from rich.progress import track

import vig_mm

MODELS = ("ViG-T", "DeiT-T", "DeiT-T softmax")


def build(name: str, size: int) -> torch.nn.Module:
    if name == "ViG-T":
        return vig_mm.ViG("tiny").eval()
    model = timm.create_model("deit_tiny_patch16_224", img_size=size).eval()
    for block in model.blocks:
        block.attn.fused_attn = name == "DeiT-T"
    return model


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
        vig_mm.ViG("tiny")(torch.randn(1, 3, 32, 32))  # libraries that load on first use
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python tools/benchmark/backbones.py --sizes 224 1024",
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 512, 1024, 2048])
    parser.add_argument("--memory-size", type=int, default=1024, help="image size for peak memory")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--repeats", type=int, help="runs per figure; default: fewer where slow")
    parser.add_argument("--profile", type=int, metavar="SIZE", help="profile ViG-T there, only")
    parser.add_argument("--out", default="work_dirs/benchmark/backbones.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    if args.profile:
        profile(args.profile, Path(args.out).with_suffix(".txt"))
        return
    data: dict = {"time": {}, "memory": {}}
    rows = []
    for size in track(args.sizes, description="sizes"):
        x = torch.randn(1, 3, size, size)
        rivals = {}
        for name in MODELS[:2]:
            model = build(name, size)
            rivals[name] = lambda model=model, x=x: model(x)
        with torch.inference_mode():
            stats = time_interleaved(rivals, args.repeats or max(3, 41 * 224**2 // size**2))
        ratio = stats["DeiT-T"]["median"] / stats["ViG-T"]["median"]
        data["time"][size] = {**stats, "ratio": ratio}
        times = map(milliseconds, stats.values())
        rows.append([f"time, ms, {size}x{size}", *times, f"{ratio:.2f}"])

    size = args.memory_size
    context = multiprocessing.get_context("spawn")
    peaks = {}
    for name in MODELS:
        with context.Pool(1) as pool:
            peaks[name] = pool.apply(_peak_memory, (name, size, args.threads))
    data["memory"] = {"size": size, "MiB": peaks}
    for name in MODELS[1:]:
        rows.append(
            [f"peak memory, MiB, {size}x{size}" + (", softmax" if "softmax" in name else ""),
             f"{peaks['ViG-T']:.0f}", f"{peaks[name]:.0f}", f"{peaks[name] / peaks['ViG-T']:.2f}"]
        )
    report(
        f"float32 inference, batch 1, {machine()['threads']} CPU threads: median (min-max)",
        ["", "ViG-T", "DeiT-T", "ratio"], rows, data, args.out,
    )


if __name__ == "__main__":
    main()
