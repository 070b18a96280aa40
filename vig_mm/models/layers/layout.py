"""Tokens ``[B, N, C]`` and channels-last maps ``[B, C, h, w]`` are two views of one memory."""

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 1024  # tokens: a block's activations stay in a CPU's cache


def to_map(x: Tensor, hw: tuple[int, int]) -> Tensor:
    """Tokens ``[B, h*w, C]`` in row-major order -> view ``[B, C, h, w]``."""
    return x.unflatten(1, hw).permute(0, 3, 1, 2)


def to_tokens(x: Tensor) -> Tensor:
    """Map ``[B, C, h, w]`` -> tokens ``[B, h*w, C]``, a view when x is channels last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def by_blocks(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Apply a function that treats every token alike, on the CPU a block of tokens at a time.

    Inference only, where it saves memory and time: activations of one block stay in cache.

    Args:
        function: of tensors ``[B, n, ...]``, to ``[B, n, C]``.
        inputs: ``[B, N, ...]``.
    """
    x = inputs[0]
    whole = x.is_cuda or torch.is_grad_enabled() or torch.compiler.is_compiling()
    if whole or x.shape[1] <= BLOCK:
        return function(*inputs)
    out = x.new_empty(0)  # made when the first block tells its width and dtype
    for start in range(0, x.shape[1], BLOCK):
        y = function(*(t[:, start : start + BLOCK] for t in inputs))
        if start == 0:
            out = y.new_empty(y.shape[0], x.shape[1], y.shape[2])
        out[:, start : start + BLOCK] = y
    return out
