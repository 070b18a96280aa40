"""Hierarchical ViG (ViG-H): four stages, strides 4 to 32 (ViG, section 3.4)."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from vig_mm.registry import MODELS

from ..layers import (
    GatedLinearAttention2d,
    LayerNorm2d,
    Stem,
    SwiGLU,
    feed_forward,
    mix,
    to_map,
    to_tokens,
)
from .base import ViGBackbone, arch_settings, drop_path, drop_path_rates, resolve_out_indices


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


class Block(nn.Module):
    """x += mixer(norm(x)); x += MLP(norm(x)), on tokens ``[B, N, C]``."""

    def __init__(
        self, channels: int, num_heads: int, drop_path_rate: float, backend: str | None
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.op = GatedLinearAttention2d(channels, num_heads, backend=backend)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = SwiGLU(channels, multiple=32, names=("fc1", "fc2"))
        self.drop_path = drop_path(drop_path_rate)

    def forward(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        x = mix(x, self.norm, self.op, self.drop_path, hw)
        return feed_forward(x, self.norm2, self.mlp, self.drop_path, self.op.backend)


@MODELS.register_module()
class HierViG(ViGBackbone):
    """Hierarchical ViG backbone (arXiv 2405.18425).

    Args:
        arch: ``'tiny'``, ``'small'`` or ``'base'``; the keywords below override its entries.
        embed_dims: C of the first stage, doubled in each next one. None: as ``arch`` says, here
            and in the next two.
        depths: number of blocks of each stage.
        num_heads: number of heads H of each stage.
        in_channels: channels of the images. Weights for another number are adapted: summed for
            one, else repeated and scaled.
        out_indices: stages whose output is returned, each through a LayerNorm ``norm{i}`` of its
            own. That of the last stage is loaded from the public ``classifier.norm``.
        drop_path_rate: stochastic depth of the last block.
        frozen_stages: -1 freezes nothing, 0 the stem, i also the first i stages.
        with_cp: activation checkpointing, block by block.
        backend: backend of the operator, see `vig_mm.kernels.bidirectional_gla`. ``'torch'`` is
            plain PyTorch under autograd throughout, which keeps more for the backward pass.
        init_cfg: ``dict(type='Pretrained', checkpoint=FILE)`` takes public ViG files and OpenMMLab
            checkpoints.

    Raises:
        ValueError: unknown arch, indices or rates out of range, an image smaller than a patch.
    """

    arch_zoo: dict[str, dict[str, Any]] = {
        "tiny": dict(embed_dims=96, depths=(2, 2, 5, 2), num_heads=(3, 6, 12, 24)),
        "small": dict(embed_dims=96, depths=(2, 2, 17, 2), num_heads=(3, 6, 12, 24)),
        "base": dict(embed_dims=128, depths=(2, 2, 17, 2), num_heads=(4, 8, 16, 32)),
    }
    patch_size = 4
    first_convs: tuple[str, ...] = ("patch_embed.0.weight",)

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
        frozen_stages: int = -1,
        with_cp: bool = False,
        backend: str | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        settings = arch_settings(
            self.arch_zoo, arch, dict(embed_dims=embed_dims, depths=depths, num_heads=num_heads)
        )
        self.depths = tuple(settings["depths"])
        heads = tuple(settings["num_heads"])
        num_stages = len(self.depths)
        if len(heads) != num_stages:
            raise ValueError(f"num_heads={heads} needs one entry a stage, as depths={self.depths}")
        super().__init__(in_channels, with_cp, frozen_stages, num_stages, init_cfg)
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
                Block(self.channels[i], heads[i], next(rates), backend)
                for _ in range(self.depths[i])
            )
            if i < last:
                stage.downsample = _downsample(self.channels[i])
            self.layers.append(stage)
        for i in self.out_indices:
            self.add_module(f"norm{i}", nn.LayerNorm(self.channels[i]))
        self.train(self.training)

    def frozen_parts(self) -> list[nn.Module | nn.Parameter]:
        if self.frozen_stages < 0:
            return []
        return [self.patch_embed, *self.layers[: self.frozen_stages]]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images ``[B, in_channels, H, W]`` -> maps ``[B, C * 2^i, H / 2^(i+2), W / 2^(i+2)]``."""
        self.check_image(x)
        x = self.patch_embed(x)
        outs = []
        stage: Any
        for i, stage in enumerate(self.layers):
            hw = (x.shape[2], x.shape[3])
            x = to_tokens(x)
            for block in stage.blocks:
                x = self.run_block(block, x, hw)
            if i in self.out_indices:
                outs.append(self.as_output(getattr(self, f"norm{i}"), x, hw))
            if hasattr(stage, "downsample"):
                x = stage.downsample(to_map(x, hw))
        return tuple(outs)

    def get_layer_depth(self, param_name: str, prefix: str = "") -> tuple[int, int]:
        """Depth of a parameter for layer-wise decay, and the number of layers.

        0 is the stem, then one per block; a downsampling counts with the last block before it;
        output norms and whatever does not start with ``prefix`` (heads) are the last layer.
        """
        num_layers = sum(self.depths) + 2
        name = param_name.removeprefix(prefix)
        if param_name.startswith(prefix):
            if name.startswith("patch_embed"):
                return 0, num_layers
            if name.startswith("layers."):
                _, stage, part, *rest = name.split(".")
                before = sum(self.depths[: int(stage)])
                block = int(rest[0]) + 1 if part == "blocks" else self.depths[int(stage)]
                return before + block, num_layers
        return num_layers - 1, num_layers
