"""The emulator itself: defects that it has to find, and none where there are none.

That instructions compute what they should show the cases of our kernels.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from unittest import mock

import torch
import triton
import triton.language as tl

from .case import Case
from .cases import BF16, fused, gla, projection, randn
from .emulator import SHARED_LIMITS


@triton.jit
def softmax_kernel(x, out, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    row = tl.program_id(0) * n
    v = tl.load(x + row + i, mask=i < n, other=-float("inf"))
    v = tl.exp(v - tl.max(v, axis=0))
    tl.store(out + row + i, v / tl.sum(v, axis=0), mask=i < n)


@triton.jit
def matmul_kernel(a, b, out, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    m, n = tl.arange(0, BM)[:, None], tl.arange(0, BN)[None, :]
    total = tl.zeros((BM, BN), tl.float32)
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        x, y = tl.load(a + m * K + k[None, :]), tl.load(b + k[:, None] * BN + n)
        total = tl.dot(x, y, total)
    tl.store(out + m * BN + n, total)


@triton.jit
def copy_kernel(x, out, n, SHIFT: tl.constexpr, BLOCK: tl.constexpr):
    """One program copies all; with a mask that is too wide for SHIFT > 0."""
    i = tl.arange(0, BLOCK) + SHIFT
    tl.store(out + i, tl.load(x + i, mask=i < n + SHIFT), mask=i < n + SHIFT)


@triton.jit
def reverse_kernel(x, BLOCK: tl.constexpr):
    """In place, without a barrier between what is written and what others read."""
    i = tl.arange(0, BLOCK)
    tl.store(x + i, tl.load(x + i) * 2)
    tl.store(x + i, tl.load(x + BLOCK - 1 - i))


@triton.jit
def all_write_kernel(out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, i + tl.program_id(0))


def softmax(edit=None, problems=()):
    (x,) = randn(0, (3, 200))

    def run(emulator):
        out = emulator.poisoned(torch.empty_like(x))
        softmax_kernel[(3,)](x, out, 200, BLOCK=256, num_warps=4)
        return {"out": out}

    name = "softmax" + (f" {edit}" if edit else "")
    return Case(name, run, lambda: {"out": x.double().softmax(1)}, 1e-6, problems=problems,
                edit=edit or Case._field_defaults["edit"])  # fmt: skip


def matmul(columns, K, stages=1, **checks) -> Case:
    """Of 64 rows in bfloat16, by four warps: on sm_90 by wgmma."""
    a, b = (x.bfloat16() for x in randn(1, (64, K), (K, columns)))

    def run(emulator):
        out = emulator.poisoned(torch.empty(64, columns))
        sizes = dict(BM=64, BN=columns, BK=32, num_warps=4, num_stages=stages)
        matmul_kernel[(1,)](a, b, out, K, **sizes)
        return {"out": out}

    name = f"matmul 64x{K}x{columns} {stages=} {checks.get('edit', '')}"
    return Case(name, run, lambda: {"out": a.double() @ b.double()}, 1e-5, **checks)


class Without:
    """Deletes an instruction, the `index`-th of those that match, from the PTX of a kernel."""

    def __init__(self, kernel: str, pattern: str, index: int = 0) -> None:
        self.kernel, self.pattern, self.index = kernel, pattern, index

    def __call__(self, ptx: str) -> str:
        if f".entry {self.kernel}(" not in ptx:
            return ptx
        found = list(re.finditer(rf"^\s*(?:@%\w+ )?{self.pattern}[^;]*;", ptx, re.MULTILINE))
        match = found[self.index]
        return ptx[: match.start()] + ptx[match.end() :]

    def __str__(self) -> str:
        return f"without {self.pattern} {self.index} of {self.kernel}"


def launched(name: str, run: Callable, *problems: str) -> Case:
    return Case(name, run, dict, 0.0, problems=problems)


def defects(capability: int) -> Iterator[Case]:
    """Each has to be found."""
    (x,) = randn(0, (200,))

    def copy(source, to, shift=0):
        copy_kernel[(1,)](source, to, 200, SHIFT=shift, BLOCK=256)
        return {}

    def writes_beyond(emulator):  # the storage goes on, the tensor does not
        return copy(torch.zeros(300), torch.zeros(300)[:200], shift=1)

    def reads_beyond(emulator):
        return copy(x, torch.zeros(300), shift=1)

    def reads_nothing(emulator):
        return copy(emulator.poisoned(torch.empty(200)), torch.zeros(200))

    def reverse(emulator):
        reverse_kernel[(1,)](torch.arange(256.0), BLOCK=256, num_warps=2)
        return {}

    def all_write(emulator):
        all_write_kernel[(2,)](torch.zeros(32, dtype=torch.int32), BLOCK=32, num_warps=1)
        return {}

    def takes_too_much(emulator):
        with mock.patch.dict(SHARED_LIMITS, {capability: 1}):
            return matmul(64, 64).run(emulator)

    yield launched("write beyond a tensor", writes_beyond, "out-of-bounds")
    yield launched("read beyond a tensor", reads_beyond, "out-of-bounds")
    yield launched("read of what nobody wrote", reads_nothing, "uninitialised")
    yield launched("race in global memory", reverse, "warp-race")
    yield launched("race of programs", all_write, "program-race")
    yield launched("too much shared memory", takes_too_much, "shared-memory")
    mutant = partial(Without, "matmul_kernel")
    staged = partial(matmul, 32, 96, stages=3)
    yield staged()
    yield staged(edit=mutant("cp.async.wait_group", 0), problems=("async-race",))
    if capability == 90:
        product = partial(matmul, 64, 64)
        yield product()
        yield product(edit=mutant("fence.proxy.async"), problems=("proxy",))
        yield product(edit=mutant("wgmma.wait_group"), problems=("async-race", "register-race"))
        yield product(edit=mutant("bar.sync"), problems=("warp-race",))


def mutants() -> Iterator[Case]:
    """Barriers of kernels deleted, one at a time."""
    yield softmax()
    for index in range(3):
        yield softmax(Without("softmax_kernel", r"bar\.sync", index), ("warp-race",))
    for case, kernel, index in (
        (gla(BF16, 2, 17, 1, 16, 32), "output_kernel", 0),
        (gla(BF16, 2, 17, 1, 16, 32), "gradient_kernel", 0),
        (projection(BF16, 2, 5, 1, 32, 32), "gate_projection_kernel", 0),
        # the first one stands before any use of shared memory
        (fused(BF16, 20, 32, 24, scaled=True), "feed_forward_kernel", 1),
    ):
        edit = Without(kernel, r"bar\.sync", index)
        name = f"{case.name} {edit}"
        yield case._replace(name=name, edit=edit, problems=("warp-race",))


def self_tests(capability: int = 80) -> Iterator[Case]:
    yield from defects(capability)
    yield from mutants()
