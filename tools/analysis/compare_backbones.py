"""Compare backbones in one task: Mask R-CNN, UperNet or a classifier of each, all else the same.

Examples:
    python tools/analysis/compare_backbones.py --task seg --size 512 512
    python tools/analysis/compare_backbones.py --task det --size 1024 1024 --backbones vig-t-adapter swin-t
    python tools/analysis/compare_backbones.py --task cls --plot work_dirs/cost/cls.json
    python tools/analysis/compare_backbones.py --task cls --plot work_dirs/cost/cls.json --recount

The models are those of configs/ and configs/*/peers with random weights, in float32. Counted are
parameters (of the whole model, auxiliary heads included) and FLOPs (as count_flops.py does, here at
--size), and of the backbone alone, for one image, what a training step keeps for its backward pass
and the bytes that it moves (as count_traffic.py does: with the Triton kernels, without a GPU).
Measured, in turn in one process, are images a second and the peak memory of

- inference: the forward pass up to the heads' outputs; detectors with their proposals, without the
  final suppression of boxes, which would depend on what random weights happen to detect;
- training: forward pass, losses with random labels (8 objects an image), backward pass, AdamW.

Memory is what a step allocates at most, without weights and the optimizer's state. Ratios are to
ViG-H-T, which is part of every run. A backbone that fails, as some take few sizes only, is noted.
"""  # noqa: E501

# ruff: noqa: E402
import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from vig_mm.checks.environment import exit_without_mmengine

exit_without_mmengine()

import torch
from cost_models import gcvit_windows
from count_flops import count_model
from measuring import Cpu, CudaGpu, limit_memory, make_device, problem, significant
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS
from torch import nn
from traffic import backbone_traffic

from common import machine, markdown, write  # isort: skip

from vig_mm.apis.launch import load_config, run
from vig_mm.errors import UsageError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
REFERENCE = "vig-h-t"
# Task -> folder, configs in it and in its peers, which part of a file's name is the backbone.
TASKS = {
    "det": ("mmdet", "mask-rcnn_*_1x_coco*.py", 1),
    "seg": ("mmseg", "*_upernet_8xb2-160k_ade20k-512x512.py", 0),
    "cls": ("mmpretrain", "*_8xb128_in1k.py", 0),
}
SIZES = {"det": (800, 1280), "seg": (512, 512), "cls": (224, 224)}
PLAIN = {"det": "vig-t-adapter", "seg": "vig-t-adapter", "cls": "vig-t"}  # beside the peers
MODES = ("inference", "training")
COUNTED = ("kept_bytes", "traffic_bytes")
OBJECTS = 8
SECONDS = {"cpu": 5.0, "cuda": 1.0}  # for the timing of a model in a mode


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
    peers = [name for name, path in files.items() if path.parent.name == "peers"]
    return [name for name in (REFERENCE, PLAIN[task], *peers) if name in files]


def read(path: Path, size: tuple[int, int]) -> Config:
    """A config with nothing that pads images; VOLO and GC ViT, of one size only, get ``size``.

    Args:
        size: height and width.
    """
    args = argparse.Namespace(
        config=str(path), cfg_options=None, work_dir=None, launcher="none", local_rank=0
    )
    cfg = load_config(args)
    timm_model = cfg.model.get("backbone", cfg.model)
    name = timm_model.get("model_name", "")
    if name.startswith("volo"):
        timm_model.img_size = size
    elif name.startswith("gcvit"):
        if size[0] != size[1]:
            raise UsageError(f"GC ViT is built for square images here, not {size[0]}x{size[1]}")
        timm_model.update(img_size=size[0], window_size=gcvit_windows(size[0]))
    preprocessor = cfg.model.get("data_preprocessor", {})
    if "pad_size_divisor" in preprocessor:
        preprocessor.pad_size_divisor = 1
    return cfg


def build(cfg: Config) -> nn.Module:
    with MODELS.switch_scope_and_registry(cfg.default_scope) as registry:
        return revert_sync_batchnorm(registry.build(cfg.model))


