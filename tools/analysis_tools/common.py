"""What the measuring commands share: time and memory of a call, the machine, tables and files.

Needs torch alone, so that a bare GPU machine can run `tools/benchmark`, too.
"""

import argparse
import datetime
import itertools
import json
import math
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.benchmark.utils.timer import timer  # waits for a GPU before it reads the clock

Run = Callable[[], object]
Parser = argparse.ArgumentParser
ROOT = Path(__file__).resolve().parents[2]
LEAST_RUNS, MOST_RUNS = 3, 15
OBJECTS = 8  # of a random image
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "bad_alloc")
os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # to the profiler a missing GPU is an error


def peak_bytes(run: Run, device: str) -> int:
    """Bytes that torch allocates at most during a call, over what was allocated before it."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = run()  # noqa: F841 - what it returns is part of what it needs
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True, acc_events=True) as profiler:
        run()
    events = profiler.profiler.kineto_results.events()
    changes = [(x.start_ns(), x.nbytes()) for x in events if x.name() == "[memory]"]
    held = itertools.accumulate(nbytes for _, nbytes in sorted(changes, key=lambda x: x[0]))
    return max([0, *held])


def measure(rivals: dict[str, Run], seconds: float, device: str) -> dict[str, dict]:
    """Time and memory of calls that run in turn, A B C A B C ..., so that drift hits all alike.

    Args:
        seconds: for each rival in all; at least `LEAST_RUNS` runs, at most `MOST_RUNS`.
        device: "cpu" or "cuda".

    Returns:
        Per rival ``median``, ``min``, ``max`` (seconds), ``runs`` and ``peak_bytes``; or
        ``missing``: why there is no figure.
    """
    found: dict[str, dict] = {}
    firsts: dict[str, float] = {}
    for name, run in rivals.items():
        try:
            if device == "cuda":
                run()  # compiles
            start = timer()
            found[name] = {"peak_bytes": peak_bytes(run, device)}
            firsts[name] = timer() - start
        except Exception as error:  # of one rival: noted, the others go on
            found[name] = {"missing": problem(error)}
            if device == "cuda":
                torch.cuda.synchronize()  # raises where the device itself is lost
                torch.cuda.empty_cache()
    slowest = max(firsts.values(), default=0)
    runs = min(max(int(seconds / max(slowest, 1e-6)), LEAST_RUNS), MOST_RUNS)
    times: dict[str, list[float]] = {name: [] for name in firsts}
    for i in range(-1 if slowest < 1 else 0, runs):  # the first run has warmed a slow one up
        for name in firsts:
            start = timer()
            rivals[name]()
            if i >= 0:
                times[name].append(timer() - start)
    for name, taken in times.items():
        found[name] |= {"median": statistics.median(taken), "min": min(taken), "max": max(taken)}
        found[name]["runs"] = runs
    return found


def problem(error: Exception) -> str:
    """One line for the table: why there is no figure."""
    text = str(error).strip().partition("\n")[0][:200]
    if isinstance(error, MemoryError) or any(x in str(error) for x in OUT_OF_MEMORY):
        return "out of memory"
    return f"failed: {text or type(error).__name__}"


def limit_memory(share: float = 0.9) -> None:
    """Let an allocation fail, rather than the machine, beyond this share of the free memory.

    Linux only, where /proc says what is free; elsewhere nothing is limited.
    """
    files = Path("/proc/meminfo"), Path("/proc/self/status")
    if not all(path.exists() for path in files):
        return
    lines = [line.split() for path in files for line in path.read_text().splitlines()]
    kib = {line[0]: int(line[1]) for line in lines if line[0] in ("MemAvailable:", "VmData:")}
    limit = 1024 * int(kib["VmData:"] + share * kib["MemAvailable:"])
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


class Budget:
    """A time limit that is looked at before every piece of work; None is no limit."""

    def __init__(self, minutes: float | None) -> None:
        self.end = math.inf if minutes is None else time.monotonic() + 60 * minutes

    def over(self, seconds: float = 0.0) -> bool:
        """Whether work of so many seconds would end too late."""
        return time.monotonic() + seconds >= self.end


def held_bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the weights and buffers."""
    return held_bytes(itertools.chain(model.parameters(), model.buffers()))


def machine(device: str = "cpu") -> dict[str, str | int]:
    """What a figure is worth nothing without; with ``device="cuda"`` also the GPU's side of it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    info: dict[str, str | int] = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "cpu": (names or [platform.processor() or platform.machine()])[0],
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device == "cuda":
        info |= {"gpu": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}
        for name in ("triton", "timm", "flash-linear-attention"):
            try:
                info[name] = version(name)
            except PackageNotFoundError:
                info[name] = "not installed"
    return info


def describe(*parts: dict) -> str:
    """``key value, key value``"""
    return ", ".join(f"{key} {value}" for part in parts for key, value in part.items())


def significant(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


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


def write_json(path: Path, **content: object) -> None:
    """An object with an entry a line, and of each list or dict of records a record a line."""
    lines = []
    for key, value in content.items():
        if isinstance(value, list) and value:
            text = "[\n  " + ",\n  ".join(json.dumps(x) for x in value) + "\n ]"
        elif isinstance(value, dict) and any(isinstance(x, dict) for x in value.values()):
            records = (f"{json.dumps(k)}: {json.dumps(x)}" for k, x in value.items())
            text = "{\n  " + ",\n  ".join(records) + "\n }"
        else:
            text = json.dumps(value)
        lines.append(f" {json.dumps(key)}: {text}")
    write(path, "{\n" + ",\n".join(lines) + "\n}\n")


def read_json(path: Path) -> dict:
    """What a command wrote earlier, or the end in one message."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        sys.exit(f"error: {path} is not what this command writes ({error}): delete or rename it")


