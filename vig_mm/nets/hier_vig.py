"""Hierarchical ViG (ViG-H): four stages, strides 4 to 32 (ViG, section 3.4)."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from .attention import GatedLinearAttention2d
from .drop_path import drop_path_rates
from .ffn import SwiGLU
from .layout import to_map, to_tokens
from .network import Block, Network, arch_settings, resolve_out_indices
from .norm import LayerNorm2d
from .stem import Stem


def _stem(in_channels: int, channels: int) -> Stem:
    """``[B, in_channels, H, W]`` -> ``[B, C, H/4, W/4]``; names as in the public checkpoints."""
    return Stem(
        OrderedDict(
            [
                ("0", nn.Conv2d(in_channels, channels // 2, 3, stride=2, padding=1)),
                ("2", LayerNorm2d(channels // 2)),
                ("4", nn.GELU()),
                ("5", nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1)),
                ("7", LayerNorm2d(channels)),
            ]
        )
    )


def _downsample(channels: int) -> nn.Sequential:
    """``[B, C, h, w]`` -> ``[B, 2C, h/2, w/2]``."""
    conv = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1)
    return nn.Sequential(OrderedDict([("1", conv), ("3", LayerNorm2d(2 * channels))]))


class HierBlock(Block):
    """A block of ViG-H, with the names of the public checkpoints."""

    names = ("norm", "op", "norm2", "mlp")

    def __init__(
        self, channels: int, num_heads: int, drop_path_rate: float, backend: str | None
    ) -> None:
        attn = GatedLinearAttention2d(channels, num_heads, backend=backend)
        mlp = SwiGLU(channels, multiple=32, names=("fc1", "fc2"))
        super().__init__(nn.LayerNorm, attn, mlp, channels, drop_path_rate)


class HierViG(Network):
    """Hierarchical ViG (arXiv 2405.18425), a pyramid of maps.

    Args:
        arch: ``'tiny'``, ``'small'`` or ``'base'``; the keywords below override its entries.
        embed_dims: C of the first stage, doubled in each next one. None: as ``arch`` says, here
            and in the next two.
        depths: number of blocks of each stage.
        num_heads: number of heads H of each stage.
        in_channels: channels of the images.
        out_indices: stages whose output is returned, each through a LayerNorm ``norm{i}`` of its
            own. Stages after the last one of them are not built.
        drop_path_rate: stochastic depth of the last block.
        with_cp: activation checkpointing, block by block.
        backend: backend of the operator, see `vig_mm.kernels.bidirectional_gla`. ``'torch'`` is
            plain PyTorch under autograd throughout, which keeps more for the backward pass.

    Raises:
        ValueError: unknown arch, indices or rates out of range, no images of ``in_channels``.
    """

    arch_zoo: dict[str, dict[str, Any]] = {
        "tiny": dict(embed_dims=96, depths=(2, 2, 5, 2), num_heads=(3, 6, 12, 24)),
        "small": dict(embed_dims=96, depths=(2, 2, 17, 2), num_heads=(3, 6, 12, 24)),
        "base": dict(embed_dims=128, depths=(2, 2, 17, 2), num_heads=(4, 8, 16, 32)),
    }
    patch_size = 4

    def __init__(
        self,
        arch: str = "tiny",
        *,
        embed_dims: int | None = None,
        depths: Sequence[int] | None = None,
        num_heads: Sequence[int] | None = None,
        in_channels: int = 3,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        drop_path_rate: float = 0.2,
        with_cp: bool = False,
        backend: str | None = None,
    ) -> None:
        settings = arch_settings(
            self.arch_zoo, arch, dict(embed_dims=embed_dims, depths=depths, num_heads=num_heads)
        )
        self.depths = tuple(settings["depths"])
        heads = tuple(settings["num_heads"])
        num_stages = len(self.depths)
        if len(heads) != num_stages:
            raise ValueError(f"num_heads={heads} needs one entry a stage, as depths={self.depths}")
        super().__init__(in_channels, with_cp)
        self.embed_dims = settings["embed_dims"]
        self.channels = tuple(self.embed_dims * 2**i for i in range(num_stages))
        self.out_indices = resolve_out_indices(out_indices, num_stages, "stages")

        self.patch_embed = _stem(in_channels, self.embed_dims)
        self.patch_embed.backend = backend
        rates = iter(drop_path_rates(drop_path_rate, sum(self.depths)))
        self.layers = nn.ModuleList()
        last = self.out_indices[-1]  # stages after it would train nothing
        for i in range(last + 1):
            stage = nn.Module()
            stage.blocks = nn.ModuleList(
                HierBlock(self.channels[i], heads[i], next(rates), backend)
                for _ in range(self.depths[i])
            )
            if i < last:
                stage.downsample = _downsample(self.channels[i])
            self.layers.append(stage)
        for i in self.out_indices:
            self.add_module(f"norm{i}", nn.LayerNorm(self.channels[i]))
        self.draw_weights()

    def stages(self, x: Tensor) -> Iterator[tuple[Tensor, tuple[int, int]]]:
        """Images ``[B, in_channels, H, W]`` -> of each stage tokens ``[B, N, C * 2^i]``, (h, w)."""
        x = self.patch_embed(self.fit_image(x))
        stage: Any
        for stage in self.layers:
            hw = (x.shape[2], x.shape[3])
            x = to_tokens(x)
            for block in stage.blocks:
                x = self.run_block(block, x, hw)
            yield x, hw
            if hasattr(stage, "downsample"):
                x = stage.downsample(to_map(x, hw))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images ``[B, in_channels, H, W]`` -> maps ``[B, C * 2^i, H / 2^(i+2), W / 2^(i+2)]``."""
        return tuple(
            self.as_output(getattr(self, f"norm{i}"), tokens, hw)
            for i, (tokens, hw) in enumerate(self.stages(x))
            if i in self.out_indices
        )
