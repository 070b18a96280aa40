"""Launches the kernels: segments, scratch memory, threads."""

import contextlib
import functools
import math
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import blocks
from .backward import BORDER, gradient_kernel
from .blocks import BFLOAT16, BLOCK, FLOAT16, FLOAT32
from .forward import half_kernel, output_kernel
from .host import LANES, openmp
from .states import INPUTS, Call, local_kernel

DTYPES = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}
SEGMENT = 2048  # tokens: what a segment keeps stays in the L2 cache
LONGEST = 16384  # tokens of a segment
WORK = 2**20  # entries of a state times tokens for which it pays to wake a thread
MOST_KEPT = 2**26  # bytes of scratch memory


def busy(programs: int, threads: int) -> float:
    """Share of the threads' time in which they have a program of equal ones."""
    return programs / (threads * math.ceil(programs / threads))


def make_plan(tokens: int, heads: int, threads: int, gradient: bool) -> tuple[int, int]:
    """Number of segments; heads of a program if they are the forward pass's halves, else 0."""
    # segments take half as much work again, halves none
    enough = 2 / 3 if gradient else 0.8
    if tokens <= 2 * BLOCK or tokens <= LONGEST and busy(heads, threads) >= enough:
        return 1, 0
    for group in range(heads, 0, -1) if not gradient else ():
        if heads % group == 0 and busy(2 * heads // group, threads) >= enough:
            return 2, group
    segments = min(math.ceil(4 * threads / heads), tokens // (4 * BLOCK))
    return max(math.ceil(tokens / SEGMENT), segments, 1), 0


def fits(x: Tensor) -> bool:
    """Whether the kernels read or write x where it is."""
    return x.dtype in DTYPES and x.stride(-1) == 1 and x.shape[-1] % LANES == 0


def fitting(x: Tensor) -> Tensor:
    """x, or a padded copy of it."""
    if fits(x):
        return x
    return F.pad(x if x.dtype in DTYPES else x.float(), (0, -x.shape[-1] % LANES)).contiguous()


def address(x: Tensor) -> blocks.Tensor:
    size = x.element_size()
    batch, token, head, _ = (stride * size for stride in x.stride())
    return blocks.Tensor(x.data_ptr(), batch, token, head, DTYPES[x.dtype], x.shape[-1])


@functools.cache
def pool(process: int) -> ThreadPoolExecutor:
    """Of this process: threads do not outlive a fork. It has as many as were needed at once."""
    return ThreadPoolExecutor(1024, "vig_mm_cpu")


_imported_by = os.getpid()


def launch(kernel: Callable, arguments: tuple, threads: int, keep: object) -> None:
    """Run a kernel on so many threads: torch's own, or Python's where OpenMP's cannot be had.

    Args:
        kernel: see `host.kernel`.
        arguments: named tuples of numbers: float64 holds addresses, of 48 bits, too.
        keep: what the addresses point into; an interrupt leaves Python's threads running.
    """
    run, numbers = kernel(), np.array([0, 1, *_flat(arguments)], np.float64)
    if threads == 1:
        run(numbers.ctypes.data)
    elif openmp() and os.getpid() == _imported_by:  # its threads do not outlive a fork either
        numbers[0] = -1
        openmp()(run.code.address, numbers.ctypes.data, threads, 0)
    else:

        def work(thread: int, keep: object = keep) -> None:
            own = np.array([thread, threads, *numbers[2:]])
            run(own.ctypes.data)

        others = [pool(os.getpid()).submit(work, thread) for thread in range(1, threads)]
        work(0)
        for other in others:
            other.result()


def _flat(numbers: tuple) -> Iterator[float]:
    for x in numbers:
        if isinstance(x, tuple):
            yield from _flat(x)
        else:
            yield x


class _Kept(threading.local):
    """Scratch memory of a thread's last call: new one would cost a page fault for every 4 KiB."""

    memory: Tensor | None = None


_kept = _Kept()


@contextlib.contextmanager
def scratch_memory(size: int) -> Iterator[Tensor]:
    """At least so many bytes; given back at the end, but not by a call that is interrupted."""
    memory, _kept.memory = _kept.memory, None
    if memory is None or len(memory) < size:
        memory = torch.empty(size, dtype=torch.uint8, device="cpu")
    yield memory
    if len(memory) <= MOST_KEPT:
        _kept.memory = memory


def run(
    inputs: tuple[Tensor, ...],
    results: tuple[Tensor, ...],
    plan: tuple[int, int] | None = None,
) -> None:
    """The forward or, with six inputs, the backward pass.

    Args:
        inputs: q, k, v, gate_f, gate_b and the gradient of the result.
        results: written to: the output, or the gradients of the first five inputs.
        plan: as `make_plan` gives it.
    """
    if not inputs[2].numel():
        return
    scale, gradient = 0.5 * inputs[0].shape[-1] ** -0.5, len(inputs) == 6
    padded = [fitting(x) for x in inputs]
    targets = [x if fits(x) else torch.empty_like(fitting(x)) for x in results]
    (batch, tokens, num_heads, width), v_width = padded[0].shape, padded[2].shape[-1]
    heads, state = batch * num_heads, 4 * width * v_width  # bytes
    threads = min(torch.get_num_threads(), heads * tokens * state // WORK + 1)
    segments, group = plan or make_plan(tokens, heads, threads, gradient)
    segment = math.ceil(tokens / segments / BLOCK) * BLOCK
    segments = math.ceil(tokens / segment)

    rows = segment + BLOCK
    size = 3 * state + 4 * (6 * BLOCK + 4) * width + 12 * BLOCK * v_width  # of a thread
    partial = 8 * heads * rows * v_width if group else 0
    if gradient:
        size += 4 * rows * (3 * width + v_width) + (segment // BORDER + 2) * state
    elif not group:
        size += 4 * rows * v_width
    states = heads * 2 * segments * (2 * state + 4 * width)
    with scratch_memory(states + partial + threads * size) as memory:
        start = memory.data_ptr()
        c = Call(
            tokens, num_heads, width, v_width, heads, segment, segments, scale, int(gradient),
            group, last=0, states=start, partial=start + states,
            scratch=start + states + partial, scratch_size=size,
        )  # fmt: skip
        nothing = blocks.Tensor(0, 0, 0, 0, 0, 0)
        x, y = ([*map(address, t), *[nothing] * (INPUTS - len(t))] for t in (padded, targets))
        steps = [(gradient_kernel if gradient else output_kernel, heads * segments, c)]
        if group:
            halves = (c._replace(last=last) for last in (0, 1))
            steps = [(half_kernel, 2 * heads // group, half) for half in halves]
        elif segments > 1:
            steps.insert(0, (local_kernel, 2 * heads * segments, c))
        for kernel, programs, c in steps:
            keep = padded, targets, memory
            launch(kernel, (c, *x, *y), min(threads, programs), keep)
    for result, target in zip(results, targets, strict=True):
        if result is not target:
            result.copy_(target[..., : result.shape[-1]])
