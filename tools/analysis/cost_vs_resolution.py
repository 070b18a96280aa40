"""Measure FLOPs, peak memory, latency and throughput of classifiers over the size of the image.

Examples:
    python tools/analysis/cost_vs_resolution.py --minutes 7
    python tools/analysis/cost_vs_resolution.py --models ViG-T DeiT-T --sizes 224 1024
    python tools/analysis/cost_vs_resolution.py --plot work_dirs/cost/cost.json

ViG, ViG-H, DeiT (with torch's fused attention, SDPA, and with plain softmax attention as in the
paper), Swin, ConvNeXt, VOLO, GC ViT and MaxViT; random weights, inference, square images. On a CPU
in float32, on a GPU under bf16 autocast.

- FLOPs: multiply-adds, all models by one counter (torch's), which knows our operator.
- Latency: of a batch of one. Throughput: of a batch of --batch images at 224x224, fewer in
  proportion to their area, one at least. Medians of runs in turn (A B C A B C), with their range.
- Memory: the peak of what torch allocates in a pass of one image; weights and image not included.

What is worth most comes first: ViG-T and DeiT-T, then what the paper's claims need. The JSON is
written after every comparison. What fails or would take too long has a note there instead.
"""

import argparse
import json
import math
import os
import sys
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from cost_claims import WITHOUT_DOWN, evaluate
from cost_models import DEITS, MODELS, SOFTMAX, TIMM, VIGS, build
from measuring import (
    MIN_RUNS,
    Cpu,
    CudaGpu,
    held_bytes,
    limit_memory,
    make_device,
    multiply_adds,
    problem,
    significant,
)

# found by way of measuring
from common import Budget, earlier_results, machine, markdown, write  # isort: skip

SIZES = (224, 512, 1024, 2048)
TINY = ("ViG-T", "DeiT-T", "DeiT-T" + SOFTMAX)
PEERS = ("ViG-H-T", *TIMM)
GROUPS = (
    TINY,
    ("ViG-S", "DeiT-B", "DeiT-B" + SOFTMAX),
    PEERS,
    ("ViG-B", "DeiT-S", "DeiT-S" + SOFTMAX),
    ("ViG-H-S", "ViG-H-B"),
)
FIRST = (
    *((TINY, 224), (TINY, 1024), (GROUPS[1], 224), (TINY, 2048)),
    *((PEERS, size) for size in (224, 512, 1024)),
)
SECONDS = {"cpu": 2.0, "cuda": 0.4}  # for the timing of a model
BATCH = {"cpu": 4, "cuda": 128}  # of 224x224
FORWARD_DTYPE = {"cpu": "float32", "cuda": "bf16 autocast"}
TABLE = "cost"  # name of the markers in the page


class Contest(NamedTuple):
    """Models that run in turn at one image size."""

    models: tuple[str, ...]
    size: int


def contests(models: list[str], sizes: list[int]) -> list[Contest]:
    """The chosen models at the chosen sizes, what is worth most first."""
    order = [*FIRST, *((group, size) for size in sorted(sizes) for group in GROUPS)]
    chosen = {}  # a dict: each once, in order
    for group, size in order:
        kept = tuple(name for name in group if name in models)
        if kept and size in sizes:
            chosen[Contest(kept, size)] = None
    return list(chosen)


