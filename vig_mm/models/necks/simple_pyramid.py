"""Simple feature pyramid of ViTDet (Li et al., arXiv 2203.16527, section 3)."""

from collections.abc import Sequence

import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from vig_mm.nets import LayerNorm2d
from vig_mm.registry import MODELS

STRIDES = (4, 8, 16, 32)

# ViTDet's heads are normed over channels, too: norm_cfg=dict(type='vig_mm.LayerNorm2d')
MODELS.register_module(module=LayerNorm2d)


def _rescale(channels: int, stride: int) -> tuple[nn.Module, int]:
    """From stride 16 to ``stride``, and the channels that come out."""
    half = channels // 2
    if stride == 4:
        up = nn.Sequential(
            nn.ConvTranspose2d(channels, half, 2, stride=2),
            LayerNorm2d(half, eps=1e-6),
            nn.GELU(),
            nn.ConvTranspose2d(half, half // 2, 2, stride=2),
        )
        return up, half // 2
    if stride == 8:
        return nn.ConvTranspose2d(channels, half, 2, stride=2), half
    if stride == 16:
        return nn.Identity(), channels
    # half a window at an odd edge counts, so that every size gives ceil(h / 2) x ceil(w / 2)
    return nn.MaxPool2d(2, stride=2, ceil_mode=True), channels


@MODELS.register_module()
class SimplePyramid(BaseModule):
    """Maps of strides 4, 8, 16, 32 and coarser from one map of stride 16.

    Each of the four: deconvolutions or max pooling, then a 1x1 and a 3x3 convolution, each with a
    LayerNorm over channels. Further levels take every second cell of the one before. For mmdet
    ``num_outs`` is 5, for mmseg 4.

    Args:
        in_channels: C of the map, which the backbone must return alone (``out_indices=-1``).
        out_channels: of every level.
        num_outs: number of levels, 4 or more.
        init_cfg: see mmengine's `BaseModule`; None leaves torch's own initialisation.

    Raises:
        ValueError: too few levels; more than one map, or one of other channels, comes in.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        num_outs: int = 5,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if num_outs < len(STRIDES):
            raise ValueError(f"num_outs={num_outs} must be at least {len(STRIDES)}")
        if in_channels % 4:
            raise ValueError(f"in_channels={in_channels} must be a multiple of 4")
        self.in_channels = in_channels
        self.num_outs = num_outs
        self.levels = nn.ModuleList()
        for stride in STRIDES:
            rescale, channels = _rescale(in_channels, stride)
            convs = nn.Sequential(
                nn.Conv2d(channels, out_channels, 1, bias=False),
                LayerNorm2d(out_channels, eps=1e-6),
                nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                LayerNorm2d(out_channels, eps=1e-6),
            )
            self.levels.append(nn.Sequential(rescale, convs))

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """One map ``[B, C, h, w]`` -> ``num_outs`` maps, contiguous, of 4h x 4w, 2h x 2w, h x w,
        ceil(h / 2) x ceil(w / 2), ..."""
        if len(inputs) != 1:
            raise ValueError(
                f"SimplePyramid takes one map, got {len(inputs)}: set the backbone's "
                "out_indices=-1, so that it returns its last block only"
            )
        x = inputs[0]
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"SimplePyramid(in_channels={self.in_channels}) got a map of shape "
                f"{tuple(x.shape)}: set in_channels to what the backbone returns"
            )
        # contiguous for the reason given at Network.as_output
        outs = [level(x).contiguous() for level in self.levels]
        while len(outs) < self.num_outs:
            outs.append(F.max_pool2d(outs[-1], 1, stride=2))
        return tuple(outs)