def count(model: nn.Module, task: str, size: tuple[int, int]) -> dict[str, int]:
    """Parameters, and multiply-adds of one image."""
    return count_model(model, TASKS[task][0], size)


def count_memory(path: Path, size: tuple[int, int]) -> dict[str, int]:
    """What a training step of a config's backbone keeps and moves; empty if it cannot be traced."""
    try:
        found = backbone_traffic(read(path, size), size)
    except Exception as error:  # an operator that torch's meta device does not know
        print(f"{path.stem}: traffic not counted: {problem(error)}", flush=True)
        return {}
    return {"kept_bytes": found["kept"], "traffic_bytes": found["training"]}


def recount(data: dict) -> None:
    """Renew, in the rows of an earlier run, what a step keeps and moves."""
    files, size = config_files(data["settings"]["task"]), tuple(data["settings"]["size"])
    for row in data["results"]:
        if "parameters" in row:
            row |= count_memory(files[row["backbone"]], size)
    add_ratios(data["results"])


def make_batch(
    model: nn.Module, task: str, size: tuple[int, int], batch: int
) -> tuple[torch.Tensor, list]:
    """Random images ``[B, 3, H, W]`` on the model's device, and random labels as data samples."""
    device = next(model.parameters()).device
    if task == "det":
        from mmdet.testing import demo_mm_inputs

        data = demo_mm_inputs(
            batch,
            image_shapes=[(3, *size)] * batch,
            num_items=[OBJECTS] * batch,
            # an RPN has one
            num_classes=max(getattr(part, "num_classes", 0) for part in model.modules()),
            with_mask=True,
        )
        with torch.no_grad():
            data = model.data_preprocessor(data, training=True)
        return data["inputs"], data["data_samples"]
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, *size, generator=generator).to(device)
    if task == "seg":
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        samples = []
        for _ in range(batch):
            labels = torch.randint(model.decode_head.num_classes, (1, *size), generator=generator)
            sample = SegDataSample(gt_sem_seg=PixelData(data=labels))
            sample.set_metainfo(dict(img_shape=size, ori_shape=size, pad_shape=size))
            samples.append(sample.to(device))
        return images, samples
    from mmpretrain.structures import DataSample

    return images, [DataSample().set_gt_label(0).to(device) for _ in range(batch)]


def inference_step(model: nn.Module, images: torch.Tensor, samples: list) -> object:
    with torch.inference_mode():
        return model(images, samples, mode="tensor")


def training_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, samples: list
) -> None:
    loss, _ = model.parse_losses(model(images, samples, mode="loss"))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def make_step(model: nn.Module, mode: str, images: torch.Tensor, samples: list) -> Callable:
    if mode == "inference":
        model.eval()
        return partial(inference_step, model, images, samples)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # makes its state, which is no part of a step's memory
    optimizer.zero_grad()
    return partial(training_step, model, optimizer, images, samples)


def measure(
    models: dict[str, nn.Module], mode: str, device: Cpu | CudaGpu, make: Callable, seconds: float
) -> dict[str, dict]:
    """Time and memory of a mode, by model.

    Args:
        make: of a model, its images and samples.

    Returns:
        Per model: median, min and max seconds, images a second, peak bytes; or ``missing``.
    """
    entries, steps, firsts, batches = {}, {}, {}, {}
    for name, model in models.items():
        try:
            images, samples = make(model)
            step = make_step(model, mode, images, samples)
            first = device.first(step)
        except Exception as error:  # of one backbone: noted, the others go on
            model.zero_grad()
            entries[name] = {"missing": problem(error)}
            continue
        entries[name] = {"peak_bytes": first["peak_bytes"]}
        steps[name], firsts[name], batches[name] = step, first["first"], len(images)
    if steps:
        for name, stats in device.time(steps, firsts, seconds).items():
            entries[name] |= stats
            if "median" in stats:
                entries[name]["images_per_s"] = batches[name] / stats["median"]
    return entries


