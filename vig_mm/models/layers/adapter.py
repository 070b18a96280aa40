"""What ViT-Adapter puts beside a plain backbone (Chen et al., arXiv 2205.08534, section 3).

Two streams of tokens: the backbone's at stride 16, and the pyramid's, which is the maps of strides
8, 16 and 32 one after the other. Injectors write from the pyramid into the backbone, extractors
read back.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule, build_norm_layer
from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn

from vig_mm.nets import to_tokens

from .deformable_attention import DeformableAttention, Grid, Maps

PYRAMID_LEVELS = 3


class Geometry(NamedTuple):
    """Where the tokens of the two streams lie."""

    tokens: Maps
    pyramid: Maps

    @classmethod
    def of(cls, grid: Grid, like: Tensor) -> "Geometry":
        """Args: grid: of stride 16, even in both directions. like: see `Maps.of`."""
        height, width = grid
        finer, coarser = (2 * height, 2 * width), (height // 2, width // 2)
        return cls(Maps.of(grid, like=like), Maps.of(finer, grid, coarser, like=like))


class SpatialPrior(nn.Module):
    """Convolutional stem for the pyramid (section 3.2).

    Args:
        in_channels: of the images.
        channels: C of the maps returned.
        inplanes: channels of the stem; its widest convolution has four times as many.
        norm_cfg: of the convolutions, see `mmcv.cnn.build_norm_layer`.
        finest: whether the map of stride 4 is wanted, too.
    """

    def __init__(
        self, in_channels: int, channels: int, inplanes: int, norm_cfg: dict, finest: bool
    ) -> None:
        super().__init__()

        def conv(inputs: int, outputs: int, stride: int) -> ConvModule:
            return ConvModule(inputs, outputs, 3, stride=stride, padding=1, norm_cfg=norm_cfg)

        self.stem = nn.Sequential(
            conv(in_channels, inplanes, 2),
            conv(inplanes, inplanes, 1),
            conv(inplanes, inplanes, 1),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        widths = (inplanes, 2 * inplanes, 4 * inplanes, 4 * inplanes)
        self.down = nn.ModuleList(conv(widths[i], widths[i + 1], 2) for i in range(PYRAMID_LEVELS))
        self.project = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths[1:])
        self.project_finest = nn.Conv2d(inplanes, channels, 1) if finest else None

    def forward(self, image: Tensor) -> tuple[Tensor | None, list[Tensor]]:
        """Image ``[B, in_channels, H, W]`` -> map of stride 4 or None, of 8, 16, 32; all C wide."""
        x = self.stem(image)
        finest = None if self.project_finest is None else self.project_finest(x)
        maps = []
        for down, project in zip(self.down, self.project, strict=True):
            x = down(x)
            maps.append(project(x))
        return finest, maps


class Injector(nn.Module):
    """x += gamma * attention(x, pyramid) (equation 1); gamma is 0 at the start."""

    def __init__(self, channels: int, **attention) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(channels, eps=1e-6)
        self.feat_norm = nn.LayerNorm(channels, eps=1e-6)
        self.attn = DeformableAttention(channels, num_levels=PYRAMID_LEVELS, **attention)
        self.gamma = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, pyramid: Tensor, geometry: Geometry) -> Tensor:
        """``[B, N, C]``, ``[B, P, C]`` -> ``[B, N, C]``."""
        y = self.attn(
            self.query_norm(x), geometry.tokens, self.feat_norm(pyramid), geometry.pyramid
        )
        return x + self.gamma * y


class ConvFFN(nn.Module):
    """Feed-forward with a depth-wise convolution over every map of the pyramid."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor, maps: Maps) -> Tensor:
        """``[B, P, C]`` -> ``[B, P, C]``."""
        hidden = torch.cat([to_tokens(self.dwconv(m)) for m in maps.split(self.fc1(x))], dim=1)
        return self.fc2(F.gelu(hidden))


