"""Read every image, label map and annotation of data sets, before a long training does.

Errors would stop training or teach wrong labels; warnings are what the libraries leave out or
change without a word; notes are worth knowing. The exit status is 1 when there are errors.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from vig_mm.checks.environment import exit_without_mmengine

exit_without_mmengine()

from mmengine.config import Config
from mmengine.registry import init_default_scope
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from vig_mm.apis.launch import add_config_options, load_config, run
from vig_mm.checks.data import DataCheck
from vig_mm.checks.data.coco_file import read_coco
from vig_mm.checks.data.data_set import SEVERITIES, Finding, number
from vig_mm.checks.environment import require
from vig_mm.errors import UsageError

SPLITS = ("train", "val", "test")
COLOURS = dict(zip(SEVERITIES, ("red", "yellow", "cyan"), strict=True))
FEW = 64  # files that other processes are not worth starting for
EXAMPLE = """examples:
  python tools/data/check_dataset.py configs/mmdet/mask-rcnn_vig-h-mini_fpn_digits.py
  python tools/data/check_dataset.py --coco data/my/train.json data/my/images
  python tools/data/check_dataset.py --ade data/my/images data/my/labels --num-classes 21
  python tools/data/check_dataset.py --imagenet data/my/train data/my/val
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("config", nargs="?", help="config file: the data of its loaders")
    what.add_argument("--coco", nargs=2, metavar=("FILE.json", "IMAGES"), help="COCO's format")
    what.add_argument("--ade", nargs=2, metavar=("IMAGES", "LABELS"), help="ADE20K's layout")
    what.add_argument(
        "--imagenet",
        nargs="+",
        metavar="FOLDER",
        help="folders with one folder for each class; of two the second is for validation",
    )
    parser.add_argument(
        "--splits", nargs="+", choices=SPLITS, default=SPLITS, help="loaders of CONFIG (all)"
    )
    parser.add_argument(
        "--classes", nargs="+", metavar="NAME", help="--coco: classes to use (the file's)"
    )
    parser.add_argument("--num-classes", type=int, help="--ade: how many classes there are")
    parser.add_argument(
        "--reduce-zero-label", action="store_true", help="--ade: 0 is no label, classes from 1"
    )
    parser.add_argument("--img-suffix", default=".jpg", help="--ade (.jpg)")
    parser.add_argument("--seg-map-suffix", default=".png", help="--ade (.png)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (all cores)")
    parser.add_argument("--out", metavar="FILE.json", type=Path, help="write everything here")
    add_config_options(parser)
    args = parser.parse_args()
    if args.ade and not args.num_classes:
        parser.error("--ade needs --num-classes")
    if args.imagenet and len(args.imagenet) > 2:
        parser.error("--imagenet takes one folder or two")
    for path in (*(args.coco or ()), *(args.ade or ()), *(args.imagenet or ())):
        if not os.path.exists(path):
            parser.error(f"{path!r} is not there (seen from {os.getcwd()!r})")
    if args.out is not None:
        try:
            make_writable(args.out)
        except OSError as error:
            parser.error(f"--out cannot be written: {error}")
    return args