def values(row: dict) -> dict[str, float]:
    """What is compared, of a row; without what is missing."""
    found = {key: row[key] for key in ("parameters", "flops", *COUNTED) if key in row}
    for mode in MODES:
        for key in ("images_per_s", "peak_bytes"):
            if key in row.get(mode, {}):
                found[f"{mode} {key}"] = row[mode][key]
    return found


def add_ratios(rows: list[dict]) -> None:
    """Put into every row its values over those of the reference."""
    reference = values(next(row for row in rows if row["backbone"] == REFERENCE))
    for row in rows:
        row["ratio"] = {
            key: value / reference[key] for key, value in values(row).items() if key in reference
        }


QUANTITIES = {
    "parameters": ("parameters, M", 1e6),
    "flops": ("FLOPs, G", 1e9),
    "kept_bytes": ("kept by the backbone, MiB", 2**20),
    "traffic_bytes": ("its traffic, GiB", 2**30),
    "inference images_per_s": ("inference, images/s", 1),
    "training images_per_s": ("training, images/s", 1),
    "inference peak_bytes": ("inference, MiB", 2**20),
    "training peak_bytes": ("training, MiB", 2**20),
}


def table(rows: list[dict]) -> str:
    """A line a backbone: every quantity with its ratio to the reference; below, what failed."""
    lines, notes = [], []
    for row in rows:
        found = values(row)
        cells = [
            f"{significant(found[key] / unit)} ({row['ratio'][key]:.2f})"
            if key in row["ratio"]
            else ""
            for key, (_, unit) in QUANTITIES.items()
        ]
        lines.append([row["backbone"], *cells])
        for place, entry in (("", row), *((f" {mode}", row.get(mode, {})) for mode in MODES)):
            if "missing" in entry:
                notes.append(f"- {row['backbone']}{place}: {entry['missing']}")
    columns = ["", *(title for title, _ in QUANTITIES.values())]
    return "\n\n".join([markdown(columns, lines), *(["\n".join(notes)] if notes else [])])


