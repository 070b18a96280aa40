"""What the functions share that compute again, in the backward pass, what is cheap to compute.

They take the place of modules under plain autograd, which keeps the input of every operation. On a
CPU what treats every token alike runs in blocks of tokens, which stay in its caches.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from .layout import BLOCK

PLAIN = ("torch", "reference")
"""Backends of a model that leave to autograd what is kept."""


def recomputes(
    backend: str | None, x: Tensor, *modules: nn.Module, after_convolution: bool = False
) -> bool:
    """Whether a function that recomputes takes the place of these modules, which read x.

    Not without gradients, where nothing is kept; not in graphs that are recorded, whose compiler
    decides what it keeps; not where a module is hooked or was exchanged for another one; not where
    the modules themselves would have to say what is wrong with their input.
    """
    if backend in PLAIN or not torch.is_grad_enabled():
        return False
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if torch._C._are_functorch_transforms_active():
        return False
    parameters = [p for module in modules for p in module.parameters()]
    if not x.numel() or not (x.requires_grad or any(p.requires_grad for p in parameters)):
        return False
    # under autocast x is in half precision when it comes from a convolution
    dtype = parameters[0].dtype if after_convolution and autocast_is_on(x) else x.dtype
    if any(p.dtype != dtype or p.device != x.device for p in parameters):
        return False
    return all(_untouched(part) for module in modules for part in module.modules())


def _untouched(module: nn.Module) -> bool:
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return not any(hooks) and type(module).__module__.startswith(("torch.nn.modules.", __package__))


def autocast_is_on(x: Tensor) -> bool:
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def projection_dtype(x: Tensor) -> torch.dtype:
    """What linear layers and convolutions compute in: autocast's type where it is on."""
    casts = autocast_is_on(x) and x.dtype != torch.float64  # which autocast leaves alone
    return torch.get_autocast_dtype(x.device.type) if casts else x.dtype


def no_autocast(x: Tensor) -> AbstractContextManager:
    """The functions cast by hand, also where the backward pass runs under autocast."""
    device = x.device.type
    if not torch.amp.is_autocast_available(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def sample_scale(drop_path: nn.Module, x: Tensor) -> Tensor | None:
    """What stochastic depth multiplies the samples of ``[B, N, C]`` with, ``[B, 1, 1]``."""
    if isinstance(drop_path, nn.Identity) or not drop_path.training:
        return None
    return drop_path(torch.ones(len(x), 1, 1, dtype=x.dtype, device=x.device))


def scale_of_rows(scale: Tensor | None, x: Tensor) -> Tensor | None:
    """``[B, 1, 1]`` -> ``[B * N, 1]`` for ``x [B, N, C]``."""
    return None if scale is None else scale.expand(-1, x.shape[1], -1).reshape(-1, 1)


def scaled(x: Tensor, scale: Tensor | None, rows: slice) -> Tensor:
    return x[rows] if scale is None else x[rows] * scale[rows]


def add_scaled(x: Tensor, y: Tensor, scale: Tensor | None, rows: slice, out: Tensor) -> None:
    """x + scale * y into ``out``, rows of all but y."""
    if scale is None:
        torch.add(x[rows], y, out=out[rows])
    else:
        torch.addcmul(x[rows], y.to(x.dtype), scale[rows], out=out[rows])


def blocks_of(x: Tensor, whole: bool) -> Iterator[slice]:
    """Slices of the rows of x: one, or such that their activations stay in a CPU's cache."""
    step = len(x) if whole else BLOCK
    return (slice(start, start + step) for start in range(0, len(x), step))


def accumulate(sums: list, *terms: Tensor | None) -> None:
    """Add the gradients that another block of tokens gives, in float32 at least."""
    if not sums:
        sums.extend(None if x is None else x.to(wide(x.dtype)) for x in terms)
        return
    for total, term in zip(sums, terms, strict=True):
        if total is not None:
            total.add_(term)


def like(gradients: Iterable, weights: Iterable) -> Iterator[Tensor | None]:
    """Gradients in the dtypes of the weights; None for a weight that is not there."""
    return (None if w is None else g.to(w.dtype) for g, w in zip(gradients, weights, strict=True))
