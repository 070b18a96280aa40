"""Whole models on a GPU: ViG and ViG-H of all sizes against DeiT, forward pass and training step.

bf16 autocast over float32 weights, random images, classifiers of 1000 classes, no stochastic depth.
Models of one contest run in turn in one process. DeiT is timm's, with torch's fused attention
(SDPA) and with plain softmax attention. Rows are written as they are measured.
"""

from collections.abc import Callable, Iterable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from common import Budget, Tried, earlier_results, machine, report, save, write
from gpu import Gpu
from rivals import deit
from targets import backbone_targets
from torch import Tensor, nn
from without_mm import stand_in

SECONDS = 0.4  # for a model's timing in a mode
CLASSES = 1000
BATCHES = {224: 128, 512: 32, 1024: 8, 2048: 2}
ARCHS = {"T": "tiny", "S": "small", "B": "base"}
TINY = ("ViG-T", "ViG-H-T", "DeiT-T", "DeiT-T softmax")
LARGER = (
    "ViG-S", "ViG-B", "ViG-H-S", "ViG-H-B", "DeiT-S", "DeiT-S softmax", "DeiT-B", "DeiT-B softmax",
)  # fmt: skip
MODES = ("forward", "training")
BACKEND = "triton"  # rather an error than another backend's time
COLUMNS = [
    "", "images/s", "ms", "MiB",
    "speed / DeiT", "speed / softmax", "memory / DeiT", "memory / softmax",
]  # fmt: skip


class Contest(NamedTuple):
    """Models that are compared at one image size."""

    size: int
    models: tuple[str, ...]


# What is worth most first, see `shapes._ORDER`.
CONTESTS = (
    Contest(1024, TINY),
    Contest(224, LARGER),
    Contest(2048, TINY),
    Contest(224, TINY),
    Contest(1024, LARGER),
    Contest(512, TINY),
    Contest(512, LARGER),
    Contest(2048, LARGER),
)


class Classifier(nn.Module):
    """A ViG backbone with the public models' head: mean over the tokens, linear layer."""

    def __init__(self, backbone: nn.Module, channels: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x)[-1].mean((2, 3)))


def build(name: str, size: int) -> nn.Module:
    """A model by its name in the tables, for square images; position embeddings fit ``size``."""
    family, arch = name.split()[0].rsplit("-", 1)
    arch = ARCHS[arch]
    if family == "DeiT":
        return deit(arch, size, softmax="softmax" in name)
    stand_in()
    import vig_mm

    if family == "ViG":
        backbone = vig_mm.ViG(arch, img_size=size, backend=BACKEND)
        return Classifier(backbone, backbone.embed_dims)
    backbone = vig_mm.HierViG(arch, out_indices=-1, drop_path_rate=0.0, backend=BACKEND)
    return Classifier(backbone, backbone.channels[-1])


def available(models: Iterable[str]) -> list[str]:
    """Without DeiT where timm is missing."""
    return [name for name in models if not name.startswith("DeiT") or find_spec("timm")]


