"""Which backend runs, from device, dtype and widths alone: to torch.compile it is a constant."""

import importlib.util
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import Parameter

GPU = "cuda"  # device type the kernels run on
PLAIN_OR_TRITON = ("torch", "triton")
"""Backends of the parts of a block."""
MAX_WIDTH = 128
TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MIN_CAPABILITY = (8, 0)  # what Triton supports
TRITON_INSTALLED = importlib.util.find_spec("triton") is not None
NUMBA_INSTALLED = importlib.util.find_spec("numba") is not None


def unsupported(dtype: torch.dtype, widths: Mapping[str, int]) -> str | None:
    """Why the Triton kernels cannot take inputs of this dtype and these widths, or None."""
    if dtype not in TRITON_DTYPES:
        return f"the Triton kernels take float32, bfloat16 and float16, not {dtype}"
    for name, width in widths.items():
        if width > MAX_WIDTH:
            return f"{name} is {width} wide, the Triton kernels take at most {MAX_WIDTH}"
    return None


def cpu_unsupported(inputs: Mapping[str, Tensor]) -> str | None:
    """Why the CPU kernels cannot take these inputs, or None."""
    for name, x in inputs.items():
        if x.device.type != "cpu":
            return f"the CPU kernels need CPU tensors, {name} is on {x.device}"
        if x.dtype not in TRITON_DTYPES:
            return f"the CPU kernels take float32, bfloat16 and float16, {name} is {x.dtype}"
        if x.shape[-1] > MAX_WIDTH:
            return f"{name} is {x.shape[-1]} wide, the CPU kernels take at most {MAX_WIDTH}"
    return None


def choose_cpu(plain: str, inputs: Mapping[str, Tensor]) -> tuple[str, str | None]:
    """The default on a CPU, and why it is not the kernels where they should be."""
    recording = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if recording or not NUMBA_INSTALLED or cpu_unsupported(inputs):
        return plain, None
    if any(type(x) not in (Tensor, Parameter) for x in inputs.values()):
        return plain, None  # fake tensors and others without memory
    from .cpu import problem

    return (plain, reason) if (reason := problem()) else ("cpu", None)


def choose_backend(
    plain: str,
    device: str,
    capability: tuple[int, int] | None,
    dtype: torch.dtype,
    widths: Mapping[str, int],
    exporting: bool,
) -> tuple[str, str | None]:
    """The default backend, and why it is not Triton where a GPU lets one expect that.

    Args:
        plain: name of the backend in plain PyTorch.
        device: type of the inputs' device.
        capability: compute capability of a CUDA device, None where it is unknown.
        dtype: of the inputs.
        widths: name and width of the inputs whose width is limited.
        exporting: a graph is recorded that has to run without this package's kernels.
    """
    if device != GPU or exporting:
        return plain, None
    if not TRITON_INSTALLED:
        return plain, "the package triton is not installed (pip install triton)"
    if torch.version.hip is not None:
        return plain, "they have not been made for AMD GPUs, some of which lack tf32"
    if capability is not None and capability < MIN_CAPABILITY:
        found, needed = (".".join(map(str, version)) for version in (capability, MIN_CAPABILITY))
        return plain, f"the GPU has compute capability {found}, Triton needs {needed}"
    reason = unsupported(dtype, widths)
    return (plain, reason) if reason else ("triton", None)


def select_backend(
    backend: str | None,
    backends: tuple[str, ...],
    plain: str,
    *,
    limit_widths: bool = True,
    **inputs: Tensor,
) -> str:
    """``backend`` if these inputs can take it; for None the default, with a warning if it is slow.

    Args:
        backend: what the caller asked for.
        backends: names to choose from.
        plain: the one in plain PyTorch.
        limit_widths: whether the kernels limit the inputs' last dimension.
        inputs: by name; all have the first one's dtype and device.

    Raises:
        ValueError: the backend is unknown or does not take these inputs.
        ImportError: ``backend="triton"`` and there is no Triton, or "cpu" and no numba.
        RuntimeError: ``backend="cpu"`` and numba cannot compile here.
    """
    x = next(iter(inputs.values()))
    widths = {name: y.shape[-1] for name, y in inputs.items()} if limit_widths else {}
    if backend is None:
        if x.device.type == GPU:
            from .trace_time import compute_capability, is_exporting

            capability = compute_capability(x.device.index)
            backend, reason = choose_backend(
                plain, x.device.type, capability, x.dtype, widths, is_exporting()
            )
        else:
            backend, reason = choose_cpu(plain, inputs) if "cpu" in backends else (plain, None)
        if reason is not None:
            from .trace_time import warn_once

            kernels = "Triton" if x.device.type == GPU else "CPU"
            warn_once(
                f"vig_mm runs without its {kernels} kernels, slower: {reason}. "
                f"backend={plain!r} chooses this without a warning."
            )
        return backend
    if backend not in backends:
        raise ValueError(f"backend is {backend!r}; choose one of {', '.join(backends)} or None")
    if backend == "triton":
        if not TRITON_INSTALLED:
            raise ImportError(
                "backend='triton' needs the package triton: pip install triton, "
                "or leave backend out"
            )
        if reason := unsupported(x.dtype, widths):
            raise ValueError(f"backend='triton': {reason}; leave backend out")
    if backend == "cpu":
        if not NUMBA_INSTALLED:
            raise ImportError(
                "backend='cpu' needs the package numba: pip install numba, or leave backend out"
            )
        if reason := cpu_unsupported(inputs):
            raise ValueError(f"backend='cpu': {reason}; leave backend out")
        from .cpu import problem

        if not torch.compiler.is_compiling() and (reason := problem()):
            raise RuntimeError(f"backend='cpu': {reason}; leave backend out")
    return backend
