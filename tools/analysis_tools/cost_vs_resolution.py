"""Measure FLOPs, peak memory, latency and throughput of classifiers over the size of the image.

Examples:
    python tools/analysis_tools/cost_vs_resolution.py --minutes 7
    python tools/analysis_tools/cost_vs_resolution.py --models ViG-T DeiT-T --sizes 224 1024
    python tools/analysis_tools/cost_vs_resolution.py --plot cost.json cost_bf16.json

ViG, ViG-H, DeiT (with torch's fused attention, SDPA, and with plain softmax attention as in the
paper), Swin, ConvNeXt, VOLO, GC ViT and MaxViT; random weights, inference, square images.

- FLOPs: multiply-adds, all models by one counter (torch's), which knows our operator.
- Latency: of a batch of one. Throughput: of a batch of --batch images at 224x224, fewer in
  proportion to their area, one at least. Medians of runs in turn (A B C A B C), with their range.
- Memory: the peak of what torch allocates in a pass of one image; weights and image not included.
- --training: seconds and peak memory of a step on that batch (cross entropy, AdamW), too.

What is worth most comes first: ViG-T and DeiT-T, then what the paper's claims need. The JSON is
written after every comparison. What fails or would take too long has a note there instead.
"""

import argparse
import os
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from common import (
    Budget,
    add_device,
    at_least,
    describe,
    existing,
    fill_page,
    gcvit_windows,
    machine,
    make_parser,
    markdown,
    measure,
    new_figure,
    problem,
    read_json,
    save_figure,
    set_device,
    significant,
    weight_bytes,
    write_json,
)
from torch import Tensor, nn

ARCHS = {"T": "tiny", "S": "small", "B": "base"}
SOFTMAX = " softmax"  # DeiT with plain softmax attention, as in the paper, instead of SDPA
VIGS = ("ViG-T", "ViG-S", "ViG-B", "ViG-H-T", "ViG-H-S", "ViG-H-B")
DEITS = tuple(f"DeiT-{arch}{kind}" for arch in ARCHS for kind in ("", SOFTMAX))
TIMM = {
    "Swin-T": "swin_tiny_patch4_window7_224",
    "ConvNeXt-T": "convnext_tiny",
    "VOLO-D1": "volo_d1_224",
    "GC ViT-T": "gcvit_tiny",
    "MaxViT-T": "maxvit_rmlp_tiny_rw_256",
}
MODELS = (*VIGS, *DEITS, *TIMM)
SIZES = (224, 512, 1024, 2048)
TINY, BASE = ("ViG-T", "DeiT-T", "DeiT-T" + SOFTMAX), ("ViG-S", "DeiT-B", "DeiT-B" + SOFTMAX)
PEERS = ("ViG-H-T", *TIMM)
GROUPS = (TINY, BASE, PEERS, ("ViG-B", "DeiT-S", "DeiT-S" + SOFTMAX), ("ViG-H-S", "ViG-H-B"))
FIRST = ((TINY, 224), (TINY, 1024), (BASE, 224), (TINY, 2048), (PEERS, 224), (PEERS, 1024))
SECONDS = {"cpu": 2.0, "cuda": 0.4}  # for the timing of a model
BATCH = {"cpu": 4, "cuda": 128}  # of 224x224
CLASSES = 1000
TABLE = "cost"  # name of the markers in the page
WITHOUT_DOWN = "flops_without_down_proj"


# Models -----------------------------------------------------------------------------------------


class Classifier(nn.Module):
    """A ViG backbone with the public models' head: mean over the tokens, linear layer."""

    def __init__(self, backbone: nn.Module, channels: int) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x)[-1].mean((2, 3)))


def build(name: str, size: int) -> nn.Module:
    """A classifier of 1000 classes for square images of ``size`` pixels; random weights.

    Position embeddings fit ``size``. Windows and grids stay as small as in the papers, 7 or 8
    tokens wide, or cost would not be that of the published model.

    Raises:
        ValueError: the model does not take images of this size.
    """
    arch = ARCHS.get(name.replace(SOFTMAX, "")[-1], "")
    if name.startswith("ViG"):
        from vig_mm import nets

        if name.startswith("ViG-H"):
            hier = nets.HierViG(arch, out_indices=-1, drop_path_rate=0.0)
            return Classifier(hier, hier.channels[-1])
        plain = nets.ViG(arch, img_size=size)
        return Classifier(plain, plain.embed_dims)
    import timm

    if name.startswith("DeiT"):
        model = timm.create_model(f"deit_{arch}_patch16_224", img_size=size)
        for block in model.blocks:
            if not hasattr(block.attn, "fused_attn"):
                raise RuntimeError(f"timm {timm.__version__} has no switch fused_attn; update this")
            block.attn.fused_attn = not name.endswith(SOFTMAX)
        return model
    settings: dict = {} if name == "ConvNeXt-T" else {"img_size": size}
    if name == "GC ViT-T":
        settings["window_size"] = gcvit_windows(size)
    elif name == "MaxViT-T":
        sides = [side for side in (224, 256) if size % side == 0]
        if not sides:
            raise ValueError(f"MaxViT: no windows of 7 or 8 tile an image of {size}")
        settings["img_size"] = sides[0]  # sets the windows; any multiple of it runs
    return timm.create_model(TIMM[name], **settings)


