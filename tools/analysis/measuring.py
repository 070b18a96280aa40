"""Measurement of a model's time, peak memory and FLOPs, on a CPU or a GPU."""

import copy
import itertools
import math
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmark"))

from common import time_interleaved  # noqa: E402
from gpu import Gpu  # noqa: E402

Run = Callable[[], object]
MIN_RUNS, MAX_RUNS = 3, 15
os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # to the profiler a missing GPU is an error
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "bad_alloc")


class Cpu:
    """Times, and the peak of what torch's allocator hands out, on a CPU."""

    device = torch.device("cpu")

    def first(self, run: Run) -> dict:
        """The first run, which warms up: bytes allocated at most during it, and its seconds."""
        cpu = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(
            activities=cpu, profile_memory=True, acc_events=True
        ) as profiler:
            start = time.perf_counter()
            run()
            seconds = time.perf_counter() - start
        events = profiler.profiler.kineto_results.events()
        changes = [(x.start_ns(), x.nbytes()) for x in events if x.name() == "[memory]"]
        held = itertools.accumulate(nbytes for _, nbytes in sorted(changes, key=lambda x: x[0]))
        return {"peak_bytes": max(0, *held), "first": seconds}

    def time(self, rivals: dict[str, Run], firsts: dict[str, float], seconds: float) -> dict:
        """Time the rivals in turn, about ``seconds`` each, but not less than three runs.

        Args:
            firsts: seconds of each rival's first run. Rivals of which as many runs fit take turns.

        Returns:
            Per rival: median, min and max seconds, and the number of runs.
        """
        slowest = max(firsts.values())
        runs = min(max(int(seconds / slowest), MIN_RUNS), MAX_RUNS)
        # the first run of a slow rival has warmed up all that matters
        stats = time_interleaved(rivals, runs, warmup=1 if slowest < 1 else 0)
        return {name: {**entry, "runs": runs} for name, entry in stats.items()}


class CudaGpu(Gpu):
    """`Gpu` with the two calls of `Cpu`."""

    def first(self, run: Run) -> dict:
        run()  # compiles
        self.synchronize()
        start = time.perf_counter()
        peak = self.peak(run)
        return {"peak_bytes": peak, "first": time.perf_counter() - start}

    def time(self, rivals: dict[str, Run], firsts: dict[str, float], seconds: float) -> dict:
        return super().time(rivals, seconds)


def make_device(kind: str) -> Cpu | CudaGpu:
    return CudaGpu() if kind == "cuda" else Cpu()


def limit_memory(share: float = 0.9) -> None:
    """Let an allocation fail, rather than the machine, beyond this share of the free memory.

    Linux only, where /proc says what is free; elsewhere nothing is limited.
    """
    meminfo, status = Path("/proc/meminfo"), Path("/proc/self/status")
    if not (meminfo.exists() and status.exists()):
        return

    def kib(path: Path, key: str) -> int:
        return next(int(x.split()[1]) for x in path.read_text().splitlines() if x.startswith(key))

    limit = 1024 * int(kib(status, "VmData:") + share * kib(meminfo, "MemAvailable:"))
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def problem(error: Exception) -> str:
    """One line for the table: why there is no figure."""
    text = str(error).strip().partition("\n")[0][:200]
    if isinstance(error, MemoryError) or any(x in str(error) for x in OUT_OF_MEMORY):
        return "out of memory"
    return f"failed: {text or type(error).__name__}"


def multiply_adds(model: nn.Module, run: Callable[[nn.Module], object]) -> dict[str, int]:
    """Multiply-adds of ``run(model on torch's meta device)``, in all and of each module by name.

    Counts as count_flops.py does: products only, the recurrence of our operator included.
    """
    model = copy.deepcopy(model).eval().to("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run(model)
    # torch counts a multiply-add as two
    return {name: sum(ops.values()) // 2 for name, ops in counter.get_flop_counts().items()}


def held_bytes(model: nn.Module) -> int:
    """Bytes of the weights and buffers."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return sum(x.numel() * x.element_size() for x in tensors)


def significant(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"
