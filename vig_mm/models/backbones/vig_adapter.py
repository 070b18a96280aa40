"""Plain ViG with ViT-Adapter (arXiv 2205.08534): four maps, strides 4 to 32."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vig_mm.nets.network import arch_settings, resolve_out_indices
from vig_mm.registry import MODELS

from ..layers import Adapter, Geometry
from .vig import ViG

STRIDE = 32  # of the coarsest map; images are padded to a multiple of it


@MODELS.register_module()
class ViGAdapter(ViG):
    """Plain ViG in a ViT-Adapter (arXiv 2205.08534): four maps for dense prediction.

    Images of any size are padded with zeros, on the right and below, to a
    multiple of 32. The maps returned are cut back to ceil(H / s) x ceil(W / s) at stride s: the
    sizes that a pyramid of strided convolutions gives (`HierViG`, ResNet), which FPN and the heads
    of mmdet and mmseg expect.

    Public ViG checkpoints load as they are. Parameters that the adapter adds have names that start
    with ``adapter.`` and count as the last layer for layer-wise decay. There is no last norm: as in
    the paper, the output of the last block is added to the maps without one.

    Args:
        arch: ``'tiny'``, ``'small'`` or ``'base'``; the keywords below override its entries.
        embed_dims, depth, num_heads, mixer_act: see `ViG`.
        deform_heads: heads of the deformable attention; they must divide its value width
            C * deform_ratio. None: as ``arch`` says.
        deform_ratio: value width of the deformable attention / C. None: as ``arch`` says.
        n_points: sampling points of a head in each map.
        conv_inplane: channels of the convolutional stem.
        cffn_ratio: hidden width of the extractors' feed-forward network / C.
        num_interactions: groups of equal size that the blocks are split into. An injector precedes
            each group and an extractor follows it (three after the last group).
        norm_cfg: norm of the stem and of the four outputs. None: SyncBN, as in the paper, where
            there is a GPU, else BN, because SyncBN cannot train on several CPU processes. Both have
            the same parameters, and on one device both compute the same.
        in_channels: channels of the images. Weights for another number are adapted: summed for
            one, else repeated and scaled.
        img_size: training image size in pixels, which sets the grid of ``pos_embed``.
        out_indices: which of the maps of strides 4, 8, 16, 32 are returned.
        drop_path_rate: stochastic depth of the last block and of every extractor.
        frozen_stages: -1 freezes nothing, 0 the patch and position embedding, i also the first i
            blocks. The adapter is never frozen.
        with_cp: activation checkpointing of each block, injector and extractor.
        backend: backend of the operator, see `vig_mm.kernels.bidirectional_gla`. ``'torch'`` is
            plain PyTorch under autograd throughout, which keeps more for the backward pass.
        init_cfg: ``dict(type='Pretrained', checkpoint=FILE)`` takes public ViG files and OpenMMLab
            checkpoints.

    Raises:
        ValueError: unknown arch, indices or rates out of range, widths or depths that do not
            divide, no images of ``in_channels``.
        ImportError: mmcv was installed without its operators.
    """

    arch_zoo = {
        "tiny": dict(ViG.arch_zoo["tiny"], deform_heads=6, deform_ratio=1.0),
        "small": dict(ViG.arch_zoo["small"], deform_heads=6, deform_ratio=1.0),
        "base": dict(ViG.arch_zoo["base"], deform_heads=12, deform_ratio=0.5),
    }
    added_parts = ("adapter.",)
    first_convs = (*ViG.first_convs, "adapter.spatial_prior.stem.0.conv.weight")

    def __init__(
        self,
        arch: str = "tiny",
        *,
        embed_dims: int | None = None,
        depth: int | None = None,
        num_heads: int | None = None,
        mixer_act: bool | None = None,
        deform_heads: int | None = None,
        deform_ratio: float | None = None,
        n_points: int = 4,
        conv_inplane: int = 64,
        cffn_ratio: float = 0.25,
        num_interactions: int = 4,
        norm_cfg: dict | None = None,
        in_channels: int = 3,
        img_size: int | tuple[int, int] = 224,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        with_cp: bool = False,
        backend: str | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(
            arch,
            embed_dims=embed_dims,
            depth=depth,
            num_heads=num_heads,
            mixer_act=mixer_act,
            in_channels=in_channels,
            img_size=img_size,
            drop_path_rate=drop_path_rate,
            frozen_stages=frozen_stages,
            with_cp=with_cp,
            backend=backend,
            init_cfg=init_cfg,
        )
        del self.norm
        settings = arch_settings(
            self.arch_zoo, arch, dict(deform_heads=deform_heads, deform_ratio=deform_ratio)
        )
        heads, ratio = settings["deform_heads"], settings["deform_ratio"]
        if int(self.embed_dims * ratio) % heads:
            raise ValueError(
                f"embed_dims={self.embed_dims} * deform_ratio={ratio} must be a multiple of "
                f"deform_heads={heads}"
            )
        if num_interactions < 1 or self.depth % num_interactions:
            raise ValueError(
                f"depth={self.depth} must be a multiple of num_interactions={num_interactions}"
            )
        self.out_indices = resolve_out_indices(out_indices, 4, "maps")
        self.adapter = Adapter(
            self.embed_dims,
            in_channels=in_channels,
            num_interactions=num_interactions,
            inplanes=conv_inplane,
            cffn_ratio=cffn_ratio,
            drop_path_rate=drop_path_rate,
            out_indices=self.out_indices,
            norm_cfg=norm_cfg or dict(type="SyncBN" if torch.cuda.is_available() else "BN"),
            num_heads=heads,
            num_points=n_points,
            value_ratio=ratio,
        )

    def draw_weights(self) -> None:
        super().draw_weights()
        if hasattr(self, "adapter"):  # the network inside is drawn when it has been built
            self.adapter.init_weights()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images ``[B, in_channels, H, W]`` -> maps ``[B, C, ceil(H/s), ceil(W/s)]``, s 4 to 32."""
        image, x = x, self.fit_image(x)
        height, width = image.shape[2:]
        x = F.pad(x, (0, _rest(x.shape[3]), 0, _rest(x.shape[2])))
        finest, pyramid = self.adapter.start(x)
        x, hw = self.embed(x)
        geometry = Geometry.of(hw, x)
        size = self.depth // len(self.adapter.interactions)
        interaction: Any
        for i, interaction in enumerate(self.adapter.interactions):
            x = self.run_block(interaction.injector, x, pyramid, geometry)
            for block in self.blocks[i * size : (i + 1) * size]:
                x = self.run_block(block, x, hw)
            for extractor in interaction.extractors:
                pyramid = self.run_block(extractor, pyramid, x, geometry)
        return self.adapter.outputs(finest, pyramid, x, geometry, (height, width))


def _rest(size: int) -> int:
    """Pixels up to the next multiple of the stride; inductor does not know ``-size % STRIDE``."""
    return (size + STRIDE - 1) // STRIDE * STRIDE - size
