"""Norms over channels, for tokens and for maps that lie in memory channels last."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vig_mm.kernels.torch_utils import normalize


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension: x / sqrt(mean(x^2) + eps) * weight.

    Half-precision inputs are computed in float32, and only the result is rounded.
    """

    bias = None

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """``[..., dim]`` -> ``[..., dim]``."""
        if x.is_cuda:
            return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)
        return normalize(x, self.weight, None, self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, eps={self.eps}"


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of a map ``[B, C, h, w]``; free of copies when channels last.

    The result has the dtype of the weight. So the residual stream that starts here is float32 under
    autocast on every device; torch's own LayerNorm leaves it in half precision on a CPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1).to(self.weight.dtype)
        return super().forward(x).permute(0, 3, 1, 2)
