"""The token mixer of ViG: depth-wise convolution, bidirectional GLA, and the gate between them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vig_mm.kernels import bidirectional_gla, locality_gate

from .layout import by_blocks, to_map, to_tokens
from .linear import TokenLinear
from .norm import RMSNorm

GATE_RANK = 16
HALF_PRECISION = (torch.bfloat16, torch.float16)


class GatedLinearAttention2d(nn.Module):
    """GLA with 2D gating locality injection (ViG, section 3.3).

    Args:
        channels: C; queries and keys are C/2 wide, values C.
        num_heads: H, must divide C/2.
        act: SiLU after the depth-wise convolution and before the output projection (ViG-T only).
        backend: of `vig_mm.kernels.bidirectional_gla`; the locality gate follows it. ``torch`` is
            ``chunked``, and has `mix` leave all to autograd.
    """

    def __init__(
        self, channels: int, num_heads: int, act: bool = False, backend: str | None = None
    ) -> None:
        super().__init__()
        if channels % (2 * num_heads):
            raise ValueError(f"channels={channels} must be a multiple of 2 * num_heads={num_heads}")
        self.num_heads = num_heads
        self.act = act
        self.backend = backend
        conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.in_proj = nn.Sequential(conv)
        self.qkv_proj = TokenLinear(channels, 2 * channels, bias=False)
        self.gk_proj = nn.Sequential(
            nn.Linear(channels, GATE_RANK, bias=False), nn.Linear(GATE_RANK, channels)
        )
        self.g_proj = TokenLinear(channels, channels)
        self.g_norm = RMSNorm(channels // num_heads)
        self.l_norm = RMSNorm(channels // num_heads)
        self.o_proj = TokenLinear(channels, channels, bias=False)

    def init_weights(self) -> None:
        """Xavier-uniform with gain 2^-2.5 for every projection, as the public models."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_uniform_(module.weight, gain=2**-2.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        """``[B, N, C]`` -> ``[B, N, C]``, N = h * w tokens in row-major order."""
        local = to_tokens(self.in_proj(to_map(x, hw)))
        if self.act:
            local = F.silu(local, inplace=not torch.is_grad_enabled())
        channels = local.shape[-1]

        def heads(t: Tensor) -> Tensor:
            return t.unflatten(-1, (self.num_heads, -1))

        backend = "chunked" if self.backend == "torch" else self.backend
        q, k, v = self.qkv_proj(local).split((channels // 2, channels // 2, channels), dim=-1)
        gate_f, gate_b = self.gk_proj(local).chunk(2, dim=-1)
        o = bidirectional_gla(
            heads(q),
            heads(k),
            heads(v),
            heads(gate_f),
            heads(gate_b),
            backend=backend,
            # beyond float16's range o would be inf, and NaN behind its norm
            out_dtype=torch.float32 if v.dtype == torch.float16 else None,
        )

        def gated(local: Tensor, o: Tensor) -> Tensor:
            y = locality_gate(
                o,
                heads(local),
                heads(self.g_proj(local)),
                self.g_norm.weight,
                self.l_norm.weight,
                eps=self.g_norm.eps,
                act=self.act,
                backend=self.backend if self.backend in (None, "triton") else "torch",
            )
            return self.o_proj(y.flatten(2).to(local.dtype))

        if o.is_cuda or self.backend == "triton":
            return gated(local, o)

        def inject(local: Tensor, o: Tensor) -> Tensor:
            if local.dtype in HALF_PRECISION:
                return gated(local, o)  # float32 inside
            g = heads(torch.sigmoid(self.g_proj(local)))
            y = torch.lerp(self.l_norm(heads(local)), self.g_norm(o), g).flatten(2)
            return self.o_proj(F.silu(y, inplace=not torch.is_grad_enabled()) if self.act else y)

        return by_blocks(inject, local, o)
