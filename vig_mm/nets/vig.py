"""Plain ViG: one resolution, stride 16 (ViG, section 3.4)."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import GatedLinearAttention2d
from .drop_path import drop_path_rates
from .ffn import SwiGLU
from .layout import to_map, to_tokens
from .network import Block, Network, arch_settings, resolve_out_indices
from .norm import LayerNorm2d, RMSNorm
from .stem import Stem


class PatchEmbed(nn.Module):
    """Two convolutions, stride 8 and 2. ``[B, in_channels, H, W]`` -> ``[B, C, H/16, W/16]``."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.proj = Stem(
            nn.Conv2d(in_channels, channels // 2, 9, stride=8, padding=1),
            LayerNorm2d(channels // 2),
            nn.SiLU(),
            nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1),
            LayerNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class PlainBlock(Block):
    """A block of ViG, with the names of the public checkpoints."""

    names = ("attn_norm", "attn", "mlp_norm", "mlp")

    def __init__(
        self, channels: int, num_heads: int, act: bool, drop_path_rate: float, backend: str | None
    ) -> None:
        attn = GatedLinearAttention2d(channels, num_heads, act=act, backend=backend)
        mlp = SwiGLU(channels, multiple=256, names=("gate_proj", "down_proj"))
        super().__init__(RMSNorm, attn, mlp, channels, drop_path_rate)


class ViG(Network):
    """Plain ViG (arXiv 2405.18425), one map of stride 16.

    Args:
        arch: ``'tiny'``, ``'small'`` or ``'base'``; the keywords below override its entries.
        embed_dims: channels C. None: as ``arch`` says, here and in the next three.
        depth: number of blocks.
        num_heads: number of heads H.
        mixer_act: whether the token mixer has SiLUs, as in ViG-T.
        in_channels: channels of the images.
        img_size: training image size in pixels, which sets the grid of ``pos_embed``. For images
            of another size it is resized (bicubic).
        out_indices: blocks whose output is returned, each through a norm of its own. The last
            block's norm is ``norm`` (the public one), another block i's is ``norm{i}``.
        drop_path_rate: stochastic depth of the last block.
        with_cp: activation checkpointing, block by block.
        backend: backend of the operator, see `vig_mm.kernels.bidirectional_gla`. ``'torch'`` is
            plain PyTorch under autograd throughout, which keeps more for the backward pass.

    Raises:
        ValueError: unknown arch, indices or rates out of range, no images of ``in_channels``.
    """

    arch_zoo: dict[str, dict[str, Any]] = {
        "tiny": dict(embed_dims=192, depth=12, num_heads=3, mixer_act=True),
        "small": dict(embed_dims=384, depth=12, num_heads=6, mixer_act=False),
        "base": dict(embed_dims=768, depth=12, num_heads=12, mixer_act=False),
    }
    patch_size = 16

    def __init__(
        self,
        arch: str = "tiny",
        *,
        embed_dims: int | None = None,
        depth: int | None = None,
        num_heads: int | None = None,
        mixer_act: bool | None = None,
        in_channels: int = 3,
        img_size: int | tuple[int, int] = 224,
        out_indices: int | Sequence[int] = -1,
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
        backend: str | None = None,
    ) -> None:
        settings = arch_settings(
            self.arch_zoo,
            arch,
            dict(embed_dims=embed_dims, depth=depth, num_heads=num_heads, mixer_act=mixer_act),
        )
        depth = settings["depth"]
        super().__init__(in_channels, with_cp)
        self.embed_dims = settings["embed_dims"]
        self.out_indices = resolve_out_indices(out_indices, depth, "blocks")

        self.patch_embed = PatchEmbed(in_channels, self.embed_dims)
        self.patch_embed.proj.backend = backend
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.pos_grid = (height // self.patch_size, width // self.patch_size)
        num_tokens = self.pos_grid[0] * self.pos_grid[1]
        if num_tokens == 0:
            raise ValueError(f"img_size={img_size} is smaller than a patch of {self.patch_size}")
        self.pos_embed = nn.Parameter(torch.zeros(1, num_tokens, self.embed_dims))
        self.blocks = nn.ModuleList(
            PlainBlock(self.embed_dims, settings["num_heads"], settings["mixer_act"], rate, backend)
            for rate in drop_path_rates(drop_path_rate, depth)
        )
        # blocks after the last output would train nothing
        self.blocks = self.blocks[: self.out_indices[-1] + 1]
        for i in self.out_indices:
            self.add_module(self.norm_name(i, depth), RMSNorm(self.embed_dims))
        self.depth = depth
        self.draw_weights()

    @staticmethod
    def norm_name(block: int, depth: int) -> str:
        return "norm" if block == depth - 1 else f"norm{block}"

    def draw_weights(self) -> None:
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        super().draw_weights()

    def embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Images ``[B, in_channels, H, W]`` -> tokens ``[B, h * w, C]`` with positions, (h, w)."""
        x = self.patch_embed(x)
        hw = (x.shape[2], x.shape[3])
        pos = resize_pos_embed(self.pos_embed, self.pos_grid, hw)
        return to_tokens(x) + pos.to(x.dtype), hw

    def stages(self, x: Tensor) -> Iterator[tuple[Tensor, tuple[int, int]]]:
        """Images ``[B, in_channels, H, W]`` -> each block's tokens ``[B, h*w, C]``, (h, w).

        The two convolutions round: h = ceil(floor((H + 1) / 8) / 2), and w from W alike.
        """
        x, hw = self.embed(self.fit_image(x))
        for block in self.blocks:
            x = self.run_block(block, x, hw)
            yield x, hw

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images ``[B, in_channels, H, W]`` -> a map ``[B, C, h, w]`` for each out index."""
        return tuple(
            self.as_output(getattr(self, self.norm_name(i, self.depth)), tokens, hw)
            for i, (tokens, hw) in enumerate(self.stages(x))
            if i in self.out_indices
        )


def resize_pos_embed(pos: Tensor, grid: tuple[int, int], hw: tuple[int, int]) -> Tensor:
    """``[1, gh*gw, C]`` -> ``[1, h*w, C]``, bicubic in float32."""
    # a comparison with the symbols of torch.export would tie the program to its outcome
    if all(isinstance(side, int) for side in hw) and grid == hw:
        return pos
    pos = to_map(pos.float(), grid).contiguous()  # much faster than channels last
    return to_tokens(F.interpolate(pos, size=hw, mode="bicubic"))
