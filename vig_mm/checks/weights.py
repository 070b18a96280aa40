"""Checks that checkpoints can be read and fit the model of a config."""

import copy
import inspect
import warnings
from collections import Counter
from typing import Any

from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import MODELS
from torch import nn

from vig_mm.checkpoints.reading import (
    CheckpointError,
    StateDict,
    check_numbers,
    is_safetensors,
    read_checkpoint,
    shortlist,
    weights,
)
from vig_mm.models.backbones.base import ViGBackbone
from vig_mm.registry import type_name


def bare_model(model: nn.Module) -> nn.Module:
    """The model inside what distributed training and test-time augmentation put around it."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def check_initial_weights(cfg: Any, ours: bool = False) -> None:
    """Read the files that parts of a model's config take their first weights from, at any depth.

    Before anything is built, and because other backbones than ours leave that to mmengine, whose
    errors do not name the file. Addresses are left to the loader. `ours`: whether the entry is of a
    backbone of vig_mm, which reads more formats than mmengine.

    Raises:
        CheckpointError: a file is missing or is no checkpoint that can be loaded safely.
    """
    if isinstance(cfg, dict):
        path = cfg.get("checkpoint") if type_name(cfg) in ("Pretrained", "PretrainedInit") else None
        if path and "://" not in path:
            read_checkpoint(path)
            if is_safetensors(path) and not ours:
                raise CheckpointError(
                    f"{path!r} is a safetensors file, which mmengine does not read: save it as "
                    "torch.save(safetensors.torch.load_file(FILE), 'FILE.pth')"
                )
        ours = _is_ours(cfg["type"]) if "type" in cfg and not path else ours
    for value in cfg.values() if isinstance(cfg, dict) else cfg or ():
        if isinstance(value, dict | list | tuple):
            check_initial_weights(value, ours)


def _is_ours(kind: Any) -> bool:
    """Whether a type is of a backbone of vig_mm, or of a user's that is built on one."""
    name, registries = type_name(kind), (MODELS, *MODELS.children.values())
    kinds = [x.module_dict.get(name) for x in registries] if isinstance(kind, str) else [kind]
    built_on = any(inspect.isclass(one) and issubclass(one, ViGBackbone) for one in kinds)
    return built_on or str(kind).startswith("vig_mm.")


def check_weights(
    model: nn.Module, path: str, partly: bool = False, resume: bool = False
) -> list[str]:
    """See that an mm checkpoint fits a Runner's model; mmengine only logs what does not.

    What the modules' own hooks rename or resize while they load, such as position embeddings of
    another image size, fits.

    Args:
        partly: Whether it is enough that something fits, as when fine-tuning.
        resume: Whether the optimizer goes on, too: then nothing may be resized.

    Returns:
        For the log, one line for each part of the model that nothing in the file fits.

    Raises:
        CheckpointError: names what is missing, of another shape, or no finite number.
    """
    model = bare_model(model)
    state, _ = weights(read_checkpoint(path), path=path)
    own = {k: x for k, x in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    enough = len(own) - 1 if partly else 0
    unfit = _misfits(own, state)
    if len(unfit) > enough and not resume:
        try:
            loaded = _as_loaded(model, state)
        except Exception as error:  # a hook's, which would end the real loading, too
            why = f"{path!r} cannot be loaded into this config's model: {error}"
            raise CheckpointError(why) from error
        if not partly:  # a stem for other images is one to train
            vigs = [(name, x) for name, x in model.named_modules() if isinstance(x, ViGBackbone)]
            stems = [f"{name}.{conv}".lstrip(".") for name, x in vigs for conv in x.first_convs]
            loaded |= {name: state[name] for name in stems if name in state}
        state = loaded
        unfit = _misfits(own, state)
    if len(unfit) > enough:
        missing = [name for name in unfit if name not in state]
        reshaped = [
            f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
            for name in unfit
            if name in state
        ]
        details = "; ".join(
            f"{len(names)} {what}, e.g. {', '.join(names[:4])}"
            for what, names in (("missing", missing), ("of another shape", reshaped))
            if names
        )
        raise CheckpointError(
            f"{path!r} does not fit this config's model: of its {len(own)} weights {details}. "
            "Give the checkpoint that was trained with this config, or the config of its training."
        )
    fitting = {name: state[name] for name in own if name not in unfit}
    check_numbers(fitting, dict(model.named_parameters(remove_duplicate=False)), path)
    sizes = Counter(name.partition(".")[0] for name in own)
    fresh = sizes.keys() - {name.partition(".")[0] for name in fitting}
    return [
        f"load_from: none of the {sizes[part]} weights of {part} is in {path!r}: it starts from "
        f"its init_cfg, or at random; its weights there are named {shortlist(list(state), 3)}"
        for part in sorted(fresh)
    ]


def _misfits(own: StateDict, state: StateDict) -> list[str]:
    """Names that a state dict lacks, or has in another shape."""
    return [name for name, x in own.items() if name not in state or state[name].shape != x.shape]


def _as_loaded(model: nn.Module, state: StateDict) -> StateDict:
    """A state dict as its modules' hooks leave it, module by module as mmengine loads it."""
    empty = {
        id(x): nn.Parameter(x.detach().to("meta"), x.requires_grad) for x in model.parameters()
    }
    loaded: StateDict = {}

    def load(module: nn.Module, part: StateDict, prefix: str) -> None:
        module._load_from_state_dict(part, prefix, {}, True, [], [], [])
        loaded.update(part)
        for name, child in module.named_children():
            start = f"{prefix}{name}."
            load(child, {k: x for k, x in part.items() if k.startswith(start)}, start)

    with warnings.catch_warnings():
        # the copy has no values, and is to get none
        warnings.filterwarnings("ignore", ".* copying from a non-meta parameter")
        load(copy.deepcopy(model, empty), dict(state), "")
    return loaded
