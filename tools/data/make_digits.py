"""Make the built-in digits data (COCO, ADE20K and ImageNet layouts), nothing downloaded."""

from __future__ import annotations

import argparse
import inspect
import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from vig_mm.datasets import make_digits

EXAMPLE = """example:
  python tools/data/make_digits.py data/digits
  python tools/data/make_digits.py /tmp/tiny --coco 40 10 --ade 0 0 --imagenet 0 0
"""


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=_Help, allow_abbrev=False
    )
    default = {k: v.default for k, v in inspect.signature(make_digits).parameters.items()}
    parser.add_argument("root", nargs="?", default="data/digits", help="folder of the set")
    parser.add_argument("--seed", type=int, default=default["seed"], help="seed of all images")
    for name, unit in (("coco", "images"), ("ade", "images"), ("imagenet", "images a class")):
        parser.add_argument(
            f"--{name}",
            type=int,
            nargs=2,
            metavar=("TRAIN", "VAL"),
            default=default[name],
            help=f"{unit}; 0 0 leaves this layout out",
        )
        parser.add_argument(
            f"--{name}-size",
            type=int,
            nargs=2,
            metavar=("HEIGHT", "WIDTH"),
            default=default[f"{name}_size"],
            help="pixels",
        )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the digits set that is there"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    bar = Progress(
        TextColumn("{task.description:15}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )
    tasks = {}

    def show(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            tasks[stage] = bar.add_task(stage, total=total)
        bar.update(tasks[stage], completed=done)

    try:
        with bar:
            made = make_digits(**vars(args), progress=show)
    except (ValueError, FileExistsError, ImportError) as error:
        sys.exit(f"error: {error}")
    print(f"digits data {'made in' if made else 'already there, reused:'} {args.root}")


if __name__ == "__main__":
    main()
