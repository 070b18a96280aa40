"""Plan a training on many GPUs: batch, learning rate, iterations, memory of each GPU. Nothing trains.

Examples:
    python tools/analysis/plan_training.py configs/mmdet/mask-rcnn_vig-h-t_fpn_1x_coco.py --gpus 64
    python tools/analysis/plan_training.py CONFIG CONFIG --gpus 16 --batch 4 --batches 1

The learning rate is the config's, for its `auto_scale_lr.base_batch_size`, times the ratio of the
batches (what `--auto-scale-lr` sets) or times its root. Memory of a GPU is the sum of

- held: weights and buffers, averaged weights if there is an EMAHook, the optimizer's state;
- gradients, and as many bytes again for the buckets in which DDP adds them up;
- step: what a forward and a backward pass allocate besides, at their peak: activations above all.
  Gradients are there before it. Otherwise small batches would have their peak at the end of the
  backward pass, from gradients, and large ones at its start, from activations.

The step is measured: on the CPU, in float32, with the chunked operator, at the size of the training
crop, with random images. Measured are small batches (--batches); more images are taken to need as
much each as the last one measured, or after a single measurement as the images of that one. It is no
reading of a GPU: the Triton operator needs less, mixed precision too; the CUDA context, NCCL and
fragmentation come on top. Measurements are kept in --out and used again, those that failed are
repeated; delete the file to repeat all.
"""  # noqa: E501

# ruff: noqa: E402
import argparse
import json
import math
import os
from functools import partial
from pathlib import Path

from vig_mm.checks.environment import exit_without_mmengine

exit_without_mmengine()

import torch
from compare_backbones import build, make_batch, read
from measuring import Cpu, held_bytes, limit_memory, problem, significant
from mmengine.config import Config
from mmengine.registry import OPTIMIZERS
from model_table import fill
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from common import machine, markdown, write  # isort: skip

from vig_mm.apis.launch import run
from vig_mm.checks.config import pipeline_of, read_config
from vig_mm.errors import UsageError
from vig_mm.registry import type_name

TASKS = {"mmdet": "det", "mmseg": "seg", "mmpretrain": "cls"}
# Images that one epoch trains on; of COCO train2017 those that have annotations.
TRAINING_IMAGES = {"CocoDataset": 117_266, "ADE20KDataset": 20_210, "ImageNet": 1_281_167}
MARKERS = "plan"


