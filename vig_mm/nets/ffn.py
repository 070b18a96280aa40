"""The feed-forward half of a block."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vig_mm.kernels.dispatch import PLAIN_OR_TRITON, select_backend
from vig_mm.kernels.feed_forward import feed_forward

from .drop_path import DropPath
from .fuse import compute_dtype, fusable
from .norm import RMSNorm

FLOAT16_MAX = torch.finfo(torch.float16).max


class SwiGLU(nn.Module):
    """``w_out(silu(a) * u)`` with (a, u) the halves of ``w_in x``; no biases (arXiv 2002.05202).

    In float16 the product of a and u is kept inside its range.

    Args:
        channels: C.
        multiple: the hidden width is 8C/3 rounded down, then up to a multiple of this.
        names: of the two projections; the public families call them differently.
    """

    def __init__(self, channels: int, multiple: int, names: tuple[str, str]) -> None:
        super().__init__()
        hidden = -(-(8 * channels // 3) // multiple) * multiple
        self.names = names
        self.add_module(names[0], nn.Linear(channels, 2 * hidden, bias=False))
        self.add_module(names[1], nn.Linear(hidden, channels, bias=False))

    def layers(self) -> tuple[Any, Any]:
        """w_in and w_out."""
        first, last = self.names
        return self._modules[first], self._modules[last]

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, C]`` -> ``[B, N, C]``."""
        w_in, w_out = self.layers()
        a, u = w_in(x).chunk(2, dim=-1)
        hidden = F.silu(a) * u
        if hidden.dtype == torch.float16:  # inf would be NaN behind w_out
            hidden = F.hardtanh(hidden, -FLOAT16_MAX, FLOAT16_MAX)
        return w_out(hidden)


def ffn(
    x: Tensor,
    norm: nn.LayerNorm | RMSNorm,
    mlp: SwiGLU,
    drop_path: DropPath,
    scale: Tensor | None,
    backend: str | None,
) -> Tensor:
    """x + drop_path(mlp(norm(x)), scale) of tokens ``[B, N, C]``: one operator, or the modules.

    Where no gradient is recorded x may be overwritten.
    """
    w_in, w_out = mlp.layers()
    layers = ((norm, type(norm) is nn.LayerNorm), (w_in, False), (w_out, False))
    if type(mlp) is not SwiGLU or not fusable(x, backend, layers, (mlp, drop_path)):
        return x + drop_path(mlp(norm(x)), scale)
    if backend != "triton":
        backend = "torch" if backend else None
    return feed_forward(
        x, norm.weight, norm.bias, w_in.weight, w_out.weight, scale,
        eps=norm.eps, dtype=compute_dtype(x), inplace=True,
        backend=select_backend(backend, PLAIN_OR_TRITON, "torch", limit_widths=False, x=x),
    )  # fmt: skip
