"""Whether an operator takes the place of modules, and in which dtype it computes.

Blocks hand the weights of their modules to the operators of `vig_mm.kernels`. They call the modules
themselves where that would pass over something: a hook, a layer that was exchanged for another one
(LoRA, quantised), a graph that is recorded.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .norm import LayerNorm2d, RMSNorm

AUTOGRAD = ("torch", "reference")
"""Backends of a model that leave all to its modules, under plain autograd."""
LAYERS = (nn.Conv2d, nn.Linear, nn.LayerNorm, LayerNorm2d, RMSNorm)
WEIGHTS = (Tensor, nn.Parameter)


def fusable(
    x: Tensor,
    backend: str | None,
    layers: Iterable[tuple[nn.Module, bool]],
    holders: Iterable[nn.Module],
) -> bool:
    """Whether operators may compute from the weights of these layers.

    Args:
        x: what the first layer reads. Where it is on another device or in another dtype than that
            layer's weight (autocast's aside), the modules say what is wrong.
        backend: of the model.
        layers: all that have weights, and whether the operators expect a bias.
        holders: modules around them, which may have hooks.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if backend in AUTOGRAD or type(x) not in WEIGHTS or not x.numel():
        return False
    if torch._C._are_functorch_transforms_active() or any(map(_hooked, holders)):
        return False
    layers = tuple(layers)
    if not all(_plain(module) and (module.bias is not None) == bias for module, bias in layers):
        return False
    weight: Any = layers[0][0].weight
    return x.device == weight.device and x.dtype in (weight.dtype, compute_dtype(weight))


def _plain(layer: nn.Module) -> bool:
    """One of torch's own layers or ours, with weights that are ordinary tensors, without hooks."""
    return (
        type(layer) in LAYERS
        and not _hooked(layer)
        and all(p is None or type(p) in WEIGHTS for p in layer._parameters.values())
    )


def _hooked(module: nn.Module) -> bool:
    return bool(
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_pre_hooks
        or module._backward_hooks
    )


def compute_dtype(x: Tensor) -> torch.dtype:
    """What linear layers and convolutions compute in: autocast's type where it is on."""
    device = x.device.type
    if x.dtype == torch.float64 or not torch.amp.is_autocast_available(device):
        return x.dtype  # autocast leaves float64 alone
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
