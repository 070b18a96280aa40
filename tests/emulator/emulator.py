"""Stands in for a GPU behind Triton: launches on CPU tensors run what Triton compiles, with checks.

Checked while a kernel runs, besides its results:

    out-of-bounds, misaligned   outside the elements of the tensors passed, or of shared memory
    uninitialised               global memory from `poisoned` tensors, or shared memory, that
                                nobody wrote
    warp-race, lane-race        two warps, two lanes, one of them writing, without a barrier
    program-race                two thread blocks of a launch, one of them writing
    async-race                  access to what a cp.async in flight writes or a wgmma reads
    register-race               use of a register of a wgmma in flight
    proxy                       wgmma reads what was written without fence.proxy.async since (but
                                by cp.async, behind which neither Triton nor CUTLASS has one)
    unawaited                   a cp.async in flight at the end
    shared-memory               more of it than a thread block of the GPU may have
    failed                      the emulator or Triton raised

Thread blocks run one by one, the warps of each in step.
"""

import contextlib
import ctypes
import sys
from collections import Counter, defaultdict
from unittest import mock

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime.jit import JITFunction

from .arithmetic import DTYPES, U4
from .memory import CELL, TICK, GlobalMemory
from .shared import SharedMemory
from .translate import Program

SHARED_LIMITS = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KB of a thread block


class Block:
    """One thread block while it runs; a translated kernel calls its methods."""

    def __init__(self, launch, index):
        self.launch, self.index = launch, index
        self.counted = index in launch.counted
        x, y, _ = launch.grid
        self.threads = np.arange(launch.program.kernel.threads)
        self.who = self.threads // 32 * 64 + self.threads % 32
        self.tid = self.threads.astype(U4)
        place = (index % x, index // x % y, index // x // y)
        self.ctaid, self.nctaid = (
            [np.full(len(self.threads), c, U4) for c in numbers] for numbers in (place, launch.grid)
        )
        self.visits = np.zeros(len(launch.program.opcodes), int)
        self.time = launch.time
        self.barrier()
        self.started = self.time
        self.shared = SharedMemory(self, launch.shared)

    def report(self, kind, site, bad, detail=""):
        if np.any(bad):
            self.launch.report(kind, self.launch.program.where(site), detail)

    def active(self, mask):
        return self.threads if mask is None else self.threads[mask]

    def branch(self, taken, target, after, site):
        if taken.any() and not taken.all():
            where = self.launch.program.where(site)
            raise NotImplementedError(f"a branch that only some threads take, {where}")
        return target if taken.any() else after

    def warp_barrier(self):
        self.time += TICK
        self.since_warp_barrier = self.time

    def barrier(self):
        self.warp_barrier()
        self.since_barrier = self.time

    def run(self, params):
        self.launch.program.function(self, params)
        unawaited = bool(self.shared.copies or any(self.shared.groups))
        if unawaited:
            self.launch.report("unawaited", "at the end")
        self.launch.visits += self.visits
        self.launch.time = self.time


class Launch:
    """One launch: what its thread blocks share, and what is counted in them.

    Attributes:
        sectors, wavefronts: by kind and site, of the blocks in ``counted``, see `counts`.
        visits: how often each basic block ran.
    """

    def __init__(self, problems, program, grid, shared, memory, counted):
        self.problems, self.program, self.grid, self.shared = problems, program, grid, shared
        self.memory, self.time = memory, 0
        self.blocks = grid[0] * grid[1] * grid[2]
        self.counted = {k % self.blocks for k in counted} if self.blocks else set()
        self.sectors, self.wavefronts = (defaultdict(lambda: np.zeros(3, int)) for _ in range(2))
        self.visits = np.zeros(len(program.opcodes), int)

    def report(self, kind, where, detail=""):
        self.problems[kind, self.program.kernel.name, f"{where} {detail}".strip()] += 1

    def run(self, params):
        with np.errstate(all="ignore"):
            for index in range(self.blocks):
                Block(self, index).run(params)
        self.memory.close()

    def opcodes(self):
        """Executed instructions of warps, by opcode."""
        total = Counter()
        for visits, ops in zip(self.visits, self.program.opcodes, strict=True):
            for op, count in ops.items():
                total[op] += int(visits) * count * self.program.kernel.threads // 32
        return total


class _Driver:
    """What Triton asks of a GPU's driver before it compiles."""

    def __init__(self, capability):
        self.capability = capability

    def get_current_device(self):
        return self.capability  # Triton keeps compiled kernels by device

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)


