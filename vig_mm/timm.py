"""ViG in timm: ``import vig_mm.timm`` registers the six models, ``timm.create_model`` builds them.

They are the networks of `vig_mm.nets` with timm's interface of a model and its classifier head.
Weights of the public files, of OpenMMLab's models and of timm's own load into them alike.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

try:
    import timm  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError(
        "vig_mm.timm needs timm, which is not installed: run `pip install 'vig-mm[timm]'`."
    ) from error
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import ClassifierHead
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices

from vig_mm import nets
from vig_mm.nets.vig import resize_pos_embed

__all__ = ["HierViGTimm", "ViGTimm"]

WEIGHTS = "https://huggingface.co/hustvl/ViG/resolve/af36a61ec24f7a35dd043cae3d1ec6216cc72c7b/"

# name in a public file or in an mm classifier -> name here; the first pattern that fits counts
_RENAMED = (
    (re.compile(r"backbone\."), ""),
    (re.compile(r"classifier\.norm\."), "norm3."),
    (re.compile(r"(classifier\.head|head)\.(?=(weight|bias)$)"), "head.fc."),
)


class _TimmModel(nets.Network):
    """timm's interface of a model, to be mixed in before the network.

    A feature is what the network's ``stages`` yields: the tokens after a stage or a block, before
    any norm.
    """

    trunk: str
    """Name of the list of stages or blocks."""
    last_norm: str
    """Name of the norm behind the last of them."""
    head: ClassifierHead
    stages: Callable[[Tensor], Iterator[tuple[Tensor, tuple[int, int]]]]

    def _finish(
        self,
        channels: Sequence[int],
        reductions: Sequence[int],
        head: dict[str, Any],
        device: Any,
        dtype: torch.dtype | None,
    ) -> None:
        """Add the head, and what timm reads of a model."""
        self.num_classes, self.in_chans = head["num_classes"], self.in_channels
        self.num_features = self.head_hidden_size = channels[-1]
        self.feature_info = [
            dict(num_chs=c, reduction=r, module=f"{self.trunk}.{i}")
            for i, (c, r) in enumerate(zip(channels, reductions, strict=True))
        ]
        self.head = ClassifierHead(self.num_features, **head)
        if isinstance(self.head.fc, nn.Linear):
            nn.init.trunc_normal_(self.head.fc.weight, std=0.02)
            nn.init.zeros_(self.head.fc.bias)
        self.to(device=device, dtype=dtype)

    def __prepare_scriptable__(self) -> nn.Module:
        raise NotImplementedError(
            f"torch.jit.script cannot compile {type(self).__name__}: use torch.export.export or "
            "torch.compile, or torch.jit.trace for images of one size"
        )

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay, beside biases and norms."""
        return {"pos_embed"} if hasattr(self, "pos_embed") else set()

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Activation checkpointing, block by block."""
        self.with_cp = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new last layer; none for ``num_classes=0``."""
        self.num_classes = num_classes
        self.head.reset(num_classes, pool_type=global_pool)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Features of images ``[B, in_chans, H, W]``.

        Args:
            x: the images.
            indices: of the features to return; n: the last n, None: all.
            norm: apply the last norm to them, where it fits: to every block of the plain family, to
                the last stage of the hierarchical one.
            stop_early: compute nothing behind the last of them.
            output_fmt: ``'NCHW'``, ``'NHWC'`` or ``'NLC'``.
            intermediates_only: return the features alone.

        Returns:
            The features, or what `forward_features` gives and the features. With ``stop_early``
            its place takes the last feature that was computed, as a map.
        """
        if output_fmt not in ("NCHW", "NHWC", "NLC"):
            raise ValueError(f"output_fmt={output_fmt!r} is none of 'NCHW', 'NHWC', 'NLC'")
        count = len(self.feature_info)
        take, last = feature_take_indices(count, indices)
        stop = last if stop_early or intermediates_only else count - 1
        last_norm = getattr(self, self.last_norm)
        features = []
        for i, (tokens, hw) in enumerate(self.stages(x)):
            if i in take:
                y = last_norm(tokens) if norm and self._norm_fits(i) else tokens
                if output_fmt != "NLC":
                    y = y.unflatten(1, hw)
                features.append(y.permute(0, 3, 1, 2).contiguous() if output_fmt == "NCHW" else y)
            if i == stop:
                break
        if intermediates_only:
            return features
        return self.as_output(
            last_norm if self._norm_fits(i) else nn.Identity(), tokens, hw
        ), features

    def _norm_fits(self, feature: int) -> bool:
        """Whether the last norm is for tokens of this feature's width."""
        return self.feature_info[feature]["num_chs"] == self.num_features

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drop what the features ``indices`` do not need; returns their absolute indices."""
        take, last = feature_take_indices(len(self.feature_info), indices)
        kept = getattr(self, self.trunk)[: last + 1]
        setattr(self, self.trunk, kept)
        if hasattr(kept[-1], "downsample"):
            del kept[-1].downsample
        if prune_norm or not self._norm_fits(last):
            setattr(self, self.last_norm, nn.Identity())
        if prune_head:
            self.reset_classifier(0, "")
        return take

    def forward_features(self, x: Tensor) -> Tensor:
        """Images ``[B, in_chans, H, W]`` -> the last, normed map ``[B, C, h, w]``."""
        for tokens, hw in self.stages(x):  # noqa: B007
            pass
        return self.as_output(getattr(self, self.last_norm), tokens, hw)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """A map ``[B, C, h, w]`` -> logits, or with ``pre_logits`` what the last layer reads."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Any:
        """Images ``[B, in_chans, H, W]`` -> logits ``[B, num_classes]``."""
        return self.forward_head(self.forward_features(x))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        own = {k: state_dict.pop(k) for k in list(state_dict) if k.startswith(prefix)}
        own = checkpoint_filter_fn({k.removeprefix(prefix): x for k, x in own.items()}, self)
        state_dict.update({f"{prefix}{k}": x for k, x in own.items()})
        super()._load_from_state_dict(state_dict, prefix, *args)