def fill(text: str, name: str, content: str) -> str:
    """Replace what stands between ``<!-- name:begin -->`` and ``<!-- name:end -->``.

    Raises:
        ValueError: the text has no such pair of markers.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"the page lacks the lines '{begin}' and '{end}' around a table")
    return f"{before}{begin}\n\n{content}\n\n{end}{after}"


def fill_page(page: Path, name: str, content: str) -> None:
    """Renew what stands between a page's markers, or end in one message if there are none."""
    try:
        write(page, fill(page.read_text(), name, content))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {page}: {error}")
    print(f"written: {page}")


def make_parser(doc: str | None, out: str | None = None, page: bool = False) -> Parser:
    """A parser whose help is a module's docstring.

    Args:
        out: default of ``--out``, a .json or a .png file; None: there is no such option.
        page: with ``--page``, for `fill_page`.
    """
    parser = Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if out is not None:
        kind = png if out.endswith(".png") else Path
        parser.add_argument("--out", type=kind, default=out, metavar="FILE", help=f"default: {out}")
    if page:
        parser.add_argument("--page", type=Path, metavar="MD", help="page whose table to renew")
    return parser


def checked(kind: Callable[[str], Any], fits: Callable[[Any], bool], rule: str) -> Callable:
    """Type of an option: what ``kind`` makes of its text, if it fits."""

    def value(text: str) -> Any:
        if not fits(x := kind(text)):
            raise argparse.ArgumentTypeError(f"must be {rule}, got {text}")
        return x

    return value


def at_least(least: float, kind: Callable[[str], Any] = int) -> Callable:
    return checked(kind, lambda x: x >= least, f"at least {least}")


existing = checked(Path, Path.is_file, "an existing file")
png = checked(Path, lambda path: path.suffix.lower() == ".png", "a file that ends in .png")


def add_device(parser: Parser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    parser.add_argument("--threads", type=int, default=2, help="CPU: threads (default 2)")


def set_device(parser: Parser, args: argparse.Namespace) -> None:
    """Resolve ``--device``; on a CPU set the threads and limit the memory."""
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a CUDA GPU, and torch sees none")
    if args.device == "cpu":
        torch.set_num_threads(args.threads)
        limit_memory()


def run(main: Callable[[], None]) -> None:
    """Run a command as `vig_mm.apis.launch.run` does, without mmengine as it is."""
    try:
        from vig_mm.apis.launch import run as guarded
    except ModuleNotFoundError:  # a bare machine
        main()
    else:
        guarded(main)


def new_figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """A figure of a size in inches, and its panels ``[rows, columns]``; needs no display."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def save_figure(figure: Any, path: Path, dpi: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)


def gcvit_windows(size: int) -> tuple[int, int, int, int]:
    """Windows of GC ViT's stages for square images: as wide as in the paper, or one token wider.

    Raises:
        ValueError: none fits, as global queries must shrink to one window by halves.
    """
    width, rest = divmod(size, 32)
    while width > 8 and width % 2 == 0:
        width //= 2
    if rest or width not in (7, 8):
        raise ValueError(f"GC ViT: no window of 7 or 8 fits an image of {size}")
    return (width, width, 2 * width, width)


def without_padding(cfg: Any, size: tuple[int, int]) -> Any:
    """A config with nothing that pads images; VOLO and GC ViT, of one size only, get ``size``."""
    from vig_mm.errors import UsageError

    timm_model = cfg.model.get("backbone", cfg.model)
    name = timm_model.get("model_name", "")
    if name.startswith("volo"):
        timm_model.img_size = size
    elif name.startswith("gcvit"):
        if size[0] != size[1]:
            raise UsageError(f"GC ViT is built for square images here, not {size[0]}x{size[1]}")
        timm_model.update(img_size=size[0], window_size=gcvit_windows(size[0]))
    preprocessor = cfg.model.get("data_preprocessor", {})
    if "pad_size_divisor" in preprocessor:
        preprocessor.pad_size_divisor = 1
    return cfg


def make_batch(
    model: nn.Module, scope: str, size: tuple[int, int], batch: int
) -> tuple[Tensor, list]:
    """Random images ``[B, 3, H, W]`` on the model's device, and random labels as data samples."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, *size, generator=generator).to(device)
    if scope == "mmdet":
        from mmdet.testing import demo_mm_inputs

        data = demo_mm_inputs(
            batch, image_shapes=[(3, *size)] * batch, num_items=[OBJECTS] * batch, with_mask=True,
            num_classes=max(getattr(part, "num_classes", 0) for part in model.modules()),
        )  # fmt: skip
        with torch.no_grad():
            data = model.data_preprocessor(data, training=True)
        return data["inputs"], data["data_samples"]
    if scope == "mmseg":
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        samples = []
        for _ in range(batch):
            labels = torch.randint(model.decode_head.num_classes, (1, *size), generator=generator)
            sample = SegDataSample(gt_sem_seg=PixelData(data=labels))
            sample.set_metainfo(dict(img_shape=size, ori_shape=size, pad_shape=size))
            samples.append(sample.to(device))
        return images, samples
    from mmpretrain.structures import DataSample

    return images, [DataSample().set_gt_label(0).to(device) for _ in range(batch)]
