"""Backbones at a detector's image size, training and inference on a GPU: speed and peak memory.

    python tools/benchmark/dense_backbones.py --minutes 2

ViG and ViG-H of all sizes beside Swin-T and ConvNeXt-T of timm, which complaints about linear-time
backbones compare with: 800x1280, two images, bf16 autocast over float32 weights, forward pass,
backward pass from the sum of the feature maps, AdamW; no heads, which need the mm packages, and no
stochastic depth. Inference is a forward pass without gradients. All run in turn in one process.
Memory is the peak with weights and the optimizer's state. Targets, of training: ViG-H-T at least as
fast as Swin-T, in at most 0.75 of its memory.
"""

import argparse
import itertools
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import torch
from common import Budget, report, save
from gpu import Gpu
from gpu_backbones import ARCHS, BACKEND, held_bytes
from targets import Target
from torch import Tensor, nn
from without_mm import stand_in

SIZE, BATCH = (800, 1280), 2
SECONDS = 1.0  # for a model's timing
REFERENCE, OURS = "Swin-T", "ViG-H-T"
SPEED, MEMORY = 1.0, 0.75  # of the reference
PEERS = {"Swin-T": "swin_tiny_patch4_window7_224", "ConvNeXt-T": "convnext_tiny"}
# what the target needs first: they run in turn as long as there is time for one more
MODELS = (OURS, *PEERS, "ViG-T", "ViG-S", "ViG-H-S", "ViG-B", "ViG-H-B")
MODES = ("training", "inference")
COLUMNS = ["", "images/s", "ms", "MiB", f"speed / {REFERENCE}", f"memory / {REFERENCE}"]


def build(name: str, size: tuple[int, int] = SIZE) -> nn.Module:
    """A backbone by its name in the table, of images ``[B, 3, H, W]``, to feature maps."""
    if name in PEERS:
        import timm

        settings = dict(img_size=size) if name.startswith("Swin") else {}
        return timm.create_model(PEERS[name], features_only=True, drop_path_rate=0.0, **settings)
    stand_in()
    import vig_mm

    family, arch = name.rsplit("-", 1)
    if family == "ViG":
        return vig_mm.ViG(ARCHS[arch], img_size=size, drop_path_rate=0.0, backend=BACKEND)
    return vig_mm.HierViG(ARCHS[arch], drop_path_rate=0.0, backend=BACKEND)


def training_step(model: nn.Module, images: Tensor, optimizer: torch.optim.Optimizer) -> None:
    with torch.autocast(images.device.type, torch.bfloat16):
        maps = model(images)
    sum(x.float().mean() for x in maps).backward()
    optimizer.step()
    optimizer.zero_grad()


def inference(model: nn.Module, images: Tensor) -> None:
    with torch.inference_mode(), torch.autocast(images.device.type, torch.bfloat16):
        model(images)


def measure(
    names: list[str], mode: str, gpu: Gpu, size: tuple[int, int], batch: int
) -> dict[str, dict]:
    """Per model seconds of a step, images a second and peak bytes; or ``missing``, why not."""
    generator = torch.Generator(gpu.device).manual_seed(0)
    images = torch.randn(batch, 3, *size, generator=generator, device=gpu.device)
    models: dict[str, nn.Module] = {}
    runs: dict[str, Callable[[], None]] = {}
    held, entries = {}, {}

    def make(name: str) -> None:
        with torch.device(gpu.device):
            models[name] = build(name, size).train(mode == "training")

    for name in names:
        if problem := gpu.attempt(partial(make, name)):
            entries[name] = {"missing": problem}
            continue
        optimizer = None
        if mode == "training":
            optimizer = torch.optim.AdamW(models[name].parameters(), lr=1e-5)
            runs[name] = partial(training_step, models[name], images, optimizer)
        else:
            runs[name] = partial(inference, models[name], images)
        if problem := gpu.attempt(runs[name]):  # makes the optimizer's state
            entries[name] = {"missing": problem}
            del runs[name], models[name]
            continue
        held[name] = held_bytes(models[name], optimizer, images)
    for name, entry in gpu.time(runs, SECONDS).items():
        entries[name] = entry
        if "median" in entry:
            entry["images_per_s"] = batch / entry["median"]
            entry["peak_bytes"] = gpu.peak(runs[name]) + held[name]
    return {name: entries[name] for name in names}


