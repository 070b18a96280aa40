"""What both families share: sizes, drawing weights, checkpointed blocks, checks of the image."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import GatedLinearAttention2d, attention
from .drop_path import DropPath
from .ffn import SwiGLU, ffn
from .layout import to_map
from .norm import RMSNorm


def arch_settings(archs: Mapping[str, dict], arch: str, overrides: dict) -> dict[str, Any]:
    """The entries of ``arch`` with the keywords that are not None put over them."""
    if arch not in archs:
        raise ValueError(f"unknown arch {arch!r}; choose one of {', '.join(map(repr, archs))}")
    return {**archs[arch], **{key: x for key, x in overrides.items() if x is not None}}


def resolve_out_indices(out_indices: int | Sequence[int], count: int, of: str) -> tuple[int, ...]:
    """Sorted indices in [0, count); negative ones count from the end."""
    indices = (out_indices,) if isinstance(out_indices, int) else tuple(out_indices)
    resolved = tuple(i + count if i < 0 else i for i in indices)
    if not indices or any(not 0 <= i < count for i in resolved):
        raise ValueError(
            f"out_indices={out_indices} is out of range: this backbone has {count} {of}, "
            f"indices 0 to {count - 1} (or -{count} to -1)"
        )
    if list(resolved) != sorted(set(resolved)):
        raise ValueError(f"out_indices={out_indices} must be ascending, each index once")
    return resolved


class Block(nn.Module):
    """x += attention(norm(x)); x += mlp(norm(x)), on tokens ``[B, N, C]``.

    Subclasses name the four parts as the public checkpoints of their family do.
    """

    names: tuple[str, str, str, str]

    def __init__(
        self,
        norm: type[nn.LayerNorm | RMSNorm],
        attn: GatedLinearAttention2d,
        mlp: SwiGLU,
        channels: int,
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        for name, part in zip(self.names, (norm(channels), attn, norm(channels), mlp), strict=True):
            self.add_module(name, part)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        """``[B, h*w, C]`` -> ``[B, h*w, C]``."""
        parts: Any = (self._modules[name] for name in self.names)
        norm, attn, norm2, mlp = parts
        scale, scale2 = self.drop_path.draw(x, 2)
        x = attention(x, hw, norm, attn, self.drop_path, scale)
        return ffn(x, norm2, mlp, self.drop_path, scale2, attn.backend)


class Network(nn.Module):
    """Base of the networks.

    Args:
        in_channels: channels of the images.
        with_cp: activation checkpointing, block by block.
    """

    patch_size: int

    def __init__(self, in_channels: int, with_cp: bool) -> None:
        super().__init__()
        if in_channels < 1:
            raise ValueError(f"in_channels={in_channels} must be 1 or more")
        self.in_channels = in_channels
        self.with_cp = with_cp

    def draw_weights(self) -> None:
        """Draw the weights as the public models do.

        Linear weights: truncated normal with std 0.02, inside the attention Xavier-uniform with
        gain 2^-2.5; their biases 0, norms 1. Stem and downsampling convolutions keep torch's
        default and above all a bias: without one, zero padding stays exactly zero through every
        LayerNorm, each of which then multiplies the gradient by 1 / sqrt(eps).
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, GatedLinearAttention2d):
                module.draw_weights()

    def run_block(self, block: nn.Module, *inputs: Any) -> Tensor:
        """Apply a block, through activation checkpointing when ``with_cp`` is set."""
        if self.with_cp and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    @staticmethod
    def as_output(norm: nn.Module, x: Tensor, hw: tuple[int, int]) -> Tensor:
        """Normed tokens ``[B, N, C]`` as a map ``[B, C, h, w]`` that lies in memory as NCHW.

        Not as the channels-last view that it is: mmcv's operators (RoIAlign among them) take the
        memory of their input for NCHW whatever its strides say, and would read it scrambled.
        """
        return to_map(norm(x), hw).contiguous()

    def fit_image(self, x: Tensor) -> Tensor:
        """Images of at least one patch: smaller ones are padded with zeros, right and below.

        Raises:
            ValueError: x is no batch of images of ``in_channels``, or has no pixels.
        """
        if x.dim() != 4 or x.shape[1] != self.in_channels or 0 in x.shape[2:]:
            raise ValueError(
                f"expected images [B, {self.in_channels}, H, W], got shape {tuple(x.shape)}"
                + (
                    f": set the backbone's in_channels={x.shape[1]}, or load the images otherwise"
                    if x.dim() == 4 and x.shape[1] != self.in_channels
                    else ""
                )
            )
        missing = [max(self.patch_size - size, 0) for size in x.shape[2:]]
        return F.pad(x, (0, missing[1], 0, missing[0])) if any(missing) else x
