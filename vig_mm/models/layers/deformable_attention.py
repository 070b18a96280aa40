"""Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, section 4.1, equation 3)."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function

from vig_mm.nets import to_map

Grid = tuple[int, int]
"""Height and width of a map, in cells."""


class Maps(NamedTuple):
    """Where the tokens of L maps lie, N cells in all, map after map, each in row-major order."""

    grids: tuple[Grid, ...]
    shapes: Tensor
    """``[L, 2]`` int64: the grids."""
    centres: Tensor
    """``[N, 2]``: (x, y) of the cells' centres, as a fraction of the image's width and height."""

    @classmethod
    def of(cls, *grids: Grid, like: Tensor) -> "Maps":
        """Args: like: gives the device and, unless it is half precision, the dtype of centres."""
        options: dict[str, Any] = dict(
            device=like.device, dtype=torch.promote_types(like.dtype, torch.float32)
        )
        centres = []
        for height, width in grids:
            y = (torch.arange(height, **options) + 0.5) / height
            x = (torch.arange(width, **options) + 0.5) / width
            centres.append(torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1))
        # filled on the device, and traced by torch.export for any image size, unlike torch.tensor
        sizes = [like.new_full((1,), n, dtype=torch.int64) for grid in grids for n in grid]
        return cls(grids, torch.cat(sizes).view(-1, 2), torch.cat(centres))

    def split(self, x: Tensor) -> list[Tensor]:
        """Tokens ``[B, N, C]`` -> views ``[B, C, h, w]``, one per map."""
        levels = x.split([height * width for height, width in self.grids], dim=1)
        return [to_map(level, grid) for level, grid in zip(levels, self.grids, strict=True)]


class DeformableAttention(nn.Module):
    """Every query reads ``num_points`` places of each value map, found from the query itself.

    The sampling is mmcv's: its CUDA kernel where there is one, else its PyTorch form (CPU, an mmcv
    built without CUDA, torch.compile and torch.export). It runs in float32 (float64 for float64
    inputs), under autocast too: locations are fractions of the image, and on a map 168 cells wide
    (1333 pixels) rounding them costs up to 0.04 of a cell in float16, 0.33 in bfloat16.

    Args:
        channels: C of queries and of the tokens that are read.
        num_heads: must divide the value width.
        num_levels: number of maps that are read.
        num_points: places read per head and map.
        value_ratio: value width / C.

    Raises:
        ImportError: mmcv was installed without its operators.
    """

    def __init__(
        self, channels: int, num_heads: int, num_levels: int, num_points: int, value_ratio: float
    ) -> None:
        super().__init__()
        value_channels = int(channels * value_ratio)
        self.places = (num_heads, num_levels, num_points)
        places = math.prod(self.places)
        self.sampling_offsets = nn.Linear(channels, 2 * places)
        self.attention_weights = nn.Linear(channels, places)
        self.value_proj = nn.Linear(channels, value_channels)
        self.output_proj = nn.Linear(value_channels, channels)
        self.plain, self.kernel = _mmcv_sampling()

    def init_weights(self) -> None:
        """Point p of head h starts p + 1 cells away from the query, each head in a direction of
        its own; all points weigh the same."""
        num_heads, num_levels, num_points = self.places
        nn.init.zeros_(self.sampling_offsets.weight)
        angles = torch.arange(num_heads) * (2 * math.pi / num_heads)
        directions = torch.stack((angles.cos(), angles.sin()), dim=-1)
        directions /= directions.abs().amax(dim=-1, keepdim=True)
        steps = torch.arange(1, num_points + 1)[:, None] * directions[:, None, None]  # [H, 1, P, 2]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(steps.expand(-1, num_levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(self, query: Tensor, at: Maps, x: Tensor, maps: Maps) -> Tensor:
        """``[B, Q, C]`` -> ``[B, Q, C]``.

        Args:
            query: ``[B, Q, C]``.
            at: where the queries lie.
            x: ``[B, N, C]``, tokens of ``num_levels`` maps.
            maps: where these lie.
        """
        num_heads, num_levels, num_points = self.places
        value = self.value_proj(x).unflatten(-1, (num_heads, -1))
        dtype = at.centres.dtype
        offsets = self.sampling_offsets(query).to(dtype).unflatten(-1, (*self.places, 2))
        cells = maps.shapes.flip(1).to(dtype)  # (width, height)
        locations = at.centres[:, None, None, None] + offsets / cells[:, None]
        weights = self.attention_weights(query).to(dtype).unflatten(-1, (num_heads, -1))
        weights = weights.softmax(dim=-1).unflatten(-1, (num_levels, num_points))
        if x.is_cuda and self.kernel is not None and not torch.compiler.is_compiling():
            areas = maps.shapes.prod(dim=1)
            step = x.shape[0]  # images per launch, which must divide the batch
            inputs = (value.to(dtype), maps.shapes, areas.cumsum(0) - areas, locations, weights)
            y = self.kernel.apply(*(t.contiguous() for t in inputs), step)
        else:
            y = self.plain(value.to(dtype), maps.grids, locations, weights)
        return self.output_proj(y.to(value.dtype))


def _mmcv_sampling() -> tuple[Callable, type[Function] | None]:
    """mmcv's sampling in PyTorch, and as a function on CUDA tensors or None.

    Imported here, so that the other models need nothing compiled of mmcv.
    """
    try:
        from mmcv.ops import get_compiling_cuda_version
        from mmcv.ops.multi_scale_deform_attn import (
            MultiScaleDeformableAttnFunction,
            multi_scale_deformable_attn_pytorch,
        )
    except ModuleNotFoundError as error:
        raise ImportError(
            "ViGAdapter's deformable attention needs mmcv with its operators, and this mmcv was "
            f"installed without them ({error}): build it with MMCV_WITH_OPS=1 (docs/install.md)"
        ) from error
    compiled = get_compiling_cuda_version() != "not available"
    kernel = MultiScaleDeformableAttnFunction if compiled else None
    return multi_scale_deformable_attn_pytorch, kernel
