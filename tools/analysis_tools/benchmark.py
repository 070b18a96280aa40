"""Compare backbones in one task, all else the same: speed and memory of inference and training.

Examples:
    python tools/analysis_tools/benchmark.py --task seg --precisions float32 bfloat16
    python tools/analysis_tools/benchmark.py --task det --size 1024 1024 --backbones vig-t-adapter
    python tools/analysis_tools/benchmark.py --task maps --precisions bfloat16 --minutes 2

`det`, `seg` and `cls` build the Mask R-CNN, UperNet or classifier of configs/ and configs/*/peers
with each backbone; `maps` takes backbones alone, from vig_mm.nets and timm, which needs nothing of
OpenMMLab. Weights are random. Counted are parameters (of the whole model) and FLOPs (get_flops.py).
Measured, in turn in one process, are images a second and the peak memory of

- inference: the forward pass up to the heads' outputs; detectors with their proposals, without the
  final suppression of boxes, which would depend on what random weights happen to detect;
- training: forward pass, losses with random labels (8 objects an image; of maps their sum),
  backward pass, AdamW.

Precisions: float32; bfloat16 by autocast; of linear layers, for inference on a CPU, dynamic int8 by
torch itself or (`torchao`) by torchao, which has to be importable.
Memory is what a step allocates at most, without weights and the optimizer's state. `error` is the
relative norm of the difference of the last map to float32's. Ratios are to ViG-H-T, which is part
of every run. A backbone that fails, as some take few sizes only, is noted.
"""

import argparse
import copy
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import (
    ROOT,
    Budget,
    add_device,
    at_least,
    describe,
    existing,
    fill_page,
    machine,
    make_batch,
    make_parser,
    markdown,
    measure,
    problem,
    read_json,
    run,
    set_device,
    significant,
    without_padding,
    write_json,
)
from torch import Tensor, nn

from vig_mm.errors import UsageError

CONFIGS, REFERENCE = ROOT / "configs", "vig-h-t"
# Task -> folder, configs in it and in its peers, which part of a file's name is the backbone.
TASKS = {
    "det": ("mmdet", "mask-rcnn_*_1x_coco*.py", 1),
    "seg": ("mmseg", "*_upernet_8xb2-160k_ade20k-512x512.py", 0),
    "cls": ("mmpretrain", "*_8xb128_in1k.py", 0),
}
MAPS = "maps"
SIZES = {"det": (800, 1280), "seg": (512, 512), "cls": (224, 224), MAPS: (800, 1280)}
PLAIN = {"det": "vig-t-adapter", "seg": "vig-t-adapter", "cls": "vig-t"}  # beside the peers
ARCHS = {"t": "tiny", "s": "small", "b": "base"}
TIMM = {"swin-t": "swin_tiny_patch4_window7_224", "convnext-t": "convnext_tiny"}
ALONE = (REFERENCE, *TIMM, "vig-t", "vig-s", "vig-h-s", "vig-b", "vig-h-b")  # of maps
MODES, PRECISIONS = ("inference", "training"), ("float32", "bfloat16", "int8", "torchao")
INT8 = PRECISIONS[2:]
GROUP = 3  # backbones that run in turn where time is short
SECONDS = {"cpu": 5.0, "cuda": 1.0}  # for the timing of a model in a mode


# Models -----------------------------------------------------------------------------------------


def config_files(task: str) -> dict[str, Path]:
    """The configs of a task by their backbone's name."""
    folder, pattern, part = TASKS[task]
    files: dict[str, Path] = {}
    for place in (CONFIGS / folder, CONFIGS / folder / "peers"):
        for path in sorted(place.glob(pattern)):
            if "_amp-" not in path.name:
                files.setdefault(path.stem.split("_")[part], path)
    return files


def default_backbones(task: str, files: dict[str, Path]) -> list[str]:
    if task == MAPS:
        return list(ALONE)
    peers = [x for x, path in files.items() if path.parent.name == "peers" and x[-2:] != "-b"]
    return [name for name in (REFERENCE, PLAIN[task], *peers) if name in files]


def build_configured(path: Path, size: tuple[int, int]) -> tuple[nn.Module, dict]:
    """The model of a config, and what is counted of it."""
    from get_flops import build, count_model, read_config

    cfg = without_padding(read_config(path), size)
    model = build(cfg)
    return model, {"config": path.name, **count_model(model, cfg.default_scope, size)}