class HierViGTimm(_TimmModel, nets.HierViG):
    """Hierarchical ViG as a model of timm: features of strides 4 to 32, images of any size."""

    trunk, last_norm = "layers", "norm3"

    def __init__(
        self,
        arch: str = "tiny",
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        img_size: int | tuple[int, int] | None = None,  # nothing depends on it
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **network: Any,
    ) -> None:
        super().__init__(
            arch, in_channels=in_chans, out_indices=-1, drop_path_rate=drop_path_rate, **network
        )
        head = dict(num_classes=num_classes, pool_type=global_pool, drop_rate=drop_rate)
        self._finish(self.channels, (4, 8, 16, 32), head, device, dtype)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups of parameters in the order of their depth, for layer-wise decay."""
        blocks = [
            (r"^layers\.(\d+)\.blocks\.(\d+)", None),
            (r"^layers\.(\d+)\.downsample", (99999,)),
            (r"^norm3", (99999,)),
        ]
        return dict(stem=r"^patch_embed", blocks=r"^layers\.(\d+)" if coarse else blocks)


class ViGTimm(_TimmModel, nets.ViG):
    """Plain ViG as a model of timm: each block's output is a feature of stride 16."""

    trunk, last_norm = "blocks", "norm"

    def __init__(
        self,
        arch: str = "tiny",
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        img_size: int | tuple[int, int] = 224,
        dynamic_img_size: bool = True,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **network: Any,
    ) -> None:
        super().__init__(
            arch,
            in_channels=in_chans,
            img_size=img_size,
            drop_path_rate=drop_path_rate,
            **network,
        )
        self.dynamic_img_size = dynamic_img_size
        head = dict(num_classes=num_classes, pool_type=global_pool, drop_rate=drop_rate)
        channels, reductions = [self.embed_dims] * self.depth, [self.patch_size] * self.depth
        self._finish(channels, reductions, head, device, dtype)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups of parameters in the order of their depth, for layer-wise decay."""
        blocks = [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))]
        return dict(stem=r"^patch_embed|^pos_embed", blocks=blocks)

    def embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        x, hw = super().embed(x)
        if not self.dynamic_img_size and hw != self.pos_grid:
            raise ValueError(
                f"the image gives {hw[0]}x{hw[1]} tokens instead of {self.pos_grid[0]}x"
                f"{self.pos_grid[1]}: dynamic_img_size=True resizes the position embedding"
            )
        return x, hw


def checkpoint_filter_fn(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Weights under the public names, OpenMMLab's or timm's -> weights that fit ``model``.

    ``pos_embed`` of another training image size is resized (bicubic).

    Raises:
        ValueError: its positions are no square grid, and not as many as the model's.
    """
    for pattern, name in _RENAMED:
        state = {pattern.sub(name, k) if pattern.match(k) else k: x for k, x in state.items()}
    pos = state.get("pos_embed")
    if pos is None or not isinstance(model, ViGTimm) or pos.shape[1] == model.pos_embed.shape[1]:
        return state
    side = math.isqrt(pos.shape[1])
    if side * side != pos.shape[1]:
        raise ValueError(
            f"the checkpoint's pos_embed has {pos.shape[1]} positions, not a square grid, and "
            f"cannot be resized to {model.pos_grid[0]}x{model.pos_grid[1]}"
        )
    return {**state, "pos_embed": resize_pos_embed(pos, (side, side), model.pos_grid)}