def batch_at(size: int, batch: int) -> int:
    """Images in a batch for throughput: of ``batch`` no more than have its pixels at 224x224."""
    return min(batch, max(1, batch * 224**2 // size**2))


def forward(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    with (
        torch.inference_mode(),
        torch.autocast(images.device.type, torch.bfloat16, enabled=images.is_cuda),
    ):
        return model(images)


def count(model: torch.nn.Module, size: int) -> dict:
    """Parameters, bytes of the weights, multiply-adds of an image; ViG's also without down_proj."""
    image = torch.empty(1, 3, size, size, device="meta")
    # module by module, not by operators that take several at once
    ours = [part for part in model.modules() if getattr(part, "backend", "") is None]
    for part in ours:
        part.backend = "torch"
    flops = multiply_adds(model, lambda meta: meta(image))
    for part in ours:
        part.backend = None
    counted = {
        "parameters": sum(x.numel() for x in model.parameters()),
        "weight_bytes": held_bytes(model),
        "flops": flops["Global"],
    }
    down = sum(x for name, x in flops.items() if name.endswith(".mlp.down_proj"))
    return counted | ({WITHOUT_DOWN: counted["flops"] - down} if down else {})


class Measurement:
    """Measures contests on a device within the time there is, and remembers how fast models are.

    Args:
        device: of `measuring.make_device`.
        batch: images of 224x224 in a batch for throughput.
        longest: a model whose pass would take more seconds is left out.
        budget: start nothing after it.
        seconds: for timing a model.
    """

    def __init__(
        self, device: Cpu | CudaGpu, batch: int, longest: float, budget: Budget, seconds: float
    ) -> None:
        self.device, self.batch, self.longest = device, batch, longest
        self.budget, self.seconds = budget, seconds
        self.rates: dict[str, float] = {}  # multiply-adds a second of a model when last timed

    def expected(self, name: str, flops: int) -> float:
        """Seconds of a pass at the rate of the model, or of the others; 0 before anything ran."""
        rate = self.rates.get(name) or median(self.rates.values() or [math.inf])
        return flops / rate

    def too_long(self, seconds: float, planned: float) -> str | None:
        """Why a pass of so many seconds is left out, after passes of ``planned`` seconds each."""
        if seconds > self.longest:
            return f"left out: about {seconds:.0f} s a pass"
        rest = (1 + MIN_RUNS) * (planned + seconds)
        if self.budget.end is not None and time.monotonic() + rest > self.budget.end:
            return "left out: time was up"
        return None

    def contest(self, contest: Contest) -> list[dict]:
        """A row a model: what was counted and measured, or ``missing``, why it was not."""
        size, rows, runs, firsts = contest.size, {}, {}, {}
        batch = batch_at(size, self.batch)
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(batch, 3, size, size, generator=generator).to(self.device.device)
        torch.manual_seed(0)
        for name in contest.models:
            rows[name] = row = {"model": name, "size": size}
            try:
                model = build(name, size)
                row |= count(model, size)
                expected = self.expected(name, row["flops"])
                if reason := self.too_long(expected, sum(firsts.values())):
                    row["missing"] = reason
                    continue
                model.eval().to(self.device.device)
                first = self.device.first(partial(forward, model, images[:1]))
            except Exception as error:  # of one model: noted in its row, the others go on
                row["missing"] = problem(error)
                continue
            row["peak_bytes"] = first["peak_bytes"]
            row["total_bytes"] = first["peak_bytes"] + row["weight_bytes"]
            for count_ in {1, batch}:
                runs[name, count_] = partial(forward, model, images[:count_])
                firsts[name, count_] = count_ * first["first"]
        timed = self.device.time(runs, firsts, self.seconds) if runs else {}
        for (name, count_), stats in timed.items():
            row = rows[name]
            if "median" not in stats:  # a GPU's memory was enough for one image only
                row["missing"] = stats["missing"]
                continue
            if count_ == 1:
                row["latency"] = stats
                self.rates[name] = row["flops"] / stats["median"]
            if count_ == batch:
                row["batch"] = batch
                row["throughput"] = stats
                row["images_per_s"] = batch / stats["median"]
        return list(rows.values())


def uncounted(contest: Contest) -> list[dict]:
    """Rows of a contest that time was too short for: counts only."""
    rows = []
    for name in contest.models:
        row: dict = {"model": name, "size": contest.size}
        try:
            row |= count(build(name, contest.size), contest.size)
            row["missing"] = "left out: time was up"
        except Exception as error:  # a size that the model does not take
            row["missing"] = problem(error)
        rows.append(row)
    return rows


def _millis(stats: dict) -> str:
    low, middle, high = (significant(1e3 * stats[key]) for key in ("min", "median", "max"))
    return f"{middle} ({low}-{high})"


def tables(data: dict) -> str:
    """The page's tables: the claims, then a table of models for every size."""
    about = ", ".join(f"{key} {value}" for key, value in data["machine"].items())
    settings = ", ".join(f"{key} {value}" for key, value in data["settings"].items())
    parts = [f"Measured on: {about}; {settings}.", "### The paper's claims"]
    columns = ["", "paper", "found, softmax", "found, SDPA", "on"]
    parts.append(
        markdown(
            columns,
            [
                [x["claim"], x["paper"], x["softmax_text"], x["sdpa_text"], x["on"]]
                for x in data["claims"]
            ],
        )
    )
    columns = ["", "parameters, M", "FLOPs, G", "memory, MiB", "latency, ms", "images/s", "batch"]
    for size in sorted({row["size"] for row in data["results"]}):
        lines = []
        for name in MODELS:
            for row in data["results"]:
                if (row["model"], row["size"]) == (name, size):
                    lines.append(_line(row))
        parts += [f"### {size}x{size}", markdown(columns, lines)]
    return "\n\n".join(parts)


def _line(row: dict) -> list[str]:
    def scaled(key: str, unit: float) -> str:
        return significant(row[key] / unit) if key in row else ""

    latency = _millis(row["latency"]) if "latency" in row else row.get("missing", "")
    return [
        row["model"],
        scaled("parameters", 1e6),
        scaled("flops", 1e9),
        scaled("peak_bytes", 2**20),
        latency,
        scaled("images_per_s", 1),
        str(row.get("batch", "")),
    ]


def styles() -> dict[str, dict]:
    """Colour by family, line by size, marker by family."""
    families = {
        "ViG": ("C0", "o"), "ViG-H": ("C9", "s"), "DeiT": ("C1", "^"), "DeiT softmax": ("C3", "v"),
    }  # fmt: skip
    lines = {"T": "-", "S": "--", "B": ":"}
    found = {}
    for name in (*VIGS, *DEITS):
        family, arch = name.replace(SOFTMAX, "").rsplit("-", 1)
        colour, marker = families[family + (SOFTMAX if SOFTMAX in name else "")]
        found[name] = dict(color=colour, marker=marker, linestyle=lines[arch])
    for name, colour, marker in zip(TIMM, ("C2", "C4", "C5", "C6", "C7"), "DPX*h", strict=True):
        found[name] = dict(color=colour, marker=marker, linestyle="-")
    return found


PANELS = (
    ("FLOPs", "G multiply-adds", lambda row: row["flops"] / 1e9),
    ("Peak memory of one image's pass, without weights", "MiB", lambda r: r["peak_bytes"] / 2**20),
    ("Latency, batch of one", "ms", lambda row: 1e3 * row["latency"]["median"]),
    ("Throughput", "images/s", lambda row: row["images_per_s"]),
)


def draw(data: dict, path: Path) -> None:
    """The four panels over the size of the image; bars are the range of the runs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter, NullLocator

    figure, panels = plt.subplots(2, 2, figsize=(13, 11), layout="constrained")
    sizes = sorted({row["size"] for row in data["results"]})
    style, handles = styles(), {}
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    for panel, (title, unit, value) in zip(panels.flat, PANELS, strict=True):
        for name in MODELS:
            if title == "FLOPs" and name.endswith(SOFTMAX):
                continue  # as many as with SDPA
            points = []
            for row in sorted(data["results"], key=lambda row: row["size"]):
                if row["model"] == name:
                    try:
                        points.append((row, value(row)))
                    except KeyError:  # left out, see its note
                        continue
            if not points:
                continue
            x, y = [row["size"] for row, _ in points], [y for _, y in points]
            (handles[name],) = panel.plot(x, y, markersize=6, linewidth=1.6, **style[name])
            if unit == "ms":
                spread = [
                    [1e3 * abs(row["latency"][end] - row["latency"]["median"]) for row, _ in points]
                    for end in ("min", "max")
                ]
                panel.errorbar(x, y, spread, fmt="none", ecolor=style[name]["color"], capsize=3)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xticks(sizes, [str(size) for size in sizes])
        panel.xaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_formatter(plain)
        panel.set_title(title, fontsize=13)
        panel.set_xlabel("height and width of the image, pixels", fontsize=11)
        panel.set_ylabel(unit, fontsize=11)
        panel.grid(which="major", alpha=0.3)
    shown = [name for name in MODELS if name in handles]
    labels = [
        f"{name}, SDPA" if name.startswith("DeiT") and SOFTMAX not in name else name
        for name in shown
    ]
    figure.legend(
        [handles[name] for name in shown], labels, loc="outside lower center", ncols=6,
        fontsize=10, handlelength=3.5,
    )  # fmt: skip
    about = data["machine"]
    device = about.get("gpu", f"{about['cpu']}, {about['threads']} threads")
    figure.suptitle(
        f"{device}, {data['settings']['precision']}, torch {about['torch']}, {about['date']}",
        fontsize=11,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def fill_page(page: Path, data: dict, picture: Path) -> None:
    """Renew what stands between the page's markers: the picture and the tables."""
    from model_table import fill

    link = Path(os.path.relpath(picture.resolve(), page.resolve().parent)).as_posix()
    content = f"![FLOPs, memory, latency and throughput over resolution]({link})\n\n{tables(data)}"
    try:
        text = fill(page.read_text(), TABLE, content)
    except ValueError:
        sys.exit(f"error: {page} needs lines '<!-- {TABLE}:begin -->' and '<!-- {TABLE}:end -->'")
    page.write_text(text)
    print(f"written: {page}")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models", nargs="+", default=list(MODELS), metavar="NAME",
        help=f"default: all, {', '.join(MODELS)}",
    )  # fmt: skip
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES), metavar="PIXELS")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    parser.add_argument("--threads", type=int, default=2, help="CPU: threads (default 2)")
    parser.add_argument("--batch", type=int, help="of 224x224 images (CPU: 4, GPU: 128)")
    parser.add_argument("--minutes", type=float, help="start no measurement after this time")
    parser.add_argument(
        "--longest", type=float, default=60, metavar="SECONDS",
        help="leave out what takes longer a pass (default 60)",
    )  # fmt: skip
    parser.add_argument(
        "--resume", action="store_true", help="keep comparisons that --out has of this machine"
    )
    parser.add_argument("--out", type=Path, default="work_dirs/cost/cost.json", metavar="JSON")
    parser.add_argument("--plot", type=Path, metavar="JSON", help="measure nothing, draw this file")
    parser.add_argument("--picture", type=Path, metavar="PNG", help="default: beside the JSON")
    parser.add_argument("--page", type=Path, metavar="MD", help="page whose table is to be renewed")
    args = parser.parse_args()
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a CUDA GPU, and torch sees none")
    if unknown := [name for name in args.models if name not in MODELS]:
        parser.error(f"--models: unknown {', '.join(unknown)}; there are {', '.join(MODELS)}")
    if min(args.sizes) < 32:
        parser.error(f"--sizes: at least 32 pixels, got {min(args.sizes)}")
    if args.batch is not None and args.batch < 1:
        parser.error(f"--batch: at least 1, got {args.batch}")
    if args.plot and not args.plot.is_file():
        parser.error(f"--plot: {args.plot} is not a file; measure first (see --help)")
    args.batch = args.batch or BATCH[args.device]
    return args