def passed(kinds, values):
    """What reaches the compiled kernel of the values of a signature, out of tuples."""
    for kind, x in zip(kinds, values, strict=True):
        if isinstance(kind, tuple):
            yield from passed(kind, x)
        elif kind != "constexpr":
            yield x


class Emulator:
    """Runs launches of Triton's kernels while it is `installed`.

    Args:
        capability: of the GPU, 80 for sm_80.
        counted: thread blocks of each launch whose accesses are counted.
        edit: changes the PTX of a kernel before it runs, for tests.

    Attributes:
        problems: (kind, kernel, place) -> occurrences.
        launches: all since `forget`.
    """

    def __init__(self, capability=80, counted=(), edit=lambda ptx: ptx):
        self.capability, self.counted, self.edit = capability, counted, edit
        self.problems, self.launches = Counter(), []
        self._programs = {}
        self._written, self._kept = {}, []  # cells of poisoned storages by address, and these

    def poisoned(self, x):
        """Fill a new tensor with NaN, and watch for reads before writes."""
        storage = x.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if size:
            ctypes.memset(address, 255, size)
            self._written[address] = np.zeros(-(-size // CELL), bool)
            self._kept.append(x)
        return x

    def forget(self):
        """End the watch over all tensors so far, and clear what was found."""
        for found in (self.problems, self.launches, self._written, self._kept):
            found.clear()

    def launch(self, compiled, grid, values):
        key = compiled.hash, self.edit
        if key not in self._programs:
            self._programs[key] = Program(self.edit(compiled.asm["ptx"]))
        program = self._programs[key]
        params = []
        for kind, x in zip(program.kernel.params, [*values, 0, 0], strict=True):  # two for scratch
            x = x.data_ptr() if isinstance(x, torch.Tensor) else x
            dtype = DTYPES[kind.replace("u", "s")]
            params.append(np.full(program.kernel.threads, x, dtype))
        tensors = [x for x in values if isinstance(x, torch.Tensor)]
        memory = GlobalMemory(tensors, self._written)
        shared = compiled.metadata.shared
        launch = Launch(self.problems, program, grid, shared, memory, self.counted)
        if shared > SHARED_LIMITS[self.capability] * 1024:
            launch.report("shared-memory", f"{shared} bytes")
        launch.run(params)
        launch.memory = None
        self.launches.append(launch)

    @contextlib.contextmanager
    def installed(self, package="vig_mm.kernels"):
        """Launches run here; `torch.empty` of modules in the package gives poisoned tensors, and
        they are told that CPU tensors may be launched with."""
        plain_run = JITFunction.run

        def run(kernel, *args, grid, warmup=False, **options):
            try:
                compiled = plain_run(kernel, *args, grid=grid, warmup=True, **options)
                named = dict(zip(kernel.arg_names, args, strict=False)) | options
                signature = compiled.src.signature
                values = list(passed(tuple(signature.values()), [named[n] for n in signature]))
                grid = grid(named) if callable(grid) else grid
                self.launch(compiled, (*grid, 1, 1)[:3], values)
            except Exception as error:  # whoever called may have another way
                where = f"{type(error).__name__}: {error}"
                self.problems["failed", kernel.__name__, where] += 1
                raise

        def poisoning(plain):
            def empty(*args, **options):
                x = plain(*args, **options)
                caller = sys._getframe(1).f_globals.get("__name__", "")
                return self.poisoned(x) if caller.startswith(package) else x

            return empty

        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.object(JITFunction, "run", run))
            # machine code is not used, and takes as long as all before it
            no_cubin = mock.patch.object(CUDABackend, "make_cubin", lambda *args: b"")
            stack.enter_context(no_cubin)
            for name in ("empty", "empty_like"):
                plain = getattr(torch, name)
                stack.enter_context(mock.patch.object(torch, name, poisoning(plain)))
            for name, module in list(sys.modules.items()):
                if name.startswith(package) and hasattr(module, "device_of"):
                    anywhere = mock.patch.object(
                        module, "device_of", lambda x: contextlib.nullcontext()
                    )
                    stack.enter_context(anywhere)
            driver = _Driver(self.capability)
            stack.enter_context(mock.patch.object(triton.runtime.driver, "_active", driver))
            yield self