def targets(results: dict[str, dict]) -> list[Target]:
    """Of training, ours against the reference; open where one of them is missing."""
    ours, reference = results.get(OURS, {}), results.get(REFERENCE, {})
    name = f"training of {OURS} at {SIZE[0]}x{SIZE[1]}"
    if "median" not in ours or "median" not in reference:
        return [Target(f"{name} against {REFERENCE}", None, "not measured")]
    speed = ours["images_per_s"] / reference["images_per_s"]
    memory = ours["peak_bytes"] / reference["peak_bytes"]
    return [
        Target(f"{name}, speed >= {SPEED} of {REFERENCE}", speed >= SPEED, f"{speed:.2f}"),
        Target(f"{name}, memory <= {MEMORY} of {REFERENCE}", memory <= MEMORY, f"{memory:.2f}"),
    ]


def cells(results: dict[str, dict]) -> list[list[str]]:
    """The table's lines of a mode, one a model."""
    lines, reference = [], results.get(REFERENCE, {})
    for name, entry in results.items():
        if "median" not in entry:
            lines.append([name, entry["missing"].partition(":")[0], *[""] * (len(COLUMNS) - 2)])
            continue
        figures = [f"{entry['images_per_s']:.1f}", f"{1e3 * entry['median']:.1f}"]
        ratios = (
            f"{entry[key] / reference[key]:.2f}" if key in reference else ""
            for key in ("images_per_s", "peak_bytes")
        )
        lines.append([name, *figures, f"{entry['peak_bytes'] / 2**20:.0f}", *ratios])
    return lines


def benchmark(
    gpu: Gpu, out: str, budget: Budget, size: tuple[int, int] = SIZE, batch: int = BATCH
) -> bool:
    """Measure three models at a time, the reference always among them, until time is up.

    Writes after each group.

    Returns:
        Whether every model of ours ran or had no memory.
    """
    names = [name for name in MODELS if name not in PEERS or find_spec("timm")]
    first, rest = names[:3], names[3:]
    groups = [first, *([REFERENCE, *rest[i : i + 2]] for i in range(0, len(rest), 2))]
    results: dict[str, dict] = {mode: {} for mode in MODES}
    title = f"Backbones at {size[0]}x{size[1]}, batch {batch}, bf16 autocast"

    def output(put: Callable) -> None:
        rows = [[f"{line[0]} {mode}", *line[1:]] for mode in MODES for line in cells(results[mode])]
        reached = [x._asdict() for x in targets(results["training"])]
        data = {"size": list(size), "batch": batch, "results": results, "targets": reached}
        put(title, COLUMNS, rows, data, out, device=gpu.device.type)

    for group, mode in itertools.product(groups, MODES):
        if budget.over():
            print("time is up", flush=True)
            break
        found = measure([x for x in group if x in names], mode, gpu, size, batch)
        new = {name: entry for name, entry in found.items() if name not in results[mode]}
        results[mode] |= new
        output(save)
        for line in cells(new):
            print(mode, " | ".join(line), flush=True)
    output(report)
    for target in targets(results["training"]):
        print(target, flush=True)
    return not any(
        entry.get("missing", "").startswith("failed")
        for mode in MODES
        for name, entry in results[mode].items()
        if name not in PEERS
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda",), default="cuda", help="a CUDA GPU only")
    parser.add_argument("--minutes", type=float, help="start no measurement after this time")
    parser.add_argument("--out", default="work_dirs/benchmark/dense_backbones_gpu.json")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("needs a CUDA GPU, and torch sees none")
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    return 0 if benchmark(Gpu(), args.out, Budget(args.minutes)) else 1


if __name__ == "__main__":
    sys.exit(main())
