"""What all operators share: which backend runs, registration with torch, argument checks.

A backend is chosen before a call, and again where a kernel fails. The choice before a call depends
on the process, device, dtype and widths alone: to torch.compile it is a constant.
"""

import importlib.util
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils.flop_counter import register_flop_formula

GPU = "cuda"  # device type the kernels run on
AUTO = "auto"
"""What None becomes on a GPU: the kernels, and plain PyTorch where one of them fails."""
KERNELS = (AUTO, "triton")
PLAIN_OR_TRITON = ("torch", "triton")
"""Backends of the parts of a block."""
MAX_WIDTH = 128
TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MIN_CAPABILITY = (8, 0)  # what Triton supports
TRITON_INSTALLED = importlib.util.find_spec("triton") is not None
NUMBA_INSTALLED = importlib.util.find_spec("numba") is not None
P = ParamSpec("P")
Result = TypeVar("Result")
LIBRARY = torch.library.Library("vig_mm", "FRAGMENT")
_failed: set[tuple] = set()  # what `shape_class` gives of launches that failed


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

    The default is ``plain`` or, on a GPU where Triton works, `AUTO`.

    Args:
        backend: what the caller asked for.
        backends: names to choose from.
        plain: the one in plain PyTorch.
        limit_widths: whether the kernels limit the inputs' last dimension.
        inputs: by name; all have the first one's dtype and device.

    Raises:
        ValueError: the backend is unknown or does not take these inputs.
        ImportError: ``backend="triton"`` and there is no Triton, or "cpu" and no numba.
        RuntimeError: an explicit backend that cannot work on this machine.
    """
    x = next(iter(inputs.values()))
    widths = {name: y.shape[-1] for name, y in inputs.items()} if limit_widths else {}
    if backend is None:
        if x.device.type == GPU:
            from .trace_time import compute_capability, is_exporting, triton_obstacle

            capability = compute_capability(x.device.index)
            backend, reason = choose_backend(
                plain, x.device.type, capability, x.dtype, widths, is_exporting()
            )
            if backend == "triton":
                reason = triton_obstacle()
                backend = plain if reason else AUTO
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
        if x.device.type == GPU:
            from .trace_time import triton_obstacle

            if reason := triton_obstacle():
                raise RuntimeError(f"backend='triton': {reason}")
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


def operator(
    name: str, fake: Callable, mutates: Sequence[str] = (), flops: Callable[..., int] | None = None
) -> Callable[[Callable[P, Result]], Callable[P, Result]]:
    """Register a function with torch as ``vig_mm::name``, one step for whoever counts or traces.

    As `torch.library.custom_op` does, which takes 20 us more a call.

    Args:
        name: of the operator.
        fake: of the same arguments; returns empty tensors of the right shapes.
        mutates: arguments that are written to.
        flops: of the same arguments, shapes in place of tensors, for torch's FLOP counter.
    """

    def register(function: Callable[P, Result]) -> Callable[P, Result]:
        LIBRARY.define(name + torch.library.infer_schema(function, mutates_args=mutates))
        LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        torch.library.register_fake(f"vig_mm::{name}", fake, lib=LIBRARY)
        if flops is not None:
            register_flop_formula(getattr(torch.ops.vig_mm, name))(
                lambda *args, out_shape=None: flops(*args)
            )
        overload = getattr(torch.ops.vig_mm, name).default
        overload.__wrapped__ = function  # for those who record what it launches
        return overload

    return register


def run(
    operator: str,
    backend: str,
    kernels: Callable[[], Result],
    plain: Callable[[], Result],
    *tensors: Tensor,
) -> Result:
    """What ``kernels`` or ``plain`` returns; the body of every operator that has both forms.

    ``triton`` takes the kernels, `AUTO`, too, but plain PyTorch where they raise: from then on for
    all tensors of the same `shape_class`, with one warning a reason. What also plain PyTorch
    raises, such as an error in the inputs, is raised. A launch is asynchronous: what a kernel does
    wrong while it runs is an error of the process, and never hidden.

    Args:
        operator: its name, for the warning.
        backend: what `select_backend` gave.
        kernels: the Triton form. It may leave its outputs half written.
        plain: the same in plain PyTorch; writes all outputs.
        tensors: whose dtypes and sizes decide how the kernels are compiled and launched.
    """
    if backend not in KERNELS:
        return plain()
    if backend != AUTO:
        return kernels()
    if _failed and shape_class(operator, *tensors) in _failed:
        return plain()
    try:
        return kernels()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        traceback.clear_frames(error.__traceback__)  # their tensors: plain PyTorch needs the memory
        _raise_lost_context(tensors[0].device)
        from .readiness import explain
        from .trace_time import warn_once

        result = plain()
        _failed.add(shape_class(operator, *tensors))
        reason = explain(error)
        warn_once(
            f"vig_mm runs {operator} in plain PyTorch, slower, as its Triton kernel fails: "
            f"{reason}. Others that fail alike follow without a warning; "
            "python -m vig_mm.kernels tries them all.",
            reason.partition("\n")[0],  # the rest of an error of Triton is a kernel's own
        )
        return result


def shape_class(operator: str, *tensors: Tensor) -> tuple:
    """Launches that are taken to fail alike: one device, dtypes, widths, sizes within a factor 2.

    Kernels are compiled for dtypes and widths; what else fails depends on the size.
    """
    sizes = ((x.dtype, x.shape[-1], x.numel().bit_length()) for x in tensors)
    return operator, tensors[0].device, *sizes


def _raise_lost_context(device: torch.device) -> None:
    """Raise the error of a CUDA context that an earlier kernel has corrupted: nothing works there.

    A failed compilation or launch leaves the context as it was.
    """
    if torch.cuda.is_initialized() and not torch.cuda.is_current_stream_capturing():
        torch.cuda.synchronize(device)


def check_tokens(**named: Tensor) -> None:
    """Floating-point tensors ``[B, N, H, width]`` on one device, only B may be 0.

    Raises:
        TypeError: one is not a floating-point tensor.
        ValueError: one has other dimensions, no entries, or is on another device than the first.
    """
    first = next(iter(named))
    for name, x in named.items():
        check_floating(name, x)
        if x.dim() != 4:
            raise ValueError(f"{name} must be [B, N, H, width], got shape {tuple(x.shape)}")
        check_device(name, x, first, named[first])
        for size, meaning in zip(x.shape[1:], ("tokens", "heads", "width"), strict=True):
            if size == 0:
                raise ValueError(f"{name} needs {meaning} >= 1, got {tuple(x.shape)}")


def check_floating(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {x.dtype}")


def check_device(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    if x.device != other.device:
        raise ValueError(
            f"{name} is on {x.device}, {other_name} on {other.device}; put all on one device"
        )


def check_shape(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    if x.shape != other.shape:
        raise ValueError(
            f"{name} must have {other_name}'s shape {tuple(other.shape)}, got {tuple(x.shape)}"
        )
