"""What torch.compile must not trace but call once, while it traces.

Imported on the first call with CUDA tensors only: importing the compiler takes a second.
"""

import warnings

import torch

_said: set[str] = set()


@torch.compiler.assume_constant_result
def compute_capability(index: int) -> tuple[int, int] | None:
    """Of a CUDA device; None where there is no driver, as with fake tensors on another machine."""
    return torch.cuda.get_device_capability(index) if torch.cuda.is_available() else None


@torch.compiler.assume_constant_result
def triton_obstacle() -> str | None:
    """Why no kernel can run in this process, or None; asked only where there is a driver."""
    from .readiness import obstacle

    return obstacle() if torch.cuda.is_available() else None


@torch.compiler.assume_constant_result
def is_exporting() -> bool:
    """Whether torch.export, the ONNX exporter or torch.jit.trace is recording.

    Traced, `torch.compiler.is_exporting` would be True under torch.compile, too. torch
    2.6 has none, and a Triton that the kernels do not run with.
    """
    exporting = getattr(torch.compiler, "is_exporting", bool)
    return exporting() or torch.onnx.is_in_onnx_export() or torch.jit.is_tracing()


@torch.compiler.assume_constant_result
def warn_once(message: str, reason: str | None = None) -> None:
    """Warn, each reason (or message) once in a process, at the line that called the operator."""
    if (reason or message) not in _said:
        _said.add(reason or message)
        warnings.warn(message, stacklevel=4)