def build_alone(name: str, size: tuple[int, int]) -> tuple[nn.Module, dict]:
    """A backbone of `ALONE`, images ``[B, 3, H, W]`` to maps, and its parameters."""
    if name in TIMM:
        import timm

        settings = dict(img_size=size) if name.startswith("swin") else {}
        model = timm.create_model(TIMM[name], features_only=True, drop_path_rate=0.0, **settings)
    else:
        from vig_mm import nets

        kind, settings = (nets.HierViG, {}) if "-h-" in name else (nets.ViG, {"img_size": size})
        model = kind(ARCHS[name[-1]], drop_path_rate=0.0, **settings)
    return model, {"parameters": sum(x.numel() for x in model.parameters())}


# Steps ------------------------------------------------------------------------------------------


def quantize(model: nn.Module, precision: str) -> nn.Module:
    """A copy with the linear layers in int8, dynamic."""
    if precision == "torchao":
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        model = copy.deepcopy(model)
        quantize_(model, Int8DynamicActivationInt8WeightConfig())
        return model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear})


def make_step(
    model: nn.Module, mode: str, precision: str, scope: str, size: tuple[int, int], batch: int
) -> Callable[[], Any]:
    """What is timed: a call that returns the model's output, or trains it by a step."""
    device = next(model.parameters()).device
    if scope == MAPS:
        images = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0)).to(device)
        forward = partial(model, images)
    else:
        images, samples = make_batch(model, scope, size, batch)
        forward = partial(model, images, samples, mode="tensor" if mode == "inference" else "loss")
    if precision == "bfloat16" and scope == "mmdet":
        from vig_mm.engine.optimizers.bf16 import keep_boxes_in_float32

        keep_boxes_in_float32(model)
    precise = partial(torch.autocast, device.type, torch.bfloat16, enabled=precision == "bfloat16")
    if precision in INT8:
        quantized = quantize(model.eval(), precision)
        forward = partial(quantized, *forward.args, **forward.keywords)

    def infer() -> Any:
        with torch.inference_mode(), precise():
            return forward()

    if mode == "inference":
        model.eval()
        return infer
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-6)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # makes its state, which is no part of a step's memory
    optimizer.zero_grad()

    def train() -> None:
        with precise():
            out = forward()
        loss = sum(x.float().mean() for x in out) if scope == MAPS else model.parse_losses(out)[0]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return train


def last_map(output: Any) -> Tensor:
    """The last tensor of nested outputs."""
    return output.float() if isinstance(output, Tensor) else last_map(list(output)[-1])


def error(output: Any, expected: Any) -> float:
    x, y = last_map(output), last_map(expected)
    return ((x - y).norm() / y.norm()).item()


def measure_group(rows: list[dict], models: dict[str, nn.Module], key: str, about: dict) -> None:
    """Put ``key`` ("float32 training") into the rows of models that run in turn."""
    precision, mode = key.split()
    steps = {}
    for row in rows:
        name = row["backbone"]
        try:
            steps[name] = make_step(models[name], mode, precision, **about["step"])
        except Exception as problem_:  # of one backbone: noted, the others go on
            row[key] = {"missing": problem(problem_)}
    for name, found in measure(steps, SECONDS[about["device"]], about["device"]).items():
        row = next(row for row in rows if row["backbone"] == name)
        row[key] = found
        models[name].zero_grad()
        if "median" not in found:
            continue
        found["images_per_s"] = about["step"]["batch"] / found["median"]
        if mode == "inference" and precision != "float32" and about["step"]["scope"] == MAPS:
            exact = make_step(models[name], mode, "float32", **about["step"])
            found["error"] = error(steps[name](), exact())


# Tables -----------------------------------------------------------------------------------------

COUNTED = {"parameters": ("parameters, M", 1e6), "flops": ("FLOPs, G", 1e9)}
MEASURED = {"images_per_s": ("images/s", 1), "peak_bytes": ("MiB", 2**20), "error": ("error", 1)}