def draw(data: dict, path: Path) -> None:
    """A panel a quantity, a bar a backbone, its value and ratio to the reference beside it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = list(reversed(data["results"]))
    height = 1.6 + 0.42 * len(rows)
    figure, panels = plt.subplots(2, 4, figsize=(19, 2 * height), sharey=True, layout="constrained")
    for panel, (key, (title, unit)) in zip(panels.flat, QUANTITIES.items(), strict=True):
        for place, row in enumerate(rows):
            found = values(row)
            if key not in found:
                panel.text(0, place, " none", va="center", fontsize=10, color="0.4")
                continue
            value = found[key] / unit
            panel.barh(place, value, color="C0" if row["backbone"] == REFERENCE else "C7")
            ratio = f" ({row['ratio'][key]:.2f}x)" if key in row["ratio"] else ""
            panel.text(value, place, f" {significant(value)}{ratio}", va="center", fontsize=10)
        panel.set_yticks(range(len(rows)), [row["backbone"] for row in rows], fontsize=11)
        panel.set_xlabel(title, fontsize=12)
        panel.set_xlim(0, 1.4 * max(panel.get_xlim()[1], 1e-9))
        panel.grid(axis="x", alpha=0.3)
        panel.set_axisbelow(True)
    about, settings = data["machine"], data["settings"]
    device = about.get("gpu", f"{about['cpu']}, {about['threads']} threads")
    heading = {"det": "Mask R-CNN", "seg": "UperNet", "cls": "classifier"}[settings["task"]]
    height_px, width_px = settings["size"]
    figure.suptitle(
        f"{heading}, {height_px}x{width_px} (HxW), batch {settings['batch']}, float32; in brackets "
        f"the ratio to ViG-H-T\n{device}, torch {about['torch']}, {about['date']}",
        fontsize=12,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def compare(args: argparse.Namespace) -> dict:
    """Build, count and measure; writes the JSON after each step and returns what it holds.

    Raises:
        UsageError: no backbone of that name, or the reference itself fails.
    """
    files, size = config_files(args.task), tuple(args.size)
    names = args.backbones or default_backbones(args.task, files)
    if unknown := [name for name in names if name not in files]:
        raise UsageError(
            f"--backbones: no config of {', '.join(unknown)}; there are {', '.join(files)}"
        )
    device = make_device(args.device)
    if args.device == "cpu":
        torch.set_num_threads(args.threads)
        limit_memory()
    torch.manual_seed(0)
    rows, models = [], {}
    for name in dict.fromkeys([REFERENCE, *names]):
        row: dict = {"backbone": name, "config": files[name].name}
        rows.append(row)
        try:
            model = build(read(files[name], size))
            row |= count(model, args.task, size)
            row |= count_memory(files[name], size)
        except Exception as error:  # of one backbone: noted, the others go on
            row["missing"] = problem(error)
            print(f"{name}: {row['missing']}", flush=True)
            continue
        models[name] = model.to(device.device)
        print(
            f"{name}: {row['parameters'] / 1e6:.2f} M parameters, {row['flops'] / 1e9:.2f} GFLOPs",
            flush=True,
        )
    if REFERENCE not in models:
        raise UsageError(f"{REFERENCE} at {size[0]}x{size[1]}: {rows[0]['missing']}")
    settings = {"task": args.task, "size": list(size), "batch": args.batch, "precision": "float32"}
    data = {"machine": machine(args.device), "settings": settings, "results": rows}
    make = partial(make_batch, task=args.task, size=size, batch=args.batch)
    for mode in MODES:
        entries = measure(models, mode, device, make, SECONDS[args.device])
        for row in rows:
            if row["backbone"] in entries:
                row[mode] = entries[row["backbone"]]
        add_ratios(rows)
        write(args.out, json.dumps(data, indent=1) + "\n")
    return data


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=tuple(TASKS), required=True)
    parser.add_argument(
        "--size", nargs=2, type=int, metavar=("H", "W"),
        help="pixels (det: 800 1280, seg: 512 512, cls: 224 224)",
    )  # fmt: skip
    parser.add_argument(
        "--backbones", nargs="+", metavar="NAME",
        help="names as in the configs' file names (default: the tiny models and all peers)",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, default=2, help="images a step (default 2)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    parser.add_argument("--threads", type=int, default=2, help="CPU: threads (default 2)")
    parser.add_argument(
        "--out", type=Path, metavar="JSON", help="default: work_dirs/cost/TASK.json; also .md, .png"
    )
    parser.add_argument("--plot", type=Path, metavar="JSON", help="measure nothing, draw this file")
    parser.add_argument(
        "--recount", action="store_true", help="with --plot: count what is counted anew"
    )
    args = parser.parse_args()
    args.size = args.size or SIZES[args.task]
    if min(args.size) < 32:
        parser.error(f"--size: at least 32 pixels, got {args.size[0]} {args.size[1]}")
    if args.batch < 1:
        parser.error(f"--batch: at least 1, got {args.batch}")
    if args.plot and not args.plot.is_file():
        parser.error(f"--plot: {args.plot} is not a file; measure first (see --help)")
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a CUDA GPU, and torch sees none")
    args.out = args.plot or args.out or Path(f"work_dirs/cost/{args.task}.json")
    return args


def main() -> None:
    args = parse_args()
    data = json.loads(args.plot.read_text()) if args.plot else compare(args)
    if args.plot and args.recount:
        recount(data)
        write(args.plot, json.dumps(data, indent=1) + "\n")
    text = table(data["results"])
    about = ", ".join(
        f"{key} {value}" for key, value in (data["machine"] | data["settings"]).items()
    )
    draw(data, args.out.with_suffix(".png"))
    write(args.out.with_suffix(".md"), f"{about}. In brackets: over {REFERENCE}'s.\n\n{text}\n")
    print(text)
    print("written:", *(args.out.with_suffix(suffix) for suffix in (".json", ".md", ".png")))


if __name__ == "__main__":
    run(main)