def make_writable(path: Path) -> None:
    """Make the folder of a file, and see that the file can be written in it.

    Raises:
        OSError: it cannot.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    path.open("a").close()
    if is_new:
        path.unlink()


def config_of(args: argparse.Namespace) -> Config:
    """The given config, or one that has the given folders."""
    if args.config is not None:
        cfg = load_config(args)
        absent = [split for split in args.splits if cfg.get(f"{split}_dataloader") is None]
        if len(absent) == len(args.splits):
            raise UsageError(f"{args.config} has no {' and no '.join(absent)} loader")
        return cfg
    if args.coco:
        return coco_config(*args.coco, args.classes)
    if args.ade:
        images, labels = args.ade
        names = tuple(str(i + args.reduce_zero_label) for i in range(args.num_classes))
        return bare_config(
            "mmseg",
            train=dict(
                type="BaseSegDataset",
                metainfo=dict(classes=names),
                reduce_zero_label=args.reduce_zero_label,
                img_suffix=args.img_suffix,
                seg_map_suffix=args.seg_map_suffix,
                data_prefix=dict(img_path=images, seg_map_path=labels),
            ),
        )
    folders = dict(zip(("train", "val"), args.imagenet, strict=False))
    return bare_config(
        "mmpretrain",
        **{k: dict(type="CustomDataset", data_prefix=folder) for k, folder in folders.items()},
    )


def coco_config(path: str, images: str, classes: Sequence[str] | None) -> Config:
    """For scoring as well as training; with masks if any annotation has one."""
    content = read_coco(path)
    masks = False
    if isinstance(content, dict):
        classes = classes or [one["name"] for one in content.get("categories", [])]
        masks = any(one.get("segmentation") for one in content.get("annotations", []))
    data = dict(
        type="CocoDataset",
        ann_file=path,
        metainfo=dict(classes=tuple(classes or ())),
        data_prefix=dict(img=images),
        pipeline=[dict(type="LoadAnnotations", with_mask=masks)],
    )
    return bare_config("mmdet", val=data)


def bare_config(scope: str, **data: dict) -> Config:
    loaders = {f"{split}_dataloader": dict(dataset=one) for split, one in data.items()}
    require(scope)
    return Config(dict(default_scope=scope, **loaders))


def splits_of(cfg: Config, asked: Sequence[str]) -> tuple[str, ...]:
    """The asked loaders without copies: test is often val."""
    splits: dict[str, Any] = {}
    for split in asked:
        loader = cfg.get(f"{split}_dataloader")
        if loader is not None and loader not in splits.values():
            splits[split] = loader
    return tuple(splits)


def examine(cfg: Config, splits: tuple[str, ...], workers: int) -> tuple[list[Finding], bool]:
    """All that is found, the worst first, and whether any data set was read."""
    # the survey reads every label map
    check = DataCheck(cfg, splits, sample=0)
    pool = ProcessPoolExecutor(workers) if workers > 1 else None
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )

    def run_all(stage: str, function: Callable, items: Sequence) -> Iterator:
        if pool is None or len(items) < FEW:
            values = map(function, items)
        else:
            values = pool.map(function, items, chunksize=16)
        yield from bar.track(values, total=len(items), description=stage)

    try:
        if pool is not None:
            # starts the processes before the bar's thread: a fork would copy its locks
            pool.submit(int).result()
        with bar:
            check.survey(run_all)
    except BrokenProcessPool as error:
        raise UsageError(
            "a process was killed, probably for lack of memory (dmesg tells): use fewer, e.g. "
            "--workers 1"
        ) from error
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)
    found = sorted(check.findings, key=lambda one: SEVERITIES.index(one.severity))
    return found, bool(check.listings)


def report(found: list[Finding], name: str, has_config: bool, was_read: bool) -> None:
    # names of files need not be text
    sys.stdout.reconfigure(errors="backslashreplace")
    console = Console(soft_wrap=True, highlight=False)
    for one in found:
        # the key in the config means nothing without one
        text = one.text if has_config else one.text.partition(": ")[2]
        console.print(f"[{COLOURS[one.severity]}]{one.severity:8}[/]{escape(text)}")
    counts = Counter(one.severity for one in found)
    summary = ", ".join(number(counts[severity], severity) for severity in SEVERITIES)
    if left := sum(one.kind == "not-checked" for one in found):
        summary += f"; {number(left, 'data set')} not checked"
        if left == len(found) and not was_read:
            summary = "not checked"
    console.print(f"{name}: {summary}", markup=False)


def main() -> None:
    args = parse_args()
    cfg = config_of(args)
    init_default_scope(cfg.default_scope)
    splits = splits_of(cfg, args.splits)
    found, was_read = examine(cfg, splits, args.workers)
    name = args.config or " ".join(args.coco or args.ade or args.imagenet)
    report(found, name, args.config is not None, was_read)
    if args.out is not None:
        content = dict(data=name, splits=splits, findings=[vars(one) for one in found])
        args.out.write_text(json.dumps(content, indent=1) + "\n")
    if any(one.severity == "error" for one in found):
        sys.exit(1)


if __name__ == "__main__":
    run(main)
