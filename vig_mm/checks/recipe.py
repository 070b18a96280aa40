"""Checks of a config that would build, and then train badly or not at all."""

from collections.abc import Iterator
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from vig_mm.checks.config import leaves
from vig_mm.checks.data.data_set import class_of, classes_of
from vig_mm.checks.model import parts, tested
from vig_mm.errors import UsageError
from vig_mm.models.backbones.base import ViGBackbone
from vig_mm.registry import type_name

_WARM_UP = ("LinearLR", "ConstantLR", "OneCycleLR", "QuadraticWarmupLR")
_HEADS = ("decode_head", "auxiliary_head", "head")
_RECIPES = {  # learning rate, images of a batch, weight decay, warm-up
    "mmdet": "AdamW, lr 1e-4 for 16 images, weight decay 0.05, 1000 iterations of warm-up",
    "mmseg": "AdamW, lr 6e-5 for 16 images, weight decay 0.01, 1500 iterations of warm-up",
    "mmpretrain": "AdamW, lr 5e-4 to 1e-3 for 512 images, weight decay 0.05, 20 epochs of warm-up",
}


def check_recipe(cfg: Config) -> None:
    """See that schedules end after they begin, and that heads by kind of class fit the data.

    Raises:
        UsageError: Names everything that does not.
    """
    problems = []
    for where, entry in _schedules(cfg.get("param_scheduler")):
        begin, end = entry.get("begin", 0), entry.get("end")
        if end is not None and end <= begin:
            problems.append(
                f"{where} ({type_name(entry)}) ends at {end}, and begins at {begin}: a shorter "
                f"training takes an earlier begin; set both, or leave this schedule out"
            )
    problems += _kinds_of_classes(cfg)
    if problems:
        raise UsageError.of("the config cannot train", problems)


def _schedules(entry: Any, where: str = "param_scheduler") -> Iterator[tuple[str, dict]]:
    if isinstance(entry, list | tuple):
        for i, one in enumerate(entry):
            yield from _schedules(one, f"{where}.{i}")
    elif isinstance(entry, dict) and "type" not in entry:  # by the name of the optimizer
        for name, one in entry.items():
            yield from _schedules(one, f"{where}.{name}")
    elif isinstance(entry, dict):
        yield where, entry


def _kinds_of_classes(cfg: Config) -> Iterator[str]:
    """Heads that count things and stuff apart (Mask2Former and the like) against the classes."""
    loader = cfg.get("train_dataloader") or {}
    _, dataset = next(leaves("", loader.get("dataset")), ("", {}))
    kind = class_of(dataset, cfg.get("default_scope"))
    classes = classes_of(dataset, kind) if hasattr(kind, "_load_metainfo") else ()
    for where, part in parts(cfg.get("model")):
        things, stuff = part.get("num_things_classes"), part.get("num_stuff_classes")
        if things is None or stuff is None or not classes:
            continue
        # outputs without a class train all the same, but mmdet's metrics look up each box's class
        spare = things + stuff > len(classes) and cfg.get("default_scope") != "mmdet"
        if things + stuff != len(classes) and not spare:
            yield (
                f"{where}: num_things_classes={things} and num_stuff_classes={stuff}, but the data "
                f"has {len(classes)} classes: their sum must be that, without masks of stuff "
                f"num_things_classes={len(classes)} and num_stuff_classes=0"
            )
        count = things + stuff if spare else len(classes)
        weights = (part.get("loss_cls") or {}).get("class_weight")
        if isinstance(weights, list | tuple) and len(weights) != count + 1:
            yield (
                f"{where}.loss_cls.class_weight has {len(weights)} entries: it takes one for each "
                f"of the {count} classes and one for no object, [1.0] * {count} + [0.1]"
            )


def recipe_notes(cfg: Config, model: nn.Module) -> list[str]:
    """What of a config trains a ViG badly without a word; for the log.

    Args:
        cfg: The whole config.
        model: What is built of it, not wrapped. Its mode is left as it was.
    """
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, ViGBackbone):
        return []
    notes = []
    recipe = f"ViG's recipe is {_RECIPES.get(cfg.get('default_scope'), 'AdamW with a warm-up')}"
    optimizer = type_name((cfg.get("optim_wrapper") or {}).get("optimizer"))
    if optimizer == "SGD":
        notes.append(f"optim_wrapper.optimizer is SGD, with which ViG trains badly: {recipe}")
    kinds = [type_name(entry) for _, entry in _schedules(cfg.get("param_scheduler"))]
    if not any(kind in _WARM_UP for kind in kinds):
        notes.append(f"param_scheduler has no warm-up (LinearLR), which ViG needs: {recipe}")
    unused = _unused_maps(model, backbone)
    if unused:
        kept = [x for i, x in enumerate(backbone.out_indices) if i not in unused]
        notes.append(
            f"nothing uses the map of out_indices {[backbone.out_indices[i] for i in unused]}, so "
            "its norm gets no gradient, which stops a training on several GPUs: set "
            f"model.backbone.out_indices={kept}, and in_channels and in_index of neck and heads "
            "with it (an FPN then starts at start_level=0)"
        )
    return notes


def _unused_maps(model: nn.Module, backbone: ViGBackbone) -> list[int]:
    """Places of the maps that reach no output of neck and heads, as far as these run alone."""
    image = next(backbone.parameters()).new_zeros(1, backbone.in_channels, 64, 64)
    try:
        with tested(model), torch.enable_grad():
            with torch.no_grad():
                maps = [x.detach().requires_grad_() for x in backbone(image)]
            outputs: Any = tuple(maps)
            if getattr(model, "neck", None) is not None:
                outputs = model.neck(outputs)
            # those of mmseg and mmpretrain choose among the maps; mmdet's heads take all
            heads = [getattr(model, name, None) for name in _HEADS]
            heads = [x for y in heads for x in (y if isinstance(y, nn.ModuleList) else [y])]
            outputs = [head(outputs) for head in heads if head is not None] or outputs
            tensors = [x for x in tree_flatten(outputs)[0] if isinstance(x, Tensor)]
            total = sum(x.float().sum() for x in tensors if x.requires_grad)
        gradients = torch.autograd.grad(total, maps, allow_unused=True)
    except Exception:  # a part that does not run alone is left to the run itself
        return []
    return [i for i, x in enumerate(gradients) if x is None]
