"""What the benchmarks share: CPU timing, the machine's description, time budget, table and JSON."""

import datetime
import functools
import json
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

GPU_PACKAGES = ("triton", "timm", "flash-linear-attention", "fla-core")


def machine(device: str = "cpu") -> dict[str, str | int]:
    """What a figure is worth nothing without; with ``device="cuda"`` also the GPU's side of it."""
    info: dict[str, str | int] = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device == "cuda":
        info["gpu"] = torch.cuda.get_device_name()
        info["driver"] = _driver()
        info["cuda"] = str(torch.version.cuda)
        info |= {name: _version(name) for name in GPU_PACKAGES}
    return info


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@functools.cache
def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return "unknown"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    lines = subprocess.run(query, capture_output=True, text=True).stdout.split()
    return lines[0] if lines else "unknown"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


class Budget:
    """A time limit that is looked at before every piece of work; None is no limit."""

    def __init__(self, minutes: float | None) -> None:
        self.end = None if minutes is None else time.monotonic() + 60 * minutes

    def over(self) -> bool:
        return self.end is not None and time.monotonic() >= self.end


def statistic(seconds: list[float]) -> dict[str, float]:
    return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}


def time_interleaved(
    rivals: dict[str, Callable[[], object]], repeats: int, warmup: int = 2
) -> dict[str, dict[str, float]]:
    """Run the rivals in turn, A B C A B C ..., so that a drift of the machine hits all alike.

    Returns:
        Per rival: median, min and max seconds over ``repeats`` runs.
    """
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for i in range(warmup + repeats):
        for name, run in rivals.items():
            start = time.perf_counter()
            run()
            if i >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistic(s) for name, s in seconds.items()}


def markdown(columns: list[str], rows: list[list[str]]) -> str:
    """A table that reads well in a terminal, too; the first column left, the others right."""
    widths = [max(3, *map(len, cells)) for cells in zip(columns, *rows, strict=True)]

    def line(cells: list[str]) -> str:
        aligned = [cells[0].ljust(widths[0])]
        aligned += [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "| " + " | ".join(aligned) + " |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(columns), line(rule), *map(line, rows)])


def write(path: Path, text: str) -> None:
    """In one step, so that a process killed meanwhile leaves the last complete file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    part.write_text(text)
    os.replace(part, path)


def save(
    title: str,
    columns: list[str],
    rows: list[list[str]],
    data: dict,
    out: str | Path,
    device: str = "cpu",
) -> None:
    """Write the table as markdown and the figures behind it, with the machine, as JSON."""
    path, about = Path(out), machine(device)
    write(path, json.dumps({"machine": about, **data}, indent=1) + "\n")
    described = ", ".join(f"{key} {value}" for key, value in about.items())
    table = markdown(columns, rows)
    write(path.with_suffix(".md"), f"{title}. {described}.\n\n{table}\n")


def report(
    title: str, columns: list[str], rows: list[list[str]], data: dict, out: str | Path, **about
) -> None:
    """Print the table and `save` it."""
    save(title, columns, rows, data, out, **about)
    files = f"{Path(out)}, {Path(out).with_suffix('.md')}"
    print(f"{title}\n{markdown(columns, rows)}\nwritten: {files}", flush=True)


def earlier_results(out: str | Path, device: str) -> list[dict]:
    """The results in ``out``, if it was written on this machine with these versions; else none."""
    path = Path(out)
    if not path.exists():
        return []
    data = json.loads(path.read_text())
    about = machine(device)
    if {**data["machine"], "date": ""} != {**about, "date": ""}:
        print(f"{path} is of another machine or other versions: measuring everything again")
        return []
    return data["results"]


class Tried:
    """Notes beside ``out`` what a measurement is begun with, as a fault of a GPU ends the process:
    what has no result in the next run with ``resume`` is `lost`, and left out there."""

    def __init__(self, out: str | Path, resume: bool, done: set[str]) -> None:
        self.path = Path(f"{out}.tried")
        if not resume:
            self.path.unlink(missing_ok=True)
        begun = self.path.read_text().splitlines() if self.path.exists() else []
        self.lost = set(begun) - done
        for label in sorted(self.lost):
            print(f"left out, as it ended an earlier run: {label}", flush=True)

    def begin(self, label: str) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(f"{label}\n")

    def end(self) -> None:
        """Every measurement since `begin` has its result."""
        if not self.lost:
            self.path.unlink(missing_ok=True)


def milliseconds(stats: dict[str, float]) -> str:
    """``12.3 (11.9-14.0)``: median and range."""
    return "{median:.1f} ({min:.1f}-{max:.1f})".format(**{k: 1e3 * x for k, x in stats.items()})
