"""The gated feed-forward of both model families."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .linear import TokenLinear


class SwiGLU(nn.Module):
    """``w_out(silu(g) * u)`` with (g, u) the halves of ``w_in x``; no biases.

    Args:
        channels: C.
        multiple: the hidden width is 8C/3 rounded down, then up to a multiple of this.
        names: of the two projections; the public families call them differently.
    """

    def __init__(self, channels: int, multiple: int, names: tuple[str, str]) -> None:
        super().__init__()
        hidden = -(-(8 * channels // 3) // multiple) * multiple
        self.names = names
        self.add_module(names[0], TokenLinear(channels, 2 * hidden, bias=False))
        self.add_module(names[1], TokenLinear(hidden, channels, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, C]`` -> ``[B, N, C]``."""
        w_in, w_out = (getattr(self, name) for name in self.names)
        gate, up = w_in(x).chunk(2, dim=-1)
        return w_out(F.silu(gate, inplace=not torch.is_grad_enabled()).mul_(up))
