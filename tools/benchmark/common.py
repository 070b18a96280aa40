"""What the benchmarks share: interleaved timing, the machine's description, table and JSON."""

import datetime
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table


def machine() -> dict[str, str | int]:
    """What a figure is worth nothing without."""
    info: dict[str, str | int] = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        info["gpu"] = torch.cuda.get_device_name()
    return info


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


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
    return {
        name: {"median": statistics.median(s), "min": min(s), "max": max(s)}
        for name, s in seconds.items()
    }


def report(title: str, columns: list[str], rows: list[list[str]], data: dict, out: str) -> None:
    """Print a table; write it as markdown and the figures behind it, with the machine, as JSON."""
    table = Table(title=title)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), **data}, indent=1) + "\n")
    cells = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    about = ", ".join(f"{key} {value}" for key, value in machine().items())
    lines = [f"{title}. {about}.", "", *("| " + " | ".join(row) + " |" for row in cells)]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print(f"written: {path}, {path.with_suffix('.md')}")


def milliseconds(stats: dict[str, float]) -> str:
    """``12.3 (11.9-14.0)``: median and range."""
    return "{median:.1f} ({min:.1f}-{max:.1f})".format(**{k: 1e3 * x for k, x in stats.items()})