def measure(args: argparse.Namespace) -> dict:
    """Run the contests and write the JSON after each; returns what it holds."""
    device, budget = make_device(args.device), Budget(args.minutes)
    if args.device == "cpu":
        torch.set_num_threads(args.threads)
        limit_memory()
    settings = {
        "precision": FORWARD_DTYPE[args.device],
        "batch at 224x224": args.batch,
        "timm": version("timm"),
    }
    results = earlier_results(args.out, args.device) if args.resume else []
    measured = {(row["model"], row["size"]) for row in results if "latency" in row}
    # libraries that load, and kernels that compile, on first use
    with torch.device(device.device):
        device.first(partial(forward, build("ViG-T", 32).eval(), torch.zeros(1, 3, 32, 32)))
    measurement = Measurement(device, args.batch, args.longest, budget, SECONDS[args.device])
    for contest in contests(args.models, args.sizes):
        if all((name, contest.size) in measured for name in contest.models):
            continue
        rows = uncounted(contest) if budget.over() else measurement.contest(contest)
        new = {(row["model"], row["size"]) for row in rows}
        results = [row for row in results if (row["model"], row["size"]) not in new] + rows
        data = {
            "machine": machine(args.device),
            "settings": settings,
            "claims": evaluate(results, args.device),
            "results": results,
        }
        write(args.out, json.dumps(data, indent=1) + "\n")
        for row in rows:
            print(f"{row['size']:>5}", " | ".join(cell for cell in _line(row) if cell), flush=True)
    print(f"written: {args.out}")
    return json.loads(args.out.read_text())


def main() -> None:
    args = parse_args()
    data = json.loads(args.plot.read_text()) if args.plot else measure(args)
    picture = args.picture or (args.plot or args.out).with_suffix(".png")
    draw(data, picture)
    print(f"written: {picture}")
    if args.page:
        fill_page(args.page, data, picture)
    else:
        print(tables(data))


if __name__ == "__main__":
    main()