class Extractor(nn.Module):
    """pyramid += attention(pyramid, x); pyramid += ConvFFN(pyramid) (equations 2 and 3)."""

    def __init__(
        self, channels: int, cffn_ratio: float, drop_path_rate: float, **attention
    ) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(channels, eps=1e-6)
        self.feat_norm = nn.LayerNorm(channels, eps=1e-6)
        self.attn = DeformableAttention(channels, num_levels=1, **attention)
        self.ffn_norm = nn.LayerNorm(channels, eps=1e-6)
        self.ffn = ConvFFN(channels, int(channels * cffn_ratio))
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()

    def forward(self, pyramid: Tensor, x: Tensor, geometry: Geometry) -> Tensor:
        """``[B, P, C]``, ``[B, N, C]`` -> ``[B, P, C]``."""
        pyramid = pyramid + self.attn(
            self.query_norm(pyramid), geometry.pyramid, self.feat_norm(x), geometry.tokens
        )
        return pyramid + self.drop_path(self.ffn(self.ffn_norm(pyramid), geometry.pyramid))


class Interaction(nn.Module):
    """The injector before, and the extractors after, a group of the backbone's blocks."""

    def __init__(self, injector: Injector, extractors: Sequence[Extractor]) -> None:
        super().__init__()
        self.injector = injector
        self.extractors = nn.ModuleList(extractors)


class Adapter(nn.Module):
    """All of it: the spatial prior, the interactions, and how the two streams become four maps.

    Args:
        channels: C.
        in_channels: of the images.
        num_interactions: groups of blocks; the last one has two more extractors.
        inplanes: see `SpatialPrior`.
        cffn_ratio: width of the ConvFFN / C.
        drop_path_rate: of every ConvFFN.
        out_indices: of the maps of strides 4, 8, 16, 32 that are returned.
        norm_cfg: of the spatial prior and the outputs.
        attention: of `DeformableAttention`.
    """

    def __init__(
        self,
        channels: int,
        *,
        in_channels: int,
        num_interactions: int,
        inplanes: int,
        cffn_ratio: float,
        drop_path_rate: float,
        out_indices: Sequence[int],
        norm_cfg: dict,
        **attention,
    ) -> None:
        super().__init__()
        finest = 0 in out_indices
        self.spatial_prior = SpatialPrior(in_channels, channels, inplanes, norm_cfg, finest)
        self.level_embed = nn.Parameter(torch.zeros(PYRAMID_LEVELS, channels))

        def extractors(count: int) -> list[Extractor]:
            return [
                Extractor(channels, cffn_ratio, drop_path_rate, **attention) for _ in range(count)
            ]

        self.interactions = nn.ModuleList(
            Interaction(
                Injector(channels, **attention), extractors(3 if i == num_interactions - 1 else 1)
            )
            for i in range(num_interactions)
        )
        self.up = nn.ConvTranspose2d(channels, channels, 2, stride=2) if finest else None
        self.norms = nn.ModuleDict(
            {str(i): build_norm_layer(norm_cfg, channels)[1] for i in out_indices}
        )

    def init_weights(self) -> None:
        """Convolutions normal with variance 2 / fan-out and no bias, the rest as its parts say."""
        nn.init.normal_(self.level_embed)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, DeformableAttention):
                module.init_weights()

    def start(self, image: Tensor) -> tuple[Tensor | None, Tensor]:
        """``[B, in_channels, H, W]`` -> map ``[B, C, H/4, W/4]`` or None, pyramid ``[B, P, C]``."""
        finest, maps = self.spatial_prior(image)
        levels = [to_tokens(x) + embed for x, embed in zip(maps, self.level_embed, strict=True)]
        return finest, torch.cat(levels, dim=1)

    def outputs(
        self,
        finest: Tensor | None,
        pyramid: Tensor,
        x: Tensor,
        geometry: Geometry,
        image_size: tuple[int, int],
    ) -> tuple[Tensor, ...]:
        """Maps ``[B, C, ceil(H / s), ceil(W / s)]``, contiguous, of the strides s asked for.

        Args:
            finest, pyramid: from `start`, the pyramid after the last extractor.
            x: tokens ``[B, N, C]`` of the last block, which are added to every map.
            image_size: (H, W) without padding.
        """
        maps: list[Any] = [finest, *geometry.pyramid.split(pyramid)]
        if self.up is not None:
            maps[0] = finest + self.up(maps[1])
        (feature,) = geometry.tokens.split(x)
        outs = []
        for index, norm in self.norms.items():
            y, stride = maps[int(index)], 4 * 2 ** int(index)
            if stride != 16:
                y = y + F.interpolate(feature, size=y.shape[2:], mode="bilinear")
            else:
                y = y + feature
            height, width = (-(-pixels // stride) for pixels in image_size)
            # contiguous for the reason given at Network.as_output
            outs.append(norm(y[:, :, :height, :width]).contiguous())
        return tuple(outs)
