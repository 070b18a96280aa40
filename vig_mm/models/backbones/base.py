"""Base class of the backbones: sizes, initialization, freezing, checkpointed blocks."""

from collections.abc import Mapping, Sequence

import torch
from mmcv.cnn.bricks import DropPath
from mmengine.logging import print_log
from mmengine.model import BaseModule, initialize
from mmengine.model.weight_init import PretrainedInit
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vig_mm.registry import WEIGHT_INITIALIZERS

from ..layers import GatedLinearAttention2d, to_map
from .stem_channels import fit_channels


def arch_settings(archs: Mapping[str, dict], arch: str, overrides: dict) -> dict:
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


class ViGBackbone(BaseModule):
    """Base of the backbones. A subclass sets ``patch_size`` and implements the hooks below."""

    patch_size: int
    added_parts: tuple[str, ...] = ()
    """Prefixes of names that no public checkpoint has."""
    first_convs: tuple[str, ...]
    """Names of the weights that see the image's channels."""

    def __init__(
        self, in_channels: int, with_cp: bool, frozen_stages: int, max_frozen: int, init_cfg
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if in_channels < 1:
            raise ValueError(f"in_channels={in_channels} must be 1 or more")
        self.in_channels = in_channels
        if not -1 <= frozen_stages <= max_frozen:
            raise ValueError(
                f"frozen_stages={frozen_stages} is out of range: -1 (none) to {max_frozen} (all)"
            )
        self.with_cp = with_cp
        self.frozen_stages = frozen_stages

    def frozen_parts(self) -> list[nn.Module | nn.Parameter]:
        """Modules and parameters that ``frozen_stages`` freezes."""
        raise NotImplementedError

    def fit_state_dict(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Adapt a state dict (own names) to this instance: its image channels, its image size."""
        state = dict(state)
        for name in self.first_convs:
            weight = state.get(name)
            if weight is not None and weight.dim() == 4 and weight.shape[1] != self.in_channels:
                old, new = weight.shape[1], self.in_channels
                how = "summed" if new == 1 else f"repeated and scaled by {old}/{new}"
                print_log(f"{name}: from {old} input channels to {new}: {how}", "current")
                state[name] = fit_channels(weight, new)
        return state

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        own = {k.removeprefix(prefix): x for k, x in state_dict.items() if k.startswith(prefix)}
        for name, x in self.fit_state_dict(own).items():
            state_dict[f"{prefix}{name}"] = x
        super()._load_from_state_dict(state_dict, prefix, *args)

    def draw_weights(self) -> None:
        """Draw the weights as the public models do.

        Linear weights: truncated normal with std 0.02, inside the mixer Xavier-uniform with gain
        2^-2.5; their biases 0, norms 1. Stem and downsampling convolutions keep torch's default
        and above all a bias: without one, zero padding stays exactly zero through every
        LayerNorm, each of which then multiplies the gradient by 1 / sqrt(eps).
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, GatedLinearAttention2d):
                module.init_weights()

    def init_weights(self) -> None:
        """Draw the weights, then load ``init_cfg``'s checkpoint, if any.

        A ``Pretrained`` checkpoint may be a public ViG file or an mm file, see
        `vig_mm.checkpoints.pretrained`.
        """
        if self.is_init:
            return
        self.draw_weights()
        cfgs = [self.init_cfg] if isinstance(self.init_cfg, dict) else list(self.init_cfg or ())
        pretrained = [c for c in cfgs if c["type"] in ("Pretrained", PretrainedInit)]
        others = [c for c in cfgs if c not in pretrained]
        if others:
            initialize(self, others)
        for cfg in pretrained:
            ours = dict(type="vig_mm.PretrainedViG", checkpoint=cfg["checkpoint"])
            WEIGHT_INITIALIZERS.build(dict(ours, prefix=cfg.get("prefix")))(self)
        self._is_init = True

    def train(self, mode: bool = True) -> "ViGBackbone":
        """Set the mode; frozen parts stay in eval mode and without gradients."""
        super().train(mode)
        for part in self.frozen_parts():
            part.requires_grad_(False)
            if isinstance(part, nn.Module):
                part.eval()
        return self

    def run_block(self, block: nn.Module, *inputs) -> Tensor:
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

    def check_image(self, x: Tensor) -> None:
        """Refuse what is not a batch of ``in_channels`` and at least one patch."""
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"expected images [B, {self.in_channels}, H, W], got shape {tuple(x.shape)}"
                + (
                    f": set the backbone's in_channels={x.shape[1]}, or load the images otherwise"
                    if x.dim() == 4
                    else ""
                )
            )
        if min(x.shape[2:]) < self.patch_size:
            raise ValueError(
                f"image {x.shape[2]}x{x.shape[3]} (HxW) is smaller than one patch of "
                f"{self.patch_size}x{self.patch_size} pixels; resize or pad it"
            )


def drop_path(rate: float) -> nn.Module:
    return DropPath(rate) if rate > 0 else nn.Identity()


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Stochastic depth, from 0 at the first block up to ``rate`` at the last one."""
    if not 0 <= rate < 1:
        raise ValueError(f"drop_path_rate={rate} must be in [0, 1)")
    return torch.linspace(0, rate, depth).tolist()
