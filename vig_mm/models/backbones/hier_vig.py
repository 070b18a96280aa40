"""Hierarchical ViG as a backbone of OpenMMLab."""

from collections.abc import Sequence

from torch import nn

from vig_mm import nets
from vig_mm.registry import MODELS

from .base import ViGBackbone


@MODELS.register_module()
class HierViG(nets.HierViG, ViGBackbone):
    """Hierarchical ViG backbone (ViG-H, arXiv 2405.18425): maps of strides 4 to 32.

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
        ValueError: unknown arch, indices or rates out of range, no images of ``in_channels``.
    """

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
        super().__init__(
            arch,
            embed_dims=embed_dims,
            depths=depths,
            num_heads=num_heads,
            in_channels=in_channels,
            out_indices=out_indices,
            drop_path_rate=drop_path_rate,
            with_cp=with_cp,
            backend=backend,
        )
        self.set_up(frozen_stages, len(self.depths), init_cfg)

    def frozen_parts(self) -> list[nn.Module | nn.Parameter]:
        if self.frozen_stages < 0:
            return []
        return [self.patch_embed, *self.layers[: self.frozen_stages]]

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
