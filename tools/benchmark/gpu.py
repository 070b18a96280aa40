"""Time, peak memory and copy bandwidth on a CUDA device."""

import gc
import math
import statistics
import time
import traceback
from collections.abc import Callable

import torch
from common import statistic

Run = Callable[[], object]
SAMPLE_SECONDS = 2e-3  # between two events: long against the events themselves
MAX_CALLS, MIN_SAMPLES, MAX_SAMPLES = 20, 3, 25


class Gpu:
    """The current CUDA device. The tests replace what touches it by the CPU's clock."""

    def __init__(self) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        self.cache_bytes = torch.cuda.get_device_properties(self.device).L2_cache_size

    def event(self) -> torch.cuda.Event:
        return torch.cuda.Event(enable_timing=True)

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def attempt(self, run: Run) -> str | None:
        """Run once (which compiles) and wait; None, or what went wrong.

        Raises:
            RuntimeError: the device itself is lost, so that nothing more can be measured.
        """
        try:
            run()
            self.synchronize()
            return None
        except torch.OutOfMemoryError:
            problem = "out of memory"
        except Exception as error:
            traceback.print_exc()
            message = str(error).strip().partition("\n")[0][:200]
            problem = f"failed: {type(error).__name__}: {message}"
            self.synchronize()
        gc.collect()
        torch.cuda.empty_cache()
        return problem

    def time(self, rivals: dict[str, Run], seconds: float) -> dict[str, dict]:
        """Time the rivals in turn, about ``seconds`` each, with CUDA events.

        A sample is as many calls as fill 2 ms, at most 20. It begins on an idle device and nothing
        waits inside, so a rival whose launches take the CPU longer than the GPU needs is charged
        for that.

        Returns:
            Per rival: median, min and max seconds of a call; or ``missing``, why there are none.
        """
        results: dict[str, dict] = {}
        plans: dict[str, tuple[int, int]] = {}
        for name, run in rivals.items():
            if problem := self.attempt(run):
                results[name] = {"missing": problem}
                continue
            start = time.perf_counter()
            run()
            self.synchronize()
            once = time.perf_counter() - start
            calls = min(max(math.ceil(SAMPLE_SECONDS / once), 1), MAX_CALLS)
            samples = min(max(int(seconds / (once * calls)), MIN_SAMPLES), MAX_SAMPLES)
            plans[name] = calls, samples
        rounds = max((samples for _, samples in plans.values()), default=0)
        events: dict[str, list] = {name: [] for name in plans}
        for i in range(rounds):
            for name, (calls, samples) in plans.items():
                if i * samples // rounds == (i + 1) * samples // rounds:
                    continue  # a slow rival sits out some rounds, evenly spread
                start, end = self.event(), self.event()
                self.synchronize()  # else the launches would hide behind the rival before
                start.record()
                for _ in range(calls):
                    rivals[name]()
                end.record()
                events[name].append((start, end))
        self.synchronize()
        for name, (calls, _) in plans.items():
            elapsed = [start.elapsed_time(end) / 1e3 / calls for start, end in events[name]]
            results[name] = statistic(elapsed)
        return {name: results[name] for name in rivals}

    def peak(self, run: Run) -> int:
        """Bytes allocated at most during a call, over what was allocated before it."""
        self.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = run()  # noqa: F841 - what it returns is part of what it needs
        self.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def graph_seconds(self, run: Run, calls: int, replays: int = 10) -> float:
        """Seconds of a call without its launches' cost to the CPU: ``calls`` in one CUDA graph.

        Raises:
            RuntimeError: the call cannot be captured, for instance as it waits for the device.
        """
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(calls):
                run()
        graph.replay()
        events = [(self.event(), self.event()) for _ in range(replays)]
        for start, end in events:
            start.record()
            graph.replay()
            end.record()
        self.synchronize()
        return statistics.median(s.elapsed_time(e) for s, e in events) / 1e3 / calls

    def copy_bandwidth(self) -> float:
        """Bytes a second, read plus written, of copying 2 GiB (or an eighth of what is free)."""
        size = min(2**31, torch.cuda.mem_get_info()[0] // 8)
        generator = torch.Generator(self.device).manual_seed(0)
        source = torch.empty(size, dtype=torch.uint8, device=self.device)
        source.random_(generator=generator)
        target = torch.empty_like(source)
        stats = self.time({"copy": lambda: target.copy_(source)}, seconds=0.05)["copy"]
        return 2 * size / stats["median"]
