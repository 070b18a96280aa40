"""Plain ViG as a backbone of OpenMMLab."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from vig_mm import nets
from vig_mm.nets.vig import resize_pos_embed
from vig_mm.registry import MODELS

from .base import ViGBackbone


@MODELS.register_module()
class ViG(nets.ViG, ViGBackbone):
    """Plain ViG backbone (arXiv 2405.18425).

    Args:
        arch: ``'tiny'``, ``'small'`` or ``'base'``; the keywords below override its entries.
        embed_dims: channels C. None: as ``arch`` says, here and in the next three.
        depth: number of blocks.
        num_heads: number of heads H.
        mixer_act: whether the attention has SiLUs, as in ViG-T.
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
        ValueError: unknown arch, indices or rates out of range, no images of ``in_channels``.
    """

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
        super().__init__(
            arch,
            embed_dims=embed_dims,
            depth=depth,
            num_heads=num_heads,
            mixer_act=mixer_act,
            in_channels=in_channels,
            img_size=img_size,
            out_indices=out_indices,
            drop_path_rate=drop_path_rate,
            with_cp=with_cp,
            backend=backend,
        )
        self.set_up(frozen_stages, self.depth, init_cfg)

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
