"""Count what a training step keeps and moves in memory, of any config's model, without a GPU.

Examples:
    python tools/analysis/count_traffic.py configs/mmdet/mask-rcnn_vig-h-t_fpn_1x_coco.py --top 12
    python tools/analysis/count_traffic.py CONFIG CONFIG --size 800 1280 --json traffic.json
    python tools/analysis/count_traffic.py CONFIG --device cpu --whole

Counted are, for one image through a config's backbone, in float32, forward and backward pass:

- kept: bytes that autograd holds between the two, parameters not included;
- traffic: bytes that the operators read and write, each operator's tensors once.

Dense training on a GPU is bound by memory, so traffic ranks the time of models there, and what is
kept bounds the batch; neither is a measurement. Views and empty allocations move nothing. Of a
custom operator its inputs and outputs count, not what it moves inside. `--device meta` (the
default) computes nothing; our models take their Triton kernels, and linear layers are the products
that they are on a GPU. `--device cpu` runs the step as a CPU does: in plain PyTorch, our blocks
piece by piece, so that the traffic counts what stays in the caches, too. `--whole` takes the model
with its heads, losses and 8 random objects (on the CPU only: which boxes are proposed depends on
values).
"""

# ruff: noqa: E402
import argparse
import json
from pathlib import Path

from vig_mm.checks.environment import exit_without_mmengine

exit_without_mmengine()

import torch
from compare_backbones import TASKS, build, make_batch, read
from measuring import significant
from model_table import fill
from traffic import SIZE, backbone_traffic, training_traffic

from common import markdown, write  # isort: skip

from vig_mm.apis.launch import load_config, run

MARKERS = "traffic"


def count_whole(path: Path, size: tuple[int, int]) -> dict:
    """`training_traffic` of a config's model with its losses, for one image, on the CPU."""
    cfg = read(path, size)
    task = next(name for name, (folder, *_) in TASKS.items() if folder == cfg.default_scope)
    torch.manual_seed(0)
    model = build(cfg).train()
    images, samples = make_batch(model, task, size, 1)
    return training_traffic(
        lambda: model.parse_losses(model(images, samples, mode="loss"))[0], model.parameters()
    )


def table(results: dict[str, dict]) -> str:
    lines = [
        [
            name,
            significant(found["kept"] / 2**20),
            *(significant(found[key] / 2**30) for key in ("forward", "training")),
            str(found["operators"]),
        ]
        for name, found in results.items()
    ]
    columns = ["", "kept, MiB", "traffic forward, GiB", "forward + backward, GiB", "operators"]
    return markdown(columns, lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="config files")
    parser.add_argument(
        "--size", nargs=2, type=int, default=SIZE, metavar=("H", "W"), help="default: 512 512"
    )
    parser.add_argument("--device", choices=("meta", "cpu"), default="meta")
    parser.add_argument("--whole", action="store_true", help="with heads and losses; --device cpu")
    parser.add_argument("--top", type=int, default=0, help="list so many operators that move most")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--page", type=Path, metavar="MD", help="page whose table is to be renewed")
    args = parser.parse_args()
    if min(args.size) < 32:
        parser.error(f"--size: at least 32 pixels, got {args.size[0]} {args.size[1]}")
    if args.whole and args.device != "cpu":
        parser.error("--whole needs --device cpu: what a head does depends on values")
    results, size = {}, tuple(args.size)
    for path in args.configs:
        options = dict(cfg_options=None, work_dir=None, launcher="none", local_rank=0)
        cfg = load_config(argparse.Namespace(config=path, **options))
        found = count_whole(path, size) if args.whole else backbone_traffic(cfg, size, args.device)
        results[Path(path).stem] = found
    print(table(results))
    for name, found in results.items():
        for operator, moved in list(found["by_operator"].items())[: args.top]:
            print(f"{name}: {operator} {significant(moved / 2**30)} GiB")
    if args.json:
        settings = {"size": list(size), "device": args.device, "whole": args.whole}
        write(args.json, json.dumps({"settings": settings, "results": results}, indent=1) + "\n")
        print(f"written: {args.json}")
    if args.page:
        write(args.page, fill(args.page.read_text(), MARKERS, table(results)))
        print(f"written: {args.page}")


if __name__ == "__main__":
    run(main)
