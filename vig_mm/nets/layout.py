"""Tokens ``[B, N, C]`` and channels-last maps ``[B, C, h, w]`` are two views of one memory."""

from torch import Tensor


def to_map(x: Tensor, hw: tuple[int, int]) -> Tensor:
    """Tokens ``[B, h*w, C]`` in row-major order -> view ``[B, C, h, w]``."""
    return x.unflatten(1, hw).permute(0, 3, 1, 2)


def to_tokens(x: Tensor) -> Tensor:
    """Map ``[B, C, h, w]`` -> tokens ``[B, h*w, C]``, a view when x is channels last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)