def forward_run(model: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    model.eval()

    def run() -> Tensor:
        with torch.inference_mode(), torch.autocast(images.device.type, torch.bfloat16):
            return model(images)

    return run


def training_run(
    model: nn.Module, images: Tensor, labels: Tensor, optimizer: torch.optim.Optimizer
) -> Callable[[], None]:
    model.train()

    def run() -> None:
        with torch.autocast(images.device.type, torch.bfloat16):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def held_bytes(model: nn.Module, optimizer: torch.optim.Optimizer | None, images: Tensor) -> int:
    """Of the weights, the optimizer's state and the images: what a run needs beside its peak."""
    tensors = [*model.parameters(), *model.buffers(), images]
    if optimizer is not None:
        tensors += [x for s in optimizer.state.values() for x in s.values() if torch.is_tensor(x)]
    return sum(x.numel() * x.element_size() for x in tensors)


def build_all(names: Iterable[str], size: int, gpu: Gpu) -> tuple[dict[str, nn.Module], dict]:
    """The models on the device, and the table's entries of those that could not be built."""
    models: dict[str, nn.Module] = {}
    missing = {}

    def build_one(name: str) -> None:
        with torch.device(gpu.device):
            models[name] = build(name, size)

    torch.manual_seed(0)
    for name in names:
        if problem := gpu.attempt(partial(build_one, name)):
            missing[name] = {"missing": problem}
    return models, missing


def measure(size: int, batch: int, mode: str, models: dict[str, nn.Module], gpu: Gpu) -> dict:
    """Per model seconds of a step, images a second and peak memory, or why they are missing."""
    generator = torch.Generator(gpu.device).manual_seed(0)
    images = torch.randn(batch, 3, size, size, generator=generator, device=gpu.device)
    labels = torch.randint(CLASSES, (batch,), generator=generator, device=gpu.device)
    optimizers: dict[str, torch.optim.Optimizer | None] = dict.fromkeys(models)
    runs: dict[str, Callable] = {}
    for name, model in models.items():
        if mode == "forward":
            runs[name] = forward_run(model, images)
        else:
            optimizers[name] = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
            runs[name] = training_run(model, images, labels, optimizers[name])
    entries = gpu.time(runs, SECONDS)
    for name, entry in entries.items():
        models[name].zero_grad()  # a step that ran out of memory leaves gradients behind
        if "median" in entry:
            entry["images_per_s"] = batch / entry["median"]
            held = held_bytes(models[name], optimizers[name], images)
            entry["peak_bytes"] = gpu.peak(runs[name]) + held
    return entries


def cells(row: dict) -> list[list[str]]:
    """The table's lines of a row, one a model; ratios against the DeiT of the same size."""
    lines = []
    for name, entry in row["models"].items():
        start = f"{name} {row['size']}x{row['size']} {row['mode']}, batch {row['batch']}"
        if "median" not in entry:
            kind = entry["missing"].partition(":")[0]
            lines.append([start, kind, *[""] * (len(COLUMNS) - 2)])
            continue
        rivals = [f"DeiT-{name.split()[0][-1]}{kind}" for kind in ("", " softmax")]

        def ratios(key: str, name: str = name, entry: dict = entry, rivals=rivals) -> list[str]:
            found = (row["models"].get(rival, {}).get(key) for rival in rivals)
            return ["" if x is None or "DeiT" in name else f"{entry[key] / x:.2f}" for x in found]

        lines.append([
            start,
            f"{entry['images_per_s']:.1f}",
            f"{1e3 * entry['median']:.2f}",
            f"{entry['peak_bytes'] / 2**20:.0f}",
            *ratios("images_per_s"),
            *ratios("peak_bytes"),
        ])  # fmt: skip
    return lines


def benchmark(
    gpu: Gpu,
    contests: Iterable[Contest],
    out: str | Path,
    budget: Budget,
    resume: bool = False,
    batches: dict[int, int] = BATCHES,
) -> bool:
    """Measure the contests in order until the time is up, and write after each mode of each one.

    Args:
        resume: keep the rows that ``out`` has of this machine, measure only the others.
        batches: images a step, by image size.

    Returns:
        Whether every ViG ran (out of memory counts as such, nothing else does), and none ended an
        earlier run.
    """
    device = gpu.device.type
    results = earlier_results(out, device) if resume else []

    def label(size: int, mode: str, names: Iterable[str]) -> str:
        return f"{size}x{size} {mode}: {', '.join(names)}"

    done = {label(row["size"], row["mode"], row["models"]) for row in results}
    tried = Tried(out, resume, done)
    stood_in = stand_in()
    notes = [f"stand-ins used for {', '.join(stood_in)}"] if stood_in else []
    if find_spec("timm") is None:
        notes.append("timm is not installed: no DeiT to compare with")
    print("; ".join(notes) or "every model is available", flush=True)
    title = "Classifiers, bf16 autocast: images a second and peak memory with weights and images"

    def output(put: Callable) -> None:
        targets = [target._asdict() for target in backbone_targets(results)]
        rows = [line for row in results for line in cells(row)]
        data = {"notes": notes, "results": results, "targets": targets}
        put(title, COLUMNS, rows, data, out, device=device)

    def measure_contest(size: int, names: list[str]) -> None:
        modes = [mode for mode in MODES if label(size, mode, names) not in done | tried.lost]
        if not modes or budget.over():
            return
        models, missing = build_all(names, size, gpu)
        for mode in modes:
            if budget.over():
                return
            tried.begin(label(size, mode, names))
            entries = {**measure(size, batches[size], mode, models, gpu), **missing}
            entries = {name: entries[name] for name in names}
            row = {"size": size, "batch": batches[size], "mode": mode, "models": entries}
            results.append(row)
            output(save)
            for line in cells(row):
                print(" | ".join(line), flush=True)

    for contest in contests:
        measure_contest(contest.size, available(contest.models))
    if budget.over():
        print("time is up", flush=True)
    tried.end()
    output(report)
    for target in backbone_targets(results):
        print(target, flush=True)
    return not tried.lost and not any(
        entry.get("missing", "").startswith("failed")
        for row in results
        for name, entry in row["models"].items()
        if name.startswith("ViG")
    )


def profile(gpu: Gpu, size: int, batch: int, out: str | Path) -> None:
    """Write where ViG-T's time goes, kernel by kernel, in a forward pass and a training step."""
    with torch.device(gpu.device):
        model = build("ViG-T", size)
        images = torch.randn(batch, 3, size, size)
        labels = torch.randint(CLASSES, (batch,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    about = machine(gpu.device.type)
    text = f"ViG-T, {size}x{size}, batch {batch}, bf16 autocast, {about}\n"
    for mode in MODES:
        run = (
            forward_run(model, images)
            if mode == "forward"
            else training_run(model, images, labels, optimizer)
        )
        for _ in range(3):
            run()
        gpu.synchronize()
        with torch.profiler.profile() as profiler:  # of the CPU and, if there is one, the GPU
            run()
            gpu.synchronize()
        table = profiler.key_averages().table(sort_by="self_device_time_total", row_limit=40)
        text += f"\n{mode}\n{table}\n"
    write(Path(out), text)
    print(f"written: {out}")
