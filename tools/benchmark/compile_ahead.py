"""Run once, in many processes, what the GPU benchmarks will run: Triton keeps it on disk.

    python tools/benchmark/compile_ahead.py [--seconds 120]

Meant to run beside the tests, which need the GPU for little of their time. What fails here is
reported where it is measured.
"""

import argparse
import contextlib
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch

MAX_WORKERS = 8


def jobs() -> Iterator[Callable[[], object]]:
    """In the order in which they are measured."""
    import dense_backbones
    import gpu_backbones
    from gpu import Gpu
    from gpu_operator import forward, forward_backward, make_sets, ours
    from shapes import all_shapes

    gpu = Gpu()

    def operator(shape: tuple) -> None:
        sets = itertools.cycle(make_sets(shape, gpu, attention=False)[:1])
        forward(ours, sets)
        forward_backward(ours, sets)

    def dense(name: str) -> None:
        with torch.device(gpu.device):
            model = dense_backbones.build(name)
        images = torch.randn(dense_backbones.BATCH, 3, *dense_backbones.SIZE, device=gpu.device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        dense_backbones.training_step(model.train(), images, optimizer)
        dense_backbones.inference(model.eval(), images)

    def classifier(name: str, size: int) -> None:
        models, _ = gpu_backbones.build_all([name], size, gpu)
        batch = gpu_backbones.BATCHES[size]
        images = torch.randn(batch, 3, size, size, device=gpu.device)
        labels = torch.zeros(batch, dtype=torch.long, device=gpu.device)
        optimizer = torch.optim.SGD(models[name].parameters(), lr=0.0)
        gpu_backbones.forward_run(models[name], images)()
        gpu_backbones.training_run(models[name], images, labels, optimizer)()

    for name in dense_backbones.MODELS:
        if name not in dense_backbones.PEERS:
            yield partial(dense, name)
    for shape in all_shapes():
        yield partial(operator, shape)
    for contest in gpu_backbones.CONTESTS:
        for name in contest.models:
            if name.startswith("ViG"):
                yield partial(classifier, name, contest.size)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120, help="time limit")
    parser.add_argument("--worker", type=int, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("needs a CUDA GPU, and torch sees none")
    if args.worker:
        index, workers = args.worker
        for job in itertools.islice(jobs(), index, None, workers):
            with contextlib.suppress(Exception):
                job()
            torch.cuda.empty_cache()
        return 0
    workers = min(os.cpu_count() or 1, MAX_WORKERS)
    run_workers(__file__, workers, args.seconds)
    return 0


def run_workers(script: str, workers: int, seconds: float) -> None:
    """``script --worker i workers`` for each i, ended after some seconds."""
    command = [sys.executable, script, "--worker"]
    processes = [subprocess.Popen([*command, str(i), str(workers)]) for i in range(workers)]
    end = time.monotonic() + seconds
    for process in processes:
        try:
            process.wait(max(end - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
