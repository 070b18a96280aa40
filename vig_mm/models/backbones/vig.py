"""Plain ViG: one resolution, stride 16 (ViG, section 3.4)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vig_mm.registry import MODELS

from ..layers import (
    GatedLinearAttention2d,
    LayerNorm2d,
    RMSNorm,
    Stem,
    SwiGLU,
    feed_forward,
    mix,
    to_map,
    to_tokens,
)
from .base import ViGBackbone, arch_settings, drop_path, drop_path_rates, resolve_out_indices


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


class Block(nn.Module):
    """x += mixer(norm(x)); x += MLP(norm(x)), on tokens ``[B, N, C]``."""

    def __init__(
        self, channels: int, num_heads: int, act: bool, drop_path_rate: float, backend: str | None
    ) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(channels)
        self.attn = GatedLinearAttention2d(channels, num_heads, act=act, backend=backend)
        self.mlp_norm = RMSNorm(channels)
        self.mlp = SwiGLU(channels, multiple=256, names=("gate_proj", "down_proj"))
        self.drop_path = drop_path(drop_path_rate)

    def forward(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        x = mix(x, self.attn_norm, self.attn, self.drop_path, hw)
        return feed_forward(x, self.mlp_norm, self.mlp, self.drop_path, self.attn.backend)


@MODELS.register_module()
class ViG(ViGBackbone):
    """Plain ViG backbone (arXiv 2405.18425).

    Args:
        arch: ``'tiny'``, ``'small'`` or ``'base'``; the keywords below override its entries.
        embed_dims: channels C. None: as ``arch`` says, here and in the next three.
        depth: number of blocks.
        num_heads: number of heads H.
        mixer_act: whether the token mixer has SiLUs, as in ViG-T.
        in_channels: channels of the images. Weights for another number are adapted: summed for
            one, else repeated and scaled.
        img_size: training image size in pixels, which sets the grid of ``pos_embed``. For images
            of another size it is resized (bicubic).
        out_indices: blocks whose output is returned, each through a norm of its own. The last
            block's norm is ``norm`` (the public one), another block i's is ``norm{i}``.
        drop_path_rate: stochastic depth of the last block.
        frozen_stages: -1 freezes nothing, 0 the patch and position embedding, i also the first i
            blocks.
        with_cp: activation checkpointing, block by block.
        backend: backend of the operator, see `vig_mm.kernels.bidirectional_gla`. ``'torch'`` is
            plain PyTorch under autograd throughout, which keeps more for the backward pass.
        init_cfg: ``dict(type='Pretrained', checkpoint=FILE)`` takes public ViG files and OpenMMLab
            checkpoints.

    Raises:
        ValueError: unknown arch, indices or rates out of range, an image smaller than a patch.
    """

    arch_zoo: dict[str, dict[str, Any]] = {
        "tiny": dict(embed_dims=192, depth=12, num_heads=3, mixer_act=True),
        "small": dict(embed_dims=384, depth=12, num_heads=6, mixer_act=False),
        "base": dict(embed_dims=768, depth=12, num_heads=12, mixer_act=False),
    }
    patch_size = 16
    first_convs: tuple[str, ...] = ("patch_embed.proj.0.weight",)

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
        frozen_stages: int = -1,
        with_cp: bool = False,
        backend: str | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        settings = arch_settings(
            self.arch_zoo,
            arch,
            dict(embed_dims=embed_dims, depth=depth, num_heads=num_heads, mixer_act=mixer_act),
        )
        depth = settings["depth"]
        super().__init__(in_channels, with_cp, frozen_stages, depth, init_cfg)
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
            Block(self.embed_dims, settings["num_heads"], settings["mixer_act"], rate, backend)
            for rate in drop_path_rates(drop_path_rate, depth)
        )
        # blocks after the last output would train nothing
        self.blocks = self.blocks[: self.out_indices[-1] + 1]
        for i in self.out_indices:
            self.add_module(self.norm_name(i, depth), RMSNorm(self.embed_dims))
        self.depth = depth
        self.train(self.training)

    @staticmethod
    def norm_name(block: int, depth: int) -> str:
        return "norm" if block == depth - 1 else f"norm{block}"

    def draw_weights(self) -> None:
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        super().draw_weights()

    def fit_state_dict(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Resize ``pos_embed`` of another training image size (bicubic), and fit the channels."""
        state = super().fit_state_dict(state)
        pos = state.get("pos_embed")
        if pos is None or pos.shape[1:] == self.pos_embed.shape[1:] or pos.dim() != 3:
            return state
        side = math.isqrt(pos.shape[1])
        if side * side != pos.shape[1]:
            raise ValueError(
                f"the checkpoint's pos_embed has {pos.shape[1]} positions, not a square grid, and "
                f"cannot be resized to {self.pos_grid[0]}x{self.pos_grid[1]}"
            )
        return {**state, "pos_embed": resize_pos_embed(pos, (side, side), self.pos_grid)}

    def frozen_parts(self) -> list[nn.Module | nn.Parameter]:
        if self.frozen_stages < 0:
            return []
        return [self.patch_embed, self.pos_embed, *self.blocks[: self.frozen_stages]]

    def embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Images ``[B, in_channels, H, W]`` -> tokens ``[B, h * w, C]`` with positions, (h, w)."""
        x = self.patch_embed(x)
        hw = (x.shape[2], x.shape[3])
        pos = resize_pos_embed(self.pos_embed, self.pos_grid, hw)
        return to_tokens(x) + pos.to(x.dtype), hw

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images ``[B, in_channels, H, W]`` -> one map ``[B, C, h, w]`` (stride 16) per out index.

        The two convolutions round: h = ceil(floor((H + 1) / 8) / 2), and w from W alike.
        """
        self.check_image(x)
        x, hw = self.embed(x)
        outs = []
        for i, block in enumerate(self.blocks):
            x = self.run_block(block, x, hw)
            if i in self.out_indices:
                norm = getattr(self, self.norm_name(i, self.depth))
                outs.append(self.as_output(norm, x, hw))
        return tuple(outs)

    def get_layer_depth(self, param_name: str, prefix: str = "") -> tuple[int, int]:
        """Depth of a parameter for layer-wise decay, and the number of layers.

        0 is the embedding, i + 1 block i; output norms and whatever does not start with
        ``prefix`` (heads) are the last layer.
        """
        num_layers = self.depth + 2
        name = param_name.removeprefix(prefix)
        if param_name.startswith(prefix):
            if name.startswith(("patch_embed", "pos_embed")):
                return 0, num_layers
            if name.startswith("blocks."):
                return int(name.split(".")[1]) + 1, num_layers
        return num_layers - 1, num_layers


def resize_pos_embed(pos: Tensor, grid: tuple[int, int], hw: tuple[int, int]) -> Tensor:
    """``[1, gh*gw, C]`` -> ``[1, h*w, C]``, bicubic in float32."""
    # a comparison with the symbols of torch.export would tie the program to its outcome
    if all(isinstance(side, int) for side in hw) and grid == hw:
        return pos
    pos = to_map(pos.float(), grid).contiguous()  # much faster than channels last
    return to_tokens(F.interpolate(pos, size=hw, mode="bicubic"))