def count(model: nn.Module, size: int) -> dict:
    """Parameters, bytes of the weights, multiply-adds of an image; ViG's also without down_proj."""
    from torch.utils.flop_counter import FlopCounterMode

    parts = [part for part in model.modules() if getattr(part, "backend", "") is None]
    for part in parts:  # module by module, not by operators that take several at once
        part.backend = "torch"
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.empty(1, 3, size, size, device="meta"))
    flops = {name: sum(ops.values()) // 2 for name, ops in counter.get_flop_counts().items()}
    counted = {
        "parameters": sum(x.numel() for x in model.parameters()),
        "weight_bytes": weight_bytes(model),
        "flops": flops["Global"],
    }
    down = sum(x for name, x in flops.items() if name.endswith(".mlp.down_proj"))
    return counted | ({WITHOUT_DOWN: counted["flops"] - down} if down else {})


# Measuring --------------------------------------------------------------------------------------


def contests(models: list[str], sizes: list[int]) -> dict[tuple[tuple[str, ...], int], None]:
    """Models that run in turn, and a size: the chosen ones, what is worth most first."""
    order = [*FIRST, *((group, size) for size in sorted(sizes) for group in GROUPS)]
    kept = ((tuple(name for name in group if name in models), size) for group, size in order)
    return {(names, size): None for names, size in kept if names and size in sizes}


def batch_at(size: int, batch: int) -> int:
    """Images in a batch for throughput: of ``batch`` no more than have its pixels at 224x224."""
    return min(batch, max(1, batch * 224**2 // size**2))


def make_inference(model: nn.Module, images: Tensor, bf16: bool) -> partial:
    def run() -> Tensor:
        with (
            torch.inference_mode(),
            torch.autocast(images.device.type, torch.bfloat16, enabled=bf16),
        ):
            return model.eval()(images)

    return run


def make_training(model: nn.Module, images: Tensor, bf16: bool) -> partial:
    labels = torch.zeros(len(images), dtype=torch.long, device=images.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def run() -> None:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            output = model.train()(images)
            output = output[0] if isinstance(output, tuple) else output  # VOLO's second head
        F.cross_entropy(output.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


class Measurement:
    """Measures contests within the time there is, and remembers how fast models are."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.budget = args, Budget(args.minutes)
        self.rates: dict[str, float] = {}  # multiply-adds a second of a model when last timed

    def left_out(self, name: str, flops: int) -> str | None:
        """Why a model is not measured, by the rate of the model, or of the others."""
        rate = self.rates.get(name) or median(self.rates.values() or [float("inf")])
        seconds = flops / rate
        if seconds > self.args.longest:
            return f"left out: about {seconds:.0f} s a pass"
        return "left out: time was up" if self.budget.over(4 * seconds) else None

    def contest(self, names: tuple[str, ...], size: int) -> list[dict]:
        """A row a model: what was counted and measured, or ``missing``, why it was not."""
        args, batch = self.args, batch_at(size, self.args.batch)
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(batch, 3, size, size, generator=generator).to(args.device)
        rows, models, bf16 = {}, {}, args.precision == "bfloat16"
        for name in names:
            rows[name] = row = {"model": name, "size": size}
            try:
                with torch.device("meta"):
                    row |= count(build(name, size), size)
                if reason := self.left_out(name, row["flops"]):
                    row["missing"] = reason
                    continue
                torch.manual_seed(0)
                models[name] = build(name, size).to(args.device)
            except Exception as error:  # of one model: noted in its row, the others go on
                row["missing"] = problem(error)
        kinds = {"latency": (make_inference, 1)}
        kinds |= {"throughput": (make_inference, batch)} if batch > 1 else {}
        kinds |= {"training": (make_training, batch)} if args.training else {}
        for kind, (make, count_) in kinds.items():
            runs = {name: make(model, images[:count_], bf16) for name, model in models.items()}
            for name, found in measure(runs, SECONDS[args.device], args.device).items():
                models[name].zero_grad()
                if "missing" in found:
                    rows[name].setdefault("missing", f"{kind} {found['missing']}")
                else:
                    rows[name][kind] = found
        for name, row in rows.items():
            if "latency" not in row:
                continue
            self.rates[name] = row["flops"] / row["latency"]["median"]
            row["peak_bytes"] = row["latency"].pop("peak_bytes")
            row["total_bytes"] = row["peak_bytes"] + row["weight_bytes"]
            row |= {"batch": batch, "throughput": row.get("throughput", row["latency"])}
            row["images_per_s"] = batch / row["throughput"]["median"]
        return list(rows.values())


def run_all(args: argparse.Namespace) -> dict:
    """Run the contests and write the JSON after each; returns what it holds."""
    models = [name for name in args.models if name.startswith("ViG") or find_spec("timm")]
    about, results = machine(args.device), []
    if args.resume and args.out.exists():
        earlier = read_json(args.out)
        if {**earlier["machine"], "date": ""} == {**about, "date": ""}:
            results = earlier["results"]
        else:
            print(f"{args.out} is of another machine or other versions: measuring all again")
    measured = {(row["model"], row["size"]) for row in results if "latency" in row}
    measurement = Measurement(args)
    for names, size in contests(models, args.sizes):
        if all((name, size) in measured for name in names):
            continue
        rows = measurement.contest(names, size)
        new = {(row["model"], row["size"]) for row in rows}
        results = [row for row in results if (row["model"], row["size"]) not in new] + rows
        settings = {"precision": args.precision, "batch at 224x224": args.batch}
        write_json(args.out, machine=about, settings=settings, results=results)
        print(table({"machine": about, "settings": settings, "results": rows}), flush=True)
    print(f"written: {args.out}")
    return read_json(args.out)


# Tables and picture -----------------------------------------------------------------------------


def table(data: dict) -> str:
    """A line a model; of every size FLOPs, memory and latency, and what failed below."""
    results = data["results"]
    sizes, lines = sorted({row["size"] for row in results}), []
    notes: dict[str, list[str]] = {}
    for name in MODELS:
        rows = {row["size"]: row for row in results if row["model"] == name}
        if not rows:
            continue
        counted = [row["parameters"] for row in rows.values() if "parameters" in row]
        cells = [name, significant(min(counted) / 1e6) if counted else ""]
        for size in sizes:
            row = rows.get(size, {})
            values = [row["flops"] / 1e9] if "flops" in row else []
            if "latency" in row:
                values += [row["peak_bytes"] / 2**20, 1e3 * row["latency"]["median"]]
            cells.append(", ".join(map(significant, values)))
            if "missing" in row:
                notes.setdefault(row["missing"], []).append(f"{name} at {size}")
        lines.append(cells)
    text = markdown(["", "parameters, M", *(f"{size}x{size}" for size in sizes)], lines)
    about = f"Measured on: {describe(data['machine'], data['settings'])}."
    return "\n\n".join([about, text, *(f"{x}: {', '.join(y)}." for x, y in notes.items())])


SERIES = {
    "ViG-T": ("C0", "o-"), "DeiT-T": ("C1", "^-"), "DeiT-T" + SOFTMAX: ("C3", "v-"),
    "ViG-H-T": ("C9", "o--"), "Swin-T": ("C2", "D--"), "ConvNeXt-T": ("C4", "P--"),
    "VOLO-D1": ("C5", "X--"), "MaxViT-T": ("C7", "h--"),
}  # fmt: skip
PANELS = (
    ("FLOPs", "G multiply-adds", lambda row: row["flops"] / 1e9),
    ("Memory", "MiB, of one image's pass, without weights", lambda r: r["peak_bytes"] / 2**20),
    ("Latency", "ms, of one image", lambda row: 1e3 * row["latency"]["median"]),
)


def takeaway(name: str, points: dict[str, dict[int, float]]) -> str:
    """What a panel says of ViG-T and DeiT-T (SDPA) at the smallest and the largest size."""
    ours, rival = points.get("ViG-T", {}), points.get("DeiT-T", {})
    sizes = sorted(ours.keys() & rival.keys())
    parts = []
    for size in dict.fromkeys([*sizes[:1], *sizes[-1:]]):
        ratio = rival[size] / ours[size]
        less = "ViG-T" if ratio >= 1 else "DeiT-T"
        verb = "faster" if name.startswith("Latency") else "less"
        parts.append(f"{less} {max(ratio, 1 / ratio):.1f}x {verb} at {size}")
    return f"{name}: {', '.join(parts)}" if parts else name


def draw(files: list[dict], path: Path) -> None:
    """A panel a quantity over the size of the image, each with what it says as its title.

    The latency is that of every file, such as one in float32 and one in bfloat16.
    """
    from matplotlib.ticker import FuncFormatter, NullLocator

    contents = [(files[0], *panel) for panel in PANELS[:-1]]
    for data in files:
        title, unit, value = PANELS[-1]
        precision = f", {data['settings']['precision']}" if len(files) > 1 else ""
        contents.append((data, title + precision, unit, value))
    figure, panels = new_figure(len(contents), 1, (7.2, 3.7 * len(contents) + 1))
    sizes = sorted({row["size"] for row in files[0]["results"]})
    for panel, (data, title, unit, value) in zip(panels.flat, contents, strict=True):
        points: dict[str, dict[int, float]] = {}
        for row in sorted(data["results"], key=lambda row: row["size"]):
            if "latency" in row or title == "FLOPs" and "flops" in row:
                points.setdefault(row["model"], {})[row["size"]] = value(row)
        if title == "FLOPs":
            points.pop("DeiT-T" + SOFTMAX, None)  # as many as with SDPA
        for name, (colour, style) in SERIES.items():
            if name in points:
                label = "DeiT-T, SDPA" if name == "DeiT-T" else name
                xy = zip(*points[name].items(), strict=True)
                panel.plot(*xy, style, color=colour, label=label, markersize=7, linewidth=2)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xticks(sizes, [str(size) for size in sizes], fontsize=13)
        panel.tick_params(axis="y", labelsize=13)
        panel.xaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.set_title(takeaway(title, points), fontsize=12)
        panel.set_ylabel(unit, fontsize=13)
        panel.grid(alpha=0.3)
    panels.flat[-1].set_xlabel("height and width of the image, pixels", fontsize=13)
    handles, labels = panels.flat[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=13)
    about = files[0]["machine"]
    device = about.get("gpu", f"{about['cpu']}, {about['threads']} threads")
    precisions = " and ".join(data["settings"]["precision"] for data in files)
    figure.suptitle(f"{device}, {precisions}, {about['date']}", fontsize=13)
    save_figure(figure, path)


def main() -> None:
    parser = make_parser(__doc__, "work_dirs/cost/cost.json", page=True)
    parser.add_argument(
        "--models", nargs="+", default=list(MODELS), metavar="NAME",
        help=f"default: all, {', '.join(MODELS)}",
    )  # fmt: skip
    parser.add_argument(
        "--sizes", nargs="+", type=at_least(32), default=list(SIZES), metavar="PIXELS"
    )
    parser.add_argument("--batch", type=at_least(1), help="of 224x224 images (CPU: 4, GPU: 128)")
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16"), help="CPU: float32, GPU: bfloat16"
    )
    parser.add_argument("--training", action="store_true", help="training steps, too")
    parser.add_argument("--minutes", type=float, help="start no measurement after this time")
    parser.add_argument(
        "--longest", type=float, default=60, metavar="SECONDS",
        help="leave out what takes longer a pass (default 60)",
    )  # fmt: skip
    parser.add_argument(
        "--resume", action="store_true", help="keep comparisons that --out has of this machine"
    )
    parser.add_argument(
        "--plot", type=existing, nargs="+", metavar="JSON",
        help="measure nothing, show these files of one machine, one a precision",
    )  # fmt: skip
    parser.add_argument("--picture", type=Path, metavar="PNG", help="default: beside the JSON")
    add_device(parser)
    args = parser.parse_args()
    if unknown := [name for name in args.models if name not in MODELS]:
        parser.error(f"--models: unknown {', '.join(unknown)}; there are {', '.join(MODELS)}")
    set_device(parser, args)
    args.batch = args.batch or BATCH[args.device]
    args.precision = args.precision or ("bfloat16" if args.device == "cuda" else "float32")
    files = [read_json(path) for path in args.plot] if args.plot else [run_all(args)]
    picture = args.picture or (args.plot[0] if args.plot else args.out).with_suffix(".png")
    if find_spec("matplotlib"):
        draw(files, picture)
        print(f"written: {picture}")
    print(text := "\n\n".join(map(table, files)))
    if args.page:
        link = Path(os.path.relpath(picture.resolve(), args.page.resolve().parent)).as_posix()
        alt = "FLOPs, memory and latency over resolution"
        fill_page(args.page, TABLE, f"![{alt}]({link})\n\n{text}")


if __name__ == "__main__":
    main()
