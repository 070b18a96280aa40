"""Compile flash-linear-attention's kernels in many processes, ahead of the benchmark with --fla.

example: python tools/benchmark/fla_warm.py --seconds 150

Its autotuning tries some 300 configurations for each pair of head widths, and compiles kernels anew
for every batch size and head count: many minutes for one process. Here process i of n is given
every n-th configuration only. What it compiles stays in Triton's cache on disk, where the
benchmark, which tunes over all configurations as ever, finds it.
"""

import argparse
import os
import subprocess
import sys
import time

import torch

SHAPES = 8  # as many as a few minutes suffice for, from the start of `shapes.all_shapes`


def every_nth(index: int, count: int) -> None:
    """Let Triton's autotuners created from now on know only their part of the configurations."""
    from triton.runtime.autotuner import Autotuner

    original = Autotuner.__init__

    def part(self, fn, arg_names, configs, *args, **kwargs) -> None:
        original(self, fn, arg_names, configs[index::count] or configs[:1], *args, **kwargs)

    Autotuner.__init__ = part


def worker(index: int, count: int) -> None:
    """Run the operators on the first shapes, forward and backward."""
    every_nth(index, count)  # before flash-linear-attention is imported and creates them
    import gpu_operator
    from gpu import Gpu
    from rivals import flash_linear_attention
    from shapes import all_shapes

    gpu = Gpu()
    for shape in list(all_shapes())[:SHAPES]:
        sets = gpu_operator.make_sets(shape, gpu, attention=False)[:1]
        for operator in flash_linear_attention().values():
            gpu_operator.forward(operator, iter(sets))
            gpu_operator.forward_backward(operator, iter(sets))
        gpu.synchronize()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=150, help="time limit (default 150)")
    parser.add_argument("--workers", type=int, default=min(os.cpu_count() or 1, 14))
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is not None:
        worker(args.worker, args.workers)
        return 0
    if not torch.cuda.is_available():
        parser.error("needs a CUDA GPU, and torch sees none")
    end = time.monotonic() + args.seconds
    command = [sys.executable, __file__, "--workers", str(args.workers), "--worker"]
    workers = [subprocess.Popen([*command, str(i)]) for i in range(args.workers)]
    ended = failed = 0
    for process in workers:
        try:
            failed += process.wait(max(end - time.monotonic(), 0)) != 0
            ended += 1
        except subprocess.TimeoutExpired:
            process.terminate()
    for process in workers:
        process.wait()
    print(f"{ended} of {len(workers)} processes compiled everything in time, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