def table(rows: list[dict]) -> str:
    """A line a backbone, in multiples of the first; below, what failed."""
    keys = [f"{p} {m}" for m in MODES for p in PRECISIONS if any(f"{p} {m}" in r for r in rows)]
    quantities = {(key,): value for key, value in COUNTED.items()}
    quantities |= {(k, q): (f"{k}, {u[0]}", u[1]) for k in keys for q, u in MEASURED.items()}

    def value(row: dict, path: tuple) -> float | None:
        found: Any = row
        for key in path:
            found = found.get(key, {}) if isinstance(found, dict) else {}
        return None if found == {} else found

    shown = [path for path in quantities if any(value(row, path) is not None for row in rows)]
    lines, notes = [], []
    for row in rows:
        cells = [row["backbone"]]
        for path in shown:
            mine, reference = value(row, path), value(rows[0], path)
            if mine is None:
                cells.append("")
            elif path[-1] == "error":
                cells.append(f"{mine:.1e}")
            else:
                own = row is rows[0] or not reference
                value_ = mine / quantities[path][1]
                cells.append(significant(value_) if own else f"{mine / reference:.2f}x")
        lines.append(cells)
        for key in ("", *keys):
            entry = row.get(key, {}) if key else row
            if "missing" in entry:
                notes.append(f"- {' '.join([row['backbone'], key]).strip()}: {entry['missing']}")
    text = markdown(["", *(quantities[path][0] for path in shown)], lines)
    return "\n\n".join([text, *(["\n".join(notes)] if notes else [])])


def compare(args: argparse.Namespace) -> dict:
    """Build, count and measure; writes the JSON after each step and returns what it holds.

    Raises:
        UsageError: no backbone of that name, or the reference itself fails.
    """
    files = {} if args.task == MAPS else config_files(args.task)
    size, known = tuple(args.size), ALONE if args.task == MAPS else list(files)
    names = args.backbones or default_backbones(args.task, files)
    if unknown := [name for name in names if name not in known]:
        raise UsageError(
            f"--backbones: no config of {', '.join(unknown)}; there are {', '.join(known)}"
        )
    scope = MAPS if args.task == MAPS else TASKS[args.task][0]
    torch.manual_seed(0)
    rows, models, budget = [], {}, Budget(args.minutes)
    for name in dict.fromkeys([REFERENCE, *names]):
        row: dict = {"backbone": name}
        rows.append(row)
        try:
            build = build_alone if args.task == MAPS else build_configured
            model, counted = build(files.get(name, name), size)
            row |= counted
            models[name] = model.to(args.device)
        except Exception as error_:  # of one backbone: noted, the others go on
            row["missing"] = problem(error_)
        print(f"{name}: {row.get('missing') or describe(row)}", flush=True)
    if REFERENCE not in models:
        raise UsageError(f"{REFERENCE} at {size[0]}x{size[1]}: {rows[0]['missing']}")
    settings = {"task": args.task, "size": list(size), "batch": args.batch}
    about = {
        "device": args.device, "step": {"scope": scope, "size": size, "batch": args.batch}
    }  # fmt: skip
    built = [row for row in rows if row["backbone"] in models]
    allowed = {p: MODES[:1] if p in INT8 else MODES for p in PRECISIONS}
    keys = [f"{p} {m}" for p in args.precisions for m in args.modes if m in allowed[p]]
    group = GROUP if args.minutes is not None else len(built)
    parts = [built[start : start + group] for start in range(0, len(built), group)]
    for part, key in [(None, ""), *((part, key) for part in parts for key in keys)]:
        if part and budget.over():
            print("time is up", flush=True)
            break
        if part:
            measure_group(part, models, key, about)
        write_json(args.out, machine=machine(args.device), settings=settings, results=rows)
    return read_json(args.out)


def main() -> None:
    parser = make_parser(__doc__, page=True)
    parser.add_argument("--task", choices=(*TASKS, MAPS), required=True)
    parser.add_argument(
        "--size", nargs=2, type=at_least(32), metavar=("H", "W"),
        help="pixels (det, maps: 800 1280, seg: 512 512, cls: 224 224)",
    )  # fmt: skip
    parser.add_argument(
        "--backbones", nargs="+", metavar="NAME",
        help="names as in the configs' file names (default: the tiny models and all peers)",
    )  # fmt: skip
    parser.add_argument("--batch", type=at_least(1), default=2, help="images a step (default 2)")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS[:1])
    parser.add_argument("--minutes", type=float, help="start no measurement after this time")
    parser.add_argument("--out", type=Path, metavar="JSON", help="work_dirs/benchmark/TASK.json")
    parser.add_argument("--plot", type=existing, metavar="JSON", help="measure nothing, show this")
    add_device(parser)
    args = parser.parse_args()
    args.size = args.size or SIZES[args.task]
    args.out = args.plot or args.out or Path(f"work_dirs/benchmark/{args.task}.json")
    set_device(parser, args)
    data = read_json(args.plot) if args.plot else compare(args)
    text = f"{describe(data['machine'], data['settings'])}.\n\n{table(data['results'])}"
    print(text)
    print(f"{'read' if args.plot else 'written'}: {args.out}")
    if args.page:
        fill_page(args.page, args.out.stem, text)


if __name__ == "__main__":
    run(main)
