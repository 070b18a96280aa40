"""Plan a training: batch, rate, iterations, memory and hours on 1, 4, 8, ... GPUs. Nothing trains.

Examples:
    python tools/analysis_tools/plan_training.py configs/mmdet/mask-rcnn_vig-h-t_fpn_1x_coco.py
    python tools/analysis_tools/plan_training.py CONFIG --gpus 16 64 --gpu H100 --batch 4
    python tools/analysis_tools/plan_training.py CONFIG --gpus 8 --step-seconds 0.35

The learning rate is the config's, for its `auto_scale_lr.base_batch_size`, times the ratio of the
batches (what `--auto-scale-lr` sets) or times its root. Memory of a GPU is the sum of

- held: weights and buffers, averaged weights if there is an EMAHook, the optimizer's state;
- gradients, and on several GPUs as many bytes again for the buckets in which DDP adds them up;
- step: what a forward and a backward pass allocate besides, at their peak: measured on the CPU, in
  float32, at the size of the training crop, for small batches, and kept in --out. The Triton
  kernels and mixed precision need less; CUDA, NCCL and fragmentation come on top.

Hours are a range by assumption, as no GPU has been measured: in bfloat16, three times the model's
forward FLOPs at 40 to 4 % of the GPU's peak, and the bytes that the backbone moves (get_flops.py
--traffic), half of them at 80 % of its bandwidth to all at 20 %; the shortest if both overlap, the
longest if they follow each other, which detectors come near (seven hours of Swin-T in a Mask R-CNN
on eight A800s, issue 234 of VMamba). `--step-seconds`, of a run's log, replaces all this.
"""

import argparse
import hashlib
import math
import os
from functools import partial

import common
import torch
from get_flops import backbone_traffic, build, count_model, read_config
from mmengine.config import Config
from mmengine.registry import OPTIMIZERS
from torch.nn.modules.batchnorm import _BatchNorm

from vig_mm.apis.launch import run
from vig_mm.checks.config import pipeline_of
from vig_mm.errors import UsageError
from vig_mm.registry import type_name

# Images that one epoch trains on; of COCO train2017 those that have annotations.
TRAINING_IMAGES = {"CocoDataset": 117_266, "ADE20KDataset": 20_210, "ImageNet": 1_281_167}
# bf16 FLOP/s without sparsity (a multiply-add is two), bytes/s, by their data sheets
GPUS = {
    "A100": (312e12, 2.04e12), "H100": (989e12, 3.35e12), "H200": (989e12, 4.8e12),
    "RTX4090": (165e12, 1.01e12),
}  # fmt: skip
OF_PEAK, OF_BANDWIDTH, OF_BYTES = (0.4, 0.04), (0.8, 0.2), (0.5, 1.0)  # shortest, longest step
BATCHES = [1, 2]  # to measure
MARKERS, GIB = "plan", 2**30


