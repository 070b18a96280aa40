"""Checks of a model's config: options that do not exist, channels that do not fit.

Python and torch notice both mistakes, too, but late and in their own terms: a `TypeError` without
the place in the config, or a convolution's complaint in the first iteration.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import Tensor, nn

from vig_mm.errors import ModelError
from vig_mm.registry import MODELS as VIG_MODELS

from .config import meant, part_name, walk

# Pixels, (H, W): the usual training size, as some backbones take no other.
IMAGE_SIZE = (224, 224)
_WHAT = "the model's parts do not fit"


def parts(model: Any) -> Iterator[tuple[str, dict]]:
    """(key in the config, config) of a model's backbones, necks, heads and preprocessors."""
    for where, part in walk("model", model):
        name = part_name(where)
        if name in ("backbone", "neck", "data_preprocessor") or name.endswith("head"):
            yield where, part


def check_options(cfg: Config) -> None:
    """Check that each part of a model knows each option in a whole config, before `--tta` does.

    Raises:
        ModelError: names all unknown options and the known ones.
    """
    problems: list[str] = []
    with MODELS.switch_scope_and_registry(cfg.get("default_scope")) as registry:
        for where, part in parts(cfg.get("model")):
            kind = part.get("type")
            if isinstance(kind, str):
                if registry.get(kind) is None and VIG_MODELS.get(kind) is not None:
                    problems.append(f"{where}.type: {kind!r} must be 'vig_mm.{kind}'")
                kind = registry.get(kind)
            if not callable(kind):
                continue
            known = inspect.signature(kind).parameters
            if any(one.kind is one.VAR_KEYWORD for one in known.values()):
                continue
            for option in [one for one in part if one not in ("type", "_scope_", *known)]:
                problem = f"{where}.{option}: {kind.__name__} has no option {option!r}"
                problems.append(f"{problem}{meant(option, known)} (it has {', '.join(known)})")
            handed_on = cfg.default_scope == "mmseg" and where == "model.backbone"
            if handed_on and cfg.model.get("pretrained") and "pretrained" not in known:
                problems.append(
                    f"model.pretrained: mmseg hands it to the backbone, and {kind.__name__} has no "
                    "such option: set model.pretrained=None, and name its weights by "
                    "model.backbone.init_cfg=dict(type='Pretrained', checkpoint=FILE)"
                )
    if problems:
        raise ModelError.of(_WHAT, problems)


def check_channels(model: nn.Module, cfg: dict) -> None:
    """Check that neck and heads take the maps that come to them, by running one blank image.

    A part is reported when it fails on its input and states other `in_channels` than come in.
    What fails otherwise is left to the run itself; so is a backbone that does not take the image.

    Args:
        model: A built model, not wrapped. Its mode is left as it was.
        cfg: The config of the model, without any wrapper's.

    Raises:
        ModelError: names every part that does not fit, what comes in, and what to set.
    """
    stated = [
        key
        for key, value in cfg.items()
        for one in (value if isinstance(value, list | tuple) else [value])
        if isinstance(one, dict) and "in_channels" in one
    ]
    if not hasattr(model, "backbone") or not stated:
        return
    with tested(model), torch.no_grad():
        if problems := _misfits(model, cfg, dict.fromkeys(stated)):
            raise ModelError.of(_WHAT, problems)


@contextmanager
def tested(model: nn.Module) -> Iterator[None]:
    """Have a model in test mode, and afterwards in the mode that it was in."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _misfits(model: nn.Module, cfg: dict, stated: Sequence[str]) -> list[str]:
    channels = (cfg.get("backbone") or {}).get("in_channels", 3)
    image = next(model.parameters()).new_zeros(1, channels, *IMAGE_SIZE)
    maps, source = _run(model.backbone, image), f"model.backbone ({type(model.backbone).__name__})"
    if maps is None:
        return []
    for where, neck, options in _modules(model, cfg, "neck"):
        outputs = _run(neck, maps)
        if outputs is None:
            return _misfit(where, options, source, maps)
        maps, source = outputs, f"{where} ({type(neck).__name__})"
    problems = []
    for key in stated:
        for where, head, options in _modules(model, cfg, key):
            if key not in ("backbone", "neck") and _run(head, maps) is None:
                problems += _misfit(where, options, source, maps)
    return problems


def _modules(model: nn.Module, cfg: dict, key: str) -> Iterator[tuple[str, nn.Module, dict]]:
    """(key in the config, module, its config) of a part, or of each one if it is a list."""
    module, options = getattr(model, key, None), cfg.get(key)
    if module is not None and isinstance(options, list | tuple):
        for i, (one, its) in enumerate(zip(module, options, strict=True)):
            yield f"model.{key}.{i}", one, its
    elif module is not None and options:
        yield f"model.{key}", module, options


def _run(part: nn.Module, inputs: Any) -> Any:
    """What a part makes of its input; None where it cannot be run alone on it."""
    try:
        return part(inputs)
    except Exception:  # whatever it is: `_misfit` finds out whether the channels are the reason
        return None


def _misfit(where: str, options: dict, source: str, maps: Any) -> list[str]:
    """The problem of a part that failed, if it states other channels than its maps have."""
    stated, index = options.get("in_channels"), options.get("in_index")
    maps = [maps] if isinstance(maps, Tensor) else maps
    tensors = isinstance(maps, Sequence) and all(isinstance(x, Tensor) for x in maps)
    if stated is None or not tensors or any(x.dim() < 2 for x in maps):
        return []
    wanted = channels = [x.shape[1] for x in maps]
    count = "one map" if len(channels) == 1 else f"{len(channels)} maps"
    but = f"but {source} returns {count} of {', '.join(map(str, channels))} channels"
    at = "" if index is None else f" at in_index={index}"
    if index is not None:
        indices = index if isinstance(index, Sequence) else [index]
        wanted = [channels[i] for i in indices if -len(channels) <= i < len(channels)]
        if len(wanted) < len(indices):
            more = "or return more maps by model.backbone.out_indices"
            return [f"{where} takes the maps{at}, {but}: correct {where}.in_index, {more}"]
    if stated in wanted if isinstance(stated, int) else list(stated) == wanted:
        return []
    said = f"{where}.in_channels is {stated}, {but}"
    if isinstance(stated, int):
        return [f"{said}{at}: set {where}.in_channels={wanted[-1]}"]
    if len(stated) == len(wanted):
        return [f"{said}: set {where}.in_channels={wanted}"]
    count = f"{len(stated)} indices, or change the part"
    return [f"{said}: set model.backbone.out_indices to {count}"]
