"""Train the built-in digits for thousands of iterations and see that memory does not grow.

Every config is trained by tools/train.py in a process of its own, with its data workers, its
checkpoints and ten validations. Meanwhile the memory of that process and its workers is sampled
from outside, and the device's peaks are read from the training log. What counts is the median of
the last fifth of the iterations against that of the second fifth; the first one is warm-up. Exit
status 1: something grew by more than --limit, or a training failed.

Example: python tools/dev/soak.py --iters 2000 --out work_dirs/soak.json
"""

# ruff: noqa: E402
import argparse
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from vig_mm.checks.environment import exit_without_mmengine

exit_without_mmengine()

import psutil
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

from vig_mm.apis.launch import run
from vig_mm.checks.config import ConfigOptions
from vig_mm.datasets import make_digits
from vig_mm.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = (
    "mmdet/mask-rcnn_vig-h-mini_fpn_digits.py",
    "mmseg/vig-h-mini_upernet_digits.py",
    "mmpretrain/vig-h-mini_digits.py",
)
LOG_INTERVAL = 5  # iterations between two lines of the log, which tell where the training is
PLACES = dict(process="the training process", workers="its data workers", device="the device")
VALIDATIONS = 10  # two of them in the warm-up
PARTS = 5  # of a run; the second and the last one are compared
MIN_SAMPLES = 5  # in each of the two
MB = 2**20
# glibc keeps freed blocks for later, of up to 32 MB, in a heap that grows with every new mixture of
# sizes. These make it return them, so that what is left is what the training holds.
RETURN_FREED = dict(MALLOC_MMAP_THRESHOLD_="131072", MALLOC_TRIM_THRESHOLD_="131072")

Samples = list[tuple[int, float]]
"""Pairs of an iteration and MB in use then."""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "configs",
        nargs="*",
        type=Path,
        default=[ROOT / "configs" / name for name in CONFIGS],
        help="configs of the digits data; default: the project's three",
    )
    parser.add_argument("--iters", type=int, default=2000, help="iterations (default 2000)")
    parser.add_argument(
        "--limit", type=float, default=2.0, help="growth that is allowed, in %% (default 2)"
    )
    parser.add_argument(
        "--interval", type=float, default=2.0, help="seconds between two samples (default 2)"
    )
    parser.add_argument(
        "--work-dir", type=Path, default=Path("work_dirs/soak"), help="folder of data and logs"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE.json",
        help="write or update results here, and FILE.md beside it",
    )
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=ConfigOptions,
        default={},
        metavar="KEY=VALUE",
        help="override entries of every config",
    )
    args = parser.parse_args()
    if args.iters < PARTS * LOG_INTERVAL:
        parser.error(f"--iters must be at least {PARTS * LOG_INTERVAL}, not {args.iters}")
    for path in args.configs:
        if not path.is_file():
            parser.error(f"config {str(path)!r} is not a file")
    if args.out is not None and args.out.suffix != ".json":
        parser.error(f"--out must end in .json, not {args.out.name!r}")
    return args