def training_size(cfg: Config) -> tuple[int, int]:
    """Height and width in pixels of the largest images that a config trains on, padded.

    Raises:
        UsageError: the pipeline does not say.
    """
    steps = {type_name(step): step for step in pipeline_of(cfg, "train")}
    preprocessor = cfg.model.get("data_preprocessor", {})
    if cfg.default_scope == "mmseg":
        size = preprocessor.get("size")
    elif cfg.default_scope == "mmpretrain":
        size = steps.get("RandomResizedCrop", {}).get("scale")
    else:
        # a crop of fixed size comes last, else (long side, short side) bounds the image
        size = steps.get("RandomCrop", {}).get("crop_size")
        size = size or sorted(steps.get("Resize", {}).get("scale", ()))
        divisor = preprocessor.get("pad_size_divisor", 1)
        size = [-(-side // divisor) * divisor for side in size]
    if not size:
        raise UsageError("the training pipeline does not say how large images are: give --size H W")
    return (size, size) if isinstance(size, int) else tuple(size)


def measure(cfg: Config, size: tuple[int, int]) -> dict:
    """Bytes that a config's model holds, what a step of so many images allocates and computes.

    Returns:
        ``weights`` (with buffers), ``gradients`` and ``optimizer``; ``flops`` of an image's forward
        pass, ``traffic``: bytes of its training step; ``step``: peak by batch, or ``missing``: why
        there is none.
    """
    cfg = common.without_padding(cfg, size)
    torch.manual_seed(0)
    model = build(cfg)
    counted = count_model(model, cfg.default_scope, size)
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            # UperNet pools to one pixel, which has no statistics in a batch of one
            module.eval()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = OPTIMIZERS.build(dict(cfg.optim_wrapper.optimizer, params=trained))
    for parameter in trained:
        # there before a step: small batches would else peak at its end, large ones at its start
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # makes its state
    state = [x for entry in optimizer.state.values() for x in entry.values()]
    found = {
        "size": list(size),
        "weights": common.weight_bytes(model),
        "gradients": common.held_bytes(trained),
        "optimizer": common.held_bytes(x for x in state if torch.is_tensor(x)),
        "flops": counted["flops"],
        "step": {},
    }
    try:
        found["traffic"] = backbone_traffic(cfg, size)["training"]
    except Exception as error:  # an operator that torch's meta device does not know
        print(f"traffic not counted: {common.problem(error)}")

    def step(images: torch.Tensor, samples: list) -> None:
        loss, _ = model.parse_losses(model(images, samples, mode="loss"))
        loss.backward()

    for batch in BATCHES:
        try:
            inputs = common.make_batch(model, cfg.default_scope, size, batch)
            found["step"][str(batch)] = common.peak_bytes(partial(step, *inputs), "cpu")
        except (MemoryError, RuntimeError) as error:
            found["missing"] = f"batch {batch}: {common.problem(error)}"
            break
    return found


def step_bytes(step: dict[str, int], batch: int) -> float | None:
    """What a step of ``batch`` images allocates, from measurements of smaller batches."""
    known = sorted((int(images), peak) for images, peak in step.items())
    if not known:
        return None
    images, peak = known[-1]
    before = known[-2] if len(known) > 1 else (0, 0)
    each = (peak - before[1]) / (images - before[0])
    return peak + (batch - images) * each


def step_seconds(measured: dict, batch: int, gpu: str) -> tuple[float, float]:
    """The shortest and the longest step of ``batch`` images, see the module's docstring."""
    peak, bandwidth = GPUS[gpu]
    compute = [batch * 3 * 2 * measured["flops"] / (peak * share) for share in OF_PEAK]
    moved = batch * measured.get("traffic", 0) / bandwidth
    memory = [moved * part / share for part, share in zip(OF_BYTES, OF_BANDWIDTH, strict=True)]
    return max(compute[0], memory[0]), compute[1] + memory[1]


def plan(cfg: Config, measured: dict, gpus: int, options: argparse.Namespace) -> dict:
    """The plan of a config on so many GPUs.

    Args:
        measured: what `measure` returned.
        options: ``batch`` of each GPU and ``images`` of the data (None: the config's), ``gpu``,
            ``step_seconds`` (None: by assumption).

    Raises:
        UsageError: the config has no ``base_batch_size``, or ``images`` is needed.
    """
    base = cfg.get("auto_scale_lr", {}).get("base_batch_size")
    if base is None:
        raise UsageError("the config has no auto_scale_lr.base_batch_size, its rate's batch")
    images = options.images or TRAINING_IMAGES.get(type_name(cfg.train_dataloader.dataset))
    if images is None:
        raise UsageError("how many training images there are is not known: give --images N")
    batch = options.batch or cfg.train_dataloader.batch_size
    total = batch * gpus
    drop = cfg.train_dataloader.get("drop_last", False)
    epoch = max(images // total, 1) if drop else math.ceil(images / total)
    rate = cfg.optim_wrapper.optimizer.lr
    warm_up = sum(
        s.end * (epoch if s.get("by_epoch", True) else 1)
        for s in cfg.param_scheduler
        if type_name(s) == "LinearLR"
    )
    rates = {"linear": rate * total / base, "root": rate * (total / base) ** 0.5}
    entry = dict(gpus=gpus, batch=batch, base_batch=base, rate=rates, warm_up=warm_up)
    if "max_epochs" in cfg.train_cfg:
        epochs = cfg.train_cfg.max_epochs
        entry |= {"epochs": epochs, "iterations": epochs * epoch}
    else:
        its = cfg.train_cfg.max_iters
        entry |= {"iterations": its, "epochs": round(its * total / images, 1)}
        entry["iterations_for_the_same_images"] = round(its * base / total)
    averaged = any(type_name(hook) == "EMAHook" for hook in cfg.get("custom_hooks", []))
    memory = {
        "held": measured["weights"] * (1 + averaged) + measured["optimizer"],
        "gradients": measured["gradients"] * (2 if gpus > 1 else 1),
        "step": step_bytes(measured["step"], batch),
    }
    if memory["step"] is not None:
        memory["all"] = sum(memory.values())
    measured_step = (options.step_seconds,) * 2 if options.step_seconds else None
    seconds = measured_step or step_seconds(measured, batch, options.gpu)
    # a schedule in iterations, for as many images as the config's own batch sees
    steps = entry.get("iterations_for_the_same_images", entry["iterations"])
    return entry | {"memory": memory, "hours": [steps * x / 3600 for x in seconds]}


def table(plans: list[dict]) -> str:
    """A line a plan."""
    columns = ["", "images", "rate: linear, root", "iterations", "warm-up", "held, GiB",
               "gradients", "step", "all", "hours"]  # fmt: skip
    lines = []
    for entry in plans:
        rate, memory, iterations = entry["rate"], entry["memory"], f"{entry['iterations']:,}"
        iterations += f" ({entry['epochs']:g} epochs)"
        if "iterations_for_the_same_images" in entry:
            iterations += f"; same images: {entry['iterations_for_the_same_images']:,}"
        cells = (memory.get(key) for key in ("held", "gradients", "step", "all"))
        hours = dict.fromkeys(common.significant(x) for x in entry["hours"])
        lines.append(
            [
                f"{entry['config']}, {entry['gpus']} GPU{'s' * (entry['gpus'] > 1)}",
                f"{entry['batch']} x {entry['gpus']} = {entry['batch'] * entry['gpus']:,}",
                f"{rate['linear']:.3g}, {rate['root']:.3g}",
                iterations,
                f"{entry['warm_up']:,}",
                *("not measured" if x is None else common.significant(x / GIB) for x in cells),
                " to ".join(hours),
            ]
        )
    return common.markdown(columns, lines)


def main() -> None:
    parser = common.make_parser(__doc__, "work_dirs/plan.json", page=True)
    number, pixels = common.at_least(1), common.at_least(32)
    parser.add_argument("configs", nargs="+", type=common.existing, metavar="CONFIG")
    parser.add_argument("--gpus", nargs="+", type=number, default=[1, 4, 8], help="(1 4 8)")
    parser.add_argument("--gpu", choices=GPUS, default="A100", help="for the hours (A100)")
    parser.add_argument("--step-seconds", type=common.at_least(1e-9, float), help="of an iteration")
    parser.add_argument("--batch", type=number, help="images of each GPU (default: the config's)")
    parser.add_argument("--images", type=number, help="training images (default: of the data set)")
    parser.add_argument("--size", nargs=2, type=pixels, metavar=("H", "W"), help="training crop")
    parser.add_argument("--threads", type=number, default=os.cpu_count(), help="default: all")
    args = parser.parse_args()
    earlier = common.read_json(args.out) if args.out.is_file() else {}
    about, measured, plans = earlier.get("machine"), earlier.get("measured", {}), []
    torch.set_num_threads(args.threads)
    common.limit_memory()
    for path in args.configs:
        cfg = read_config(path)
        size, found = tuple(args.size or training_size(cfg)), measured.get(path.stem, {})
        asked = repr((cfg.model, cfg.optim_wrapper, size, BATCHES))
        key = hashlib.sha256(asked.encode()).hexdigest()[:16]
        if found.get("of") != key or "missing" in found:
            print(f"measuring {path.stem} at {size[0]}x{size[1]} ...", flush=True)
            found = measured[path.stem] = {**measure(cfg, size), "of": key}
            about = common.machine()
        plans += [{"config": path.stem, **plan(cfg, found, n, args)} for n in args.gpus]
        common.write_json(args.out, machine=about, measured=measured, plans=plans)
    assumed = f"assumed for {args.gpu}s in bfloat16: {OF_PEAK[0]:.0%} to {OF_PEAK[1]:.0%} of the "
    assumed += f"peak, {OF_BANDWIDTH[0]:.0%} to {OF_BANDWIDTH[1]:.0%} of the bandwidth"
    hours = f"as measured: {args.step_seconds} s a step" if args.step_seconds else assumed
    text = f"{table(plans)}\n\nMemory of a GPU; steps measured on a CPU in float32 "
    text += f"({common.describe(about)}). Hours {hours}; without data loading, communication and "
    text += "validation."
    for name, found in measured.items():
        text += f"\n\n{name}: {found['missing']}" if "missing" in found else ""
    print(f"{text}\nwritten: {args.out}")
    if args.page:
        common.fill_page(args.page, MARKERS, text)


if __name__ == "__main__":
    run(main)
