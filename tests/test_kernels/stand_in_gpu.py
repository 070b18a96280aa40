"""A stand-in for a GPU and its driver: Triton compiles, links and launches, nothing executes.

`build_driver` compiles a libcuda that counts launches or refuses them. In a process of its own
`pretend` takes CPU tensors for a GPU's, and `report` says what an operator does with them.
"""

import contextlib
import ctypes
import json
import subprocess
import warnings
from pathlib import Path

CALLS = """
cuCtxGetCurrent cuCtxGetLimit cuCtxSetCurrent cuCtxSetLimit cuDeviceGet cuDevicePrimaryCtxRetain
cuFuncSetAttribute cuFuncSetCacheConfig cuInit cuModuleGetFunction cuModuleLoadData cuModuleUnload
cuOccupancyMaxActiveClusters cuTensorMapEncodeTiled
"""
SOURCE = """
#include <stdlib.h>
int launches = 0;
int cuLaunchKernelEx() {  /* the error that the environment asks for */
  const char *fault = getenv("STAND_IN_FAULT");
  launches += !fault;
  return fault ? atoi(fault) : 0;
}
int cuGetErrorString(int code, const char **text) { *text = "stand-in error"; return 0; }
int cuDeviceGetAttribute(int *value, int name, int device) { *value = 232448; return 0; }
int cuFuncGetAttribute(int *value, int name, void *function) { *value = 1024; return 0; }
int cuCtxGetDevice(int *device) { *device = 0; return 0; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuStreamIsCapturing(void *stream, int *status) { *status = 0; return 0; }
int cuPointerGetAttribute(void **data, int name, void *pointer) { *data = pointer; return 0; }
"""


def build_driver(folder: Path) -> None:
    source = folder / "libcuda.c"
    calls = "\n".join(f"int {name}() {{ return 0; }}" for name in CALLS.split())
    source.write_text(f"{SOURCE}{calls}\n")
    out = folder / "libcuda.so.1"
    command = ["cc", "-w", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", out, source]
    subprocess.run(command, check=True)
    (folder / "libcuda.so").symlink_to(out)  # what Triton 3.5 links


def install_driver(folder: Path) -> ctypes.CDLL:
    """Have Triton launch into the driver in ``folder``, which is returned."""
    import triton
    from triton.backends.nvidia.driver import CudaDriver

    driver = ctypes.CDLL(str(folder / "libcuda.so.1"))
    triton.knobs.nvidia.libcuda_path = str(folder)

    class StandIn(CudaDriver):
        def __init__(self):
            super().__init__()
            self.get_current_device = lambda: 0
            self.get_current_stream = lambda device: 0
            self.get_device_capability = lambda device: (9, 0)

    type(triton.runtime.driver).default = property(lambda self: StandIn())
    return driver


def pretend(folder: Path) -> ctypes.CDLL:
    """Take the CPU for a GPU with the driver in ``folder``, which is returned."""
    from vig_mm.kernels import dispatch, readiness, trace_time
    from vig_mm.kernels.locality_gate import triton as kernels

    driver = install_driver(folder)
    kernels.device_of = lambda x: contextlib.nullcontext()
    dispatch.GPU = "cpu"
    trace_time.compute_capability = lambda index: (9, 0)
    trace_time.triton_obstacle = readiness.obstacle
    return driver


def report(driver: ctypes.CDLL) -> None:
    """Print what `locality_gate` does, both ways, by default and where the kernels are asked."""
    import torch

    from vig_mm.kernels import locality_gate

    x, grad = torch.randn(2, 1, 6, 2, 24)
    weight = torch.ones(24)

    def call(backend):
        leaves = [t.detach().requires_grad_() for t in (x, weight)]
        out = locality_gate(*leaves[:1] * 3, *leaves[1:] * 2, backend=backend)
        return [out, *torch.autograd.grad(out, leaves, grad)]

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = [call(None), call(None)]
    said = [str(w.message) for w in caught if "vig_mm" in str(w.message)]
    launches = ctypes.c_int.in_dll(driver, "launches").value
    pairs = zip(results[1], call("torch"), strict=True)
    plain = all(torch.allclose(x, y, atol=1e-5) for x, y in pairs)
    try:
        explicit = call("triton") and None
    except Exception as error:
        explicit = f"{type(error).__name__}: {error}"
    print(json.dumps(dict(said=said, launches=launches, plain=plain, explicit=explicit)))