def training_size(cfg: Config) -> tuple[int, int]:
    """Height and width in pixels of the largest images that a config trains on, padded.

    Raises:
        UsageError: the pipeline does not say.
    """
    steps = {type_name(step): step for step in pipeline_of(cfg, "train")}
    preprocessor = cfg.model.get("data_preprocessor", {})
    if cfg.default_scope == "mmseg" and preprocessor.get("size"):
        return tuple(preprocessor.size)
    if cfg.default_scope == "mmpretrain" and "RandomResizedCrop" in steps:
        side = steps["RandomResizedCrop"].scale
        return (side, side) if isinstance(side, int) else tuple(side)
    if cfg.default_scope == "mmdet":
        # a crop of fixed size comes last, else (long side, short side) bounds the image
        crop, resize = steps.get("RandomCrop"), steps.get("Resize")
        scale = crop.crop_size if crop else sorted(resize.scale) if resize else None
        if scale is not None:
            divisor = preprocessor.get("pad_size_divisor", 1)
            return tuple(-(-side // divisor) * divisor for side in scale)
    raise UsageError("the training pipeline does not say how large images are: give --size H W")


def measure(path: Path, size: tuple[int, int], batches: list[int]) -> dict:
    """Bytes that a config's model holds, and that a step of so many images allocates at most.

    Returns:
        ``weights`` (with buffers), ``gradients`` and ``optimizer``; ``step``: peak by batch, or
        ``missing``: why there is none.
    """
    cfg, device = read(path, size), Cpu()
    torch.manual_seed(0)
    model = build(cfg).train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            # UperNet pools to one pixel, which has no statistics in a batch of one
            module.eval()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = OPTIMIZERS.build(dict(cfg.optim_wrapper.optimizer, params=trained))
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # makes its state
    state = [x for entry in optimizer.state.values() for x in entry.values()]
    found = {
        "size": list(size),
        "weights": held_bytes(model),
        "gradients": sum(x.numel() * x.element_size() for x in trained),
        "optimizer": sum(x.numel() * x.element_size() for x in state if torch.is_tensor(x)),
        "step": {},
    }
    for batch in batches:
        try:
            images, samples = make_batch(model, TASKS[cfg.default_scope], size, batch)
            step = partial(backward, model, images, samples)
            found["step"][str(batch)] = device.first(step)["peak_bytes"]
        except (MemoryError, RuntimeError) as error:
            found["missing"] = f"batch {batch}: {problem(error)}"
            break
    return found


def backward(model: nn.Module, images: torch.Tensor, samples: list) -> None:
    loss, _ = model.parse_losses(model(images, samples, mode="loss"))
    loss.backward()


def step_bytes(step: dict[str, int], batch: int) -> float | None:
    """What a step of ``batch`` images allocates, from measurements of smaller batches.

    Args:
        step: bytes by batch.
    """
    known = sorted((int(images), peak) for images, peak in step.items())
    if not known:
        return None
    images, peak = known[-1]
    before = known[-2] if len(known) > 1 else (0, 0)
    each = (peak - before[1]) / (images - before[0])
    return peak + (batch - images) * each


def plan(path: Path, gpus: int, batch: int | None, images: int | None, measured: dict) -> dict:
    """The plan of one config.

    Args:
        batch: images of each GPU; None: the config's.
        images: of the training data; None: as known of its data set.
        measured: what `measure` returned.

    Raises:
        UsageError: the config has no ``base_batch_size``, or ``images`` is needed.
    """
    cfg = read_config(str(path))
    base = cfg.get("auto_scale_lr", {}).get("base_batch_size")
    if base is None:
        raise UsageError(f"{path}: no auto_scale_lr.base_batch_size, which its rate belongs to")
    images = images or TRAINING_IMAGES.get(type_name(cfg.train_dataloader.dataset))
    if images is None:
        raise UsageError(f"{path}: give --images, the number of its training images")
    batch = batch or cfg.train_dataloader.batch_size
    total = batch * gpus
    drop = cfg.train_dataloader.get("drop_last", False)
    epoch = max(images // total, 1) if drop else math.ceil(images / total)
    written = cfg.optim_wrapper.optimizer.lr
    warm_up = sum(
        s.end * (epoch if s.get("by_epoch", True) else 1)
        for s in cfg.param_scheduler
        if type_name(s) == "LinearLR"
    )
    entry = {
        "config": path.stem,
        "gpus": gpus,
        "batch": batch,
        "global_batch": total,
        "base_batch": base,
        "lr": {
            "written": written,
            "linear": written * total / base,
            "sqrt": written * math.sqrt(total / base),
        },
        "warm_up": {"iterations": warm_up, "images": warm_up * total},
    }
    if "max_epochs" in cfg.train_cfg:
        epochs = cfg.train_cfg.max_epochs
        entry |= {"epochs": epochs, "iterations": epochs * epoch}
    else:
        its = cfg.train_cfg.max_iters
        entry |= {
            "iterations": its,
            "epochs": round(its * total / images, 1),
            "iterations_for_the_same_images": round(its * base / total),
        }
    averaged = any(type_name(hook) == "EMAHook" for hook in cfg.get("custom_hooks", []))
    step = step_bytes(measured["step"], batch)
    memory = {
        "held": measured["weights"] * (1 + averaged) + measured["optimizer"],
        "gradients": measured["gradients"] * (2 if gpus > 1 else 1),
        "step": step,
    }
    if step is not None:
        memory["all"] = sum(memory.values())
    return entry | {"memory": memory}


def tables(plans: list[dict], measured: dict[str, dict], about: dict) -> str:
    """The schedule, the memory, and below what was measured where."""
    gib = 2**30
    schedule, memory, notes = [], [], []
    for entry in plans:
        rates, warm_up = entry["lr"], entry["warm_up"]
        iterations = f"{entry['iterations']:,} ({entry['epochs']:g} epochs)"
        if "iterations_for_the_same_images" in entry:
            iterations += f"; same images: {entry['iterations_for_the_same_images']:,}"
        schedule.append(
            [
                entry["config"],
                f"{entry['batch']} x {entry['gpus']} = {entry['global_batch']:,}",
                f"{rates['written']:.3g} for {entry['base_batch']:,}",
                f"{rates['linear']:.3g}",
                f"{rates['sqrt']:.3g}",
                iterations,
                f"{warm_up['iterations']:,} ({warm_up['images']:,})",
            ]
        )
        cells, found = entry["memory"], measured[entry["config"]]
        memory.append(
            [
                entry["config"],
                "{}x{}".format(*found["size"]),
                *(
                    significant(cells[key] / gib) if cells.get(key) is not None else "not measured"
                    for key in ("held", "gradients", "step", "all")
                ),
                ", ".join(f"{b}: {significant(x / gib)}" for b, x in found["step"].items()),
            ]
        )
        if "missing" in found:
            notes.append(f"- {entry['config']}: {found['missing']}")
    described = ", ".join(f"{key} {value}" for key, value in about.items())
    parts = [
        markdown(
            ["", "images", "rate written", "linear", "root", "iterations", "warm-up (images)"],
            schedule,
        ),
        f"Memory of a GPU in GiB; steps measured on the CPU in float32 ({described}):",
        markdown(["", "HxW", "held", "gradients", "step", "all", "measured step by batch"], memory),
    ]
    return "\n\n".join(parts + ["\n".join(notes)] * bool(notes))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="+", type=Path, metavar="CONFIG")
    parser.add_argument("--gpus", type=int, required=True, help="of all machines together")
    parser.add_argument("--batch", type=int, help="images of each GPU (default: the config's)")
    parser.add_argument("--images", type=int, help="training images (default: of the data set)")
    parser.add_argument("--size", nargs=2, type=int, metavar=("H", "W"), help="training crop")
    parser.add_argument(
        "--batches", nargs="+", type=int, default=[1, 2], metavar="IMAGES",
        help="batches to measure (default: 1 2)",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all")
    parser.add_argument("--out", type=Path, default="work_dirs/plan/plan.json", metavar="JSON")
    parser.add_argument("--page", type=Path, metavar="MD", help="page whose table is to be renewed")
    args = parser.parse_args()
    for path in args.configs:
        if not path.is_file():
            parser.error(f"config {str(path)!r} is not a file")
    for name in ("gpus", "batch", "images", "threads"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name}: at least 1, got {getattr(args, name)}")
    if min(args.batches) < 1 or (args.size and min(args.size) < 32):
        parser.error("--batches needs images, and --size at least 32 pixels")
    return args


def main() -> None:
    args = parse_args()
    earlier = json.loads(args.out.read_text()) if args.out.is_file() else {}
    about, measured = earlier.get("machine"), earlier.get("measured", {})
    torch.set_num_threads(args.threads)
    limit_memory()
    plans = []
    for path in args.configs:
        size = tuple(args.size or training_size(read_config(str(path))))
        found = measured.get(path.stem, {})
        if found.get("size") != list(size) or "missing" in found:
            print(f"measuring {path.stem} at {size[0]}x{size[1]} ...", flush=True)
            measured[path.stem] = measure(path, size, sorted(set(args.batches)))
            about = machine()
        plans.append(plan(path, args.gpus, args.batch, args.images, measured[path.stem]))
        data = {"machine": about, "measured": measured, "plans": plans}
        write(args.out, json.dumps(data, indent=1) + "\n")
    text = tables(plans, measured, about)
    print(text)
    print(f"written: {args.out}")
    if args.page:
        write(args.page, fill(args.page.read_text(), MARKERS, text))
        print(f"written: {args.page}")


if __name__ == "__main__":
    run(main)