def soak_config(path: Path, folder: Path, iters: int, options: dict) -> Path:
    """The config with about so many iterations, written to ``folder``."""
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(options)
    hooks, loop = cfg.default_hooks, cfg.train_cfg
    hooks.logger.interval = LOG_INTERVAL
    hooks.checkpoint.max_keep_ckpts = 1
    if "max_iters" in loop:
        loop.max_iters, length = iters, iters
    else:
        init_default_scope(cfg.default_scope)
        images = len(DATASETS.build(cfg.train_dataloader.dataset))
        length = math.ceil(iters / math.ceil(images / cfg.train_dataloader.batch_size))
        loop.max_epochs = length
    loop.val_interval = hooks.checkpoint.interval = max(length // VALIDATIONS, 1)
    target = folder / f"{cfg.default_scope}.py"
    cfg.dump(target)
    return target


def own_memory(process: psutil.Process) -> float:
    """MB of a process, without its files' pages, which the system may drop at any time.

    Pages that it shares with others since a fork count fully: they are copied bit by bit, whenever
    a reference count or the garbage collector touches them, which is no growth of either process.
    Where Linux does not count that: resident pages.
    """
    try:
        rollup = Path(f"/proc/{process.pid}/smaps_rollup")
        lines = rollup.read_text().splitlines()[1:] if rollup.exists() else []
        used = process.memory_info().rss
    except (psutil.NoSuchProcess, ProcessLookupError, FileNotFoundError):  # it ended just now
        return 0.0
    fields = dict(line.split(":") for line in lines)
    if "Anonymous" in fields:
        kinds = ("Anonymous", "Pss_Shmem")
        used = sum(1024 * int(fields[kind].removesuffix("kB")) for kind in kinds)
    return used / MB


def log_lines(work_dir: Path) -> list[dict]:
    """Lines of the training log so far; the last one may be half written."""
    lines = []
    for path in sorted(work_dir.glob("*/vis_data/scalars.json")):
        whole, _, _ = path.read_text().rpartition("\n")
        lines += [json.loads(line) for line in whole.splitlines()]
    return [line for line in lines if "loss" in line]


def train(config: Path, folder: Path, interval: float) -> dict[str, Samples]:
    """Train in a process of its own; returns the samples of each of `PLACES`.

    Raises:
        UsageError: the training failed.
    """
    work_dir, log = folder / config.stem, folder / f"{config.stem}.log"
    shutil.rmtree(work_dir, ignore_errors=True)
    command = [sys.executable, ROOT / "tools/train.py", config.name, "--work-dir", work_dir.name]
    samples: dict[str, Samples] = {place: [] for place in PLACES}
    with log.open("w") as output:
        started = subprocess.Popen(
            list(map(str, command)),
            cwd=folder,
            env=RETURN_FREED | os.environ,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            process = psutil.Process(started.pid)
            while started.poll() is None:
                lines = log_lines(work_dir)
                if lines:
                    step, children = lines[-1]["step"], process.children(recursive=True)
                    samples["process"].append((step, own_memory(process)))
                    samples["workers"].append((step, sum(map(own_memory, children))))
                time.sleep(interval)
        finally:
            started.kill()
    if started.returncode:
        raise UsageError(f"the training failed: {log.read_text().strip().splitlines()[-1]} ({log})")
    samples["device"] = [
        (line["step"], line["memory"]) for line in log_lines(work_dir) if "memory" in line
    ]
    return samples


def growth(samples: Samples, iters: int) -> dict[str, float]:
    """Medians of the second and the last part of a run in MB, and growth between them in percent.

    Raises:
        UsageError: there are too few samples to tell.
    """

    def part(number: int) -> list[float]:
        first, last = (iters * i / PARTS for i in (number, number + 1))
        return [used for step, used in samples if first < step <= last]

    before, after = part(1), part(PARTS - 1)
    if min(len(before), len(after)) < MIN_SAMPLES:
        raise UsageError(
            f"{len(before)} and {len(after)} samples of memory are too few to compare: "
            "give more --iters"
        )
    start, end = median(before), median(after)
    return dict(start=start, end=end, growth=100 * (end / start - 1))


def soak(config: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Train one config in the current folder and compare."""
    written = soak_config(config, Path.cwd(), args.iters, args.cfg_options)
    began = time.monotonic()
    samples = train(written, Path.cwd(), args.interval)
    last = max((step for step, _ in samples["process"]), default=0)
    result = dict(
        config=config.name,
        task=written.stem,
        iterations=last,
        options={key: str(value) for key, value in args.cfg_options.items()},
        minutes=(time.monotonic() - began) / 60,
        python=platform.python_version(),
        torch=torch.__version__,
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        memory={place: growth(found, last) for place, found in samples.items() if found},
    )
    rounded = {
        place: [(step, round(used, 1)) for step, used in samples[place]]
        for place in ("process", "workers")
    }
    return dict(result, samples=rounded)


def table(results: Sequence[dict]) -> str:
    """Markdown."""
    lines = [
        "| config | iterations | memory of | after warm-up, MB | at the end, MB | growth |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        for place, use in result["memory"].items():
            lines.append(
                f"| {result['config']} | {result['iterations']} | {PLACES[place]} | "
                f"{use['start']:.0f} | {use['end']:.0f} | {use['growth']:+.2f} % |"
            )
    return "\n".join(lines)


PAGE = """# Memory of long trainings

Written by `tools/dev/soak.py`. Each of the configs below was trained on the built-in digits by
`tools/train.py`, with two data workers, checkpoints and ten validations. The memory of a process is
sampled every few seconds, without the pages of files (libraries, images), which the system may drop
at any time. A worker starts as a copy of the training process; pages that both share count for
each. glibc is set to return freed memory ({settings}), which it
would otherwise keep, so that the figures show memory in use. Device memory is the peak that
mmengine logs. "After warm-up" is the median over the second fifth of the iterations, "at the end"
that over the last fifth; a difference of more than {limit:g} % would be an error.

{table}

{runs}

To repeat it for all three tasks: `python tools/dev/soak.py --iters 2000 --out work_dirs/soak.json`
"""


def write(results: Sequence[dict], out: Path, limit: float) -> None:
    """Write the results to a JSON file and a page; those of other configs that are there stay."""
    kept = json.loads(out.read_text()) if out.exists() else []
    new = {result["config"] for result in results}
    out.parent.mkdir(parents=True, exist_ok=True)
    merged = [*(result for result in kept if result["config"] not in new), *results]
    out.write_text(json.dumps(merged) + "\n")
    runs = [
        f"- {one['config']}: {one['minutes']:.0f} minutes on {one['gpu'] or 'a CPU'}, "
        f"torch {one['torch']}, Python {one['python']}"
        + "".join(f", `{key}={value}`" for key, value in one["options"].items())
        for one in merged
    ]
    settings = " ".join(f"`{key}={value}`" for key, value in RETURN_FREED.items())
    page = PAGE.format(settings=settings, limit=limit, table=table(merged), runs="\n".join(runs))
    out.with_suffix(".md").write_text(page)


def main() -> None:
    args = parse_args()
    out = args.out and args.out.resolve()
    configs = [path.resolve() for path in args.configs]
    args.work_dir.mkdir(parents=True, exist_ok=True)
    os.chdir(args.work_dir)  # where the configs find data/digits
    sizes = dict(coco_size=(96, 128), ade_size=(128, 128), imagenet_size=(64, 64))
    make_digits(Path("data/digits"), coco=(100, 10), ade=(100, 10), imagenet=(40, 4), **sizes)
    results = []
    for config in configs:
        results.append(soak(config, args))
        if out is not None:  # after each: a later one may fail
            write(results, out, args.limit)
    print(table(results))
    grown = [
        f"{result['config']} ({PLACES[place]})"
        for result in results
        for place, use in result["memory"].items()
        if use["growth"] > args.limit
    ]
    if grown:
        sys.exit(f"memory grew by more than {args.limit:g} %: {', '.join(grown)}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # and end the training, too
    run(main)
