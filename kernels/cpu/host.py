"""The CPU that runs this: its vectors, its threads, and the folder of what is compiled for it."""

import ctypes
import functools
import hashlib
import inspect
import os
import platform
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import llvmlite.binding
import numba
from numba import types
from numba.extending import lower_builtin, type_callable

OPTIONS = dict(boundscheck=False, error_model="numpy", nogil=True)


@functools.cache
def features() -> frozenset[str]:
    """What the CPU can do; NUMBA_CPU_FEATURES, which numba follows, overrules."""
    if numba.config.CPU_FEATURES is not None:
        listed = numba.config.CPU_FEATURES.split(",")
        return frozenset(name[1:] for name in listed if name.startswith("+"))
    host = llvmlite.binding.get_host_cpu_features()
    return frozenset(name for name, there in host.items() if there)


def lanes() -> int:
    """float32 in a vector; 0 for a CPU that no code has been made for."""
    if "avx512f" in features():
        return 16
    if {"avx2", "fma", "f16c"} <= features():
        return 8
    return 4 if platform.machine() in ("aarch64", "arm64") else 0


LANES = lanes()


@functools.cache
def folder() -> Path:
    """What is compiled depends on these sources, numba, LLVM and the CPU.

    numba itself would notice a change of the one file that a kernel is in.
    """
    sources = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]
    cpu = llvmlite.binding.get_host_cpu_name(), numba.config.CPU_NAME, sorted(features())
    made_by = numba.__version__, llvmlite.__version__, openmp() is None
    key = hashlib.sha256(repr([made_by, cpu, sources]).encode())
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    root = numba.config.CACHE_DIR or Path(cache, "vig_mm")
    return Path(root, f"cpu-{key.hexdigest()[:16]}")


def problem() -> str | None:
    """Why nothing can be compiled here, or None."""
    if numba.config.DISABLE_JIT:
        return "numba compiles nothing (NUMBA_DISABLE_JIT)"
    if not LANES:
        return f"no code has been made for this CPU ({platform.machine()})"
    try:
        folder().mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder()).close()
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        return f"what is compiled cannot be kept (set NUMBA_CACHE_DIR): {error}"
    return None


_names: Counter[str] = Counter()


def _named(function: Callable) -> Callable:
    """Under a name of its own: of those made in one place, as by a loop, numba knows the place.

    Kernels that different processes have compiled would share what has the same name.
    """
    name = f"{function.__module__}.{function.__qualname__}"
    _names[name] += 1
    function.__qualname__ += str(_names[name])
    return function


def inner(function: Callable) -> Callable:
    """A procedure inside kernels, compiled as a part of them; numbers are int64 or float64."""
    function = _named(function)

    @type_callable(function)
    def typer(context):
        def resolve(*args):
            return types.void

        resolve.pysig = inspect.signature(function)
        return resolve

    @lower_builtin(function, types.VarArg(types.Any))
    def lower(context, builder, signature, args):
        context.compile_internal(builder, function, signature, args)
        return context.get_dummy_value()

    return function


def small(function: Callable) -> Callable:
    """A function with results, for procedures."""
    wrappers = dict(no_cpython_wrapper=True, no_cfunc_wrapper=True)
    return numba.njit(**wrappers, **OPTIONS)(_named(function))


@functools.cache
def openmp() -> Callable | None:
    """Runs a C function on torch's own threads; None where torch has none of OpenMP's.

    Threads of our own would have to wait for these, which spin for a while after each of torch's
    operators.
    """
    run = getattr(ctypes.CDLL(None), "GOMP_parallel", None)  # torch exports what it was linked with
    if run is not None:
        run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        run.restype = None
    return run


if openmp() is not None:
    thread_num = types.ExternalFunction("omp_get_thread_num", types.int32())
    num_threads = types.ExternalFunction("omp_get_num_threads", types.int32())

    @small
    def place(p):
        """This thread's number, and how many there are: of OpenMP's, unless ``p`` begins so."""
        if p[0] < 0:
            return int(thread_num()), int(num_threads())
        return int(p[0]), int(p[1])
else:

    @small
    def place(p):
        return int(p[0]), int(p[1])


PLACE = 2  # numbers in front of a kernel's own


def kernel(function: Callable) -> Callable[[], Callable]:
    """A C function of the address of numbers, see `launch`; runs without the interpreter's lock.

    Returns:
        What gives it: compiled with the first call, and kept on disk.
    """

    @functools.cache
    def compiled() -> Callable:
        before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(folder())
        try:
            signature = types.void(types.CPointer(types.float64))
            code = numba.cfunc(signature, cache=True, **OPTIONS)(function)
        finally:
            numba.config.CACHE_DIR = before
        run = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(code.address)
        run.code = code  # which it must not outlive
        return run

    return compiled
