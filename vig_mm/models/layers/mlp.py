"""The gated feed-forward of both model families."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .linear import TokenLinear

FLOAT16_MAX = torch.finfo(torch.float16).max


class SwiGLU(nn.Module):
    """``w_out(silu(g) * u)`` with (g, u) the halves of ``w_in x``; no biases.

    In float16 the product of g and u is kept inside its range.

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
        hidden = F.silu(gate, inplace=not torch.is_grad_enabled()).mul_(up)
        if hidden.dtype == torch.float16:  # inf would be NaN behind w_out
            hidden = F.hardtanh(hidden, -FLOAT16_MAX, FLOAT16_MAX, inplace=True)
        return w_out(hidden)