def _cfg(file: str, first_conv: str, pool_size: tuple[int, int]) -> dict[str, Any]:
    return dict(
        url=f"{WEIGHTS}{file}",
        num_classes=1000,
        input_size=(3, 224, 224),
        pool_size=pool_size,
        crop_pct=0.875,
        interpolation="bicubic",
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        first_conv=first_conv,
        classifier="head.fc",
        license="apache-2.0",  # of the page; the card's text says "Non-commercial license"
        origin_url="https://github.com/hustvl/ViG",
        paper_ids="arXiv:2405.18425",
    )


def _hier_cfg(file: str) -> dict[str, Any]:
    return _cfg(file, "patch_embed.0", (7, 7))


def _plain_cfg(file: str) -> dict[str, Any]:
    return _cfg(file, "patch_embed.proj.0", (14, 14))


default_cfgs = generate_default_cfgs(
    {
        "hier_vig_tiny.hustvl_in1k": _hier_cfg("vig_h_t_82p8acc.pth"),
        "hier_vig_small.hustvl_in1k": _hier_cfg("vig_h_s_83p8acc.pth"),
        "hier_vig_base.hustvl_in1k": _hier_cfg("vig_h_b_84p2acc.pth"),
        "vig_tiny_patch16.hustvl_in1k": _plain_cfg("vig_t_77p2acc.pth"),
        "vig_small_patch16.hustvl_in1k": _plain_cfg("vig_s_81p7acc.pth"),
        "vig_base_patch16.hustvl_in1k": _plain_cfg("vig_b_82p6acc.pth"),
    }
)


def _create(
    model: type[_TimmModel], variant: str, pretrained: bool, features: Any, kwargs: dict[str, Any]
) -> nn.Module:
    kind = kwargs.pop("feature_cls", "getter")
    if kind != "getter":
        raise ValueError(
            f"feature_cls={kind!r}: features of ViG are maps made of tokens, which only 'getter' "
            "(the default) returns"
        )
    return build_model_with_cfg(
        model,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=dict(out_indices=features, feature_cls="getter"),
        **kwargs,
    )


def _create_hier(arch: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    kwargs = dict(kwargs, arch=arch)
    return _create(HierViGTimm, f"hier_vig_{arch}", pretrained, (0, 1, 2, 3), kwargs)


def _create_plain(arch: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    kwargs = dict(kwargs, arch=arch)
    return _create(ViGTimm, f"vig_{arch}_patch16", pretrained, 3, kwargs)


@register_model
def hier_vig_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViG-H-T: 28.6 M parameters."""
    return _create_hier("tiny", pretrained, kwargs)


@register_model
def hier_vig_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViG-H-S: 50.1 M parameters."""
    return _create_hier("small", pretrained, kwargs)


@register_model
def hier_vig_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViG-H-B: 88.9 M parameters."""
    return _create_hier("base", pretrained, kwargs)


@register_model
def vig_tiny_patch16(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViG-T: 5.83 M parameters."""
    return _create_plain("tiny", pretrained, kwargs)


@register_model
def vig_small_patch16(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViG-S: 22.6 M parameters."""
    return _create_plain("small", pretrained, kwargs)


@register_model
def vig_base_patch16(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViG-B: 89.0 M parameters."""
    return _create_plain("base", pretrained, kwargs)
