"""Conversion of checkpoints between the public ViG form and the mm form: prefixes are renamed.

Public files hold the weights under ``model`` (and ``model_ema``); the names inside are those of our
backbones, plus the head's; so are those of timm's models, whose head is ``head.fc``. mm files hold
them under ``state_dict``, a backbone's behind ``backbone.`` when a whole model was saved.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from mmengine.logging import print_log

from .reading import (
    PUBLIC_KEYS,
    CheckpointError,
    StateDict,
    is_safetensors,
    local_file,
    read_checkpoint,
    shortlist,
    weights,
)

# public name -> name in an mm classifier; what no rule names gets ``backbone.`` in front
_TO_CLASSIFIER = (
    (r"^classifier\.norm\.", "backbone.norm3."),
    (r"^(classifier\.head|head\.fc|head)\.", "head.fc."),
)


def is_public(checkpoint: dict) -> bool:
    """Whether this is a public ViG file, or of ViG as a classifier of timm, not an mm one.

    An mm model's weights may lie where public files have theirs; their names tell.
    """
    found = _public_parts(checkpoint)
    bare = checkpoint.get("state_dict", checkpoint)
    if not found and isinstance(bare, dict) and "head.fc.weight" in bare:
        # other models have such a head, too; decay gates are ViG's alone
        found = [bare] if any(".gk_proj." in str(name) for name in bare) else []
    return bool(found) and not any(_is_wrapped(state) for state in found)


def _public_parts(checkpoint: dict) -> list[dict]:
    """What lies where public files have their weights, and mm files nothing."""
    if isinstance(checkpoint.get("state_dict"), dict):
        return []
    return [checkpoint[key] for key in PUBLIC_KEYS if isinstance(checkpoint.get(key), dict)]


def _is_wrapped(names: Iterable) -> bool:
    """Whether a state dict is of a whole mm model, whose backbone stands behind ``backbone.``."""
    return any(str(name).removeprefix("module.").startswith("backbone.") for name in names)


def to_classifier(public: StateDict) -> StateDict:
    """Public names -> names of an mmpretrain classifier (``backbone.``, ``head.fc.``)."""

    def rename(name: str) -> str:
        for pattern, replacement in _TO_CLASSIFIER:
            if re.match(pattern, name):
                return re.sub(pattern, replacement, name)
        return f"backbone.{name}"

    return {rename(name): x for name, x in public.items()}


def to_backbone(state: StateDict, prefix: str | None = None) -> StateDict:
    """Any form -> a backbone's own names; heads and necks are left out.

    Args:
        prefix: take only what stands behind it (mmengine's ``init_cfg`` option).
    """
    if prefix is None:
        if not _is_wrapped(state):
            state = to_classifier(state)
        prefix = "backbone."
    elif prefix and not prefix.endswith("."):
        prefix += "."
    return {k.removeprefix(prefix): x for k, x in state.items() if k.startswith(prefix)}


def to_public(state: StateDict) -> StateDict:
    """An mm classifier or backbone -> public names.

    Raises:
        CheckpointError: there are parts that the public models do not have.
    """
    wrapped = _is_wrapped(state)
    hierarchical = any(re.match(r"(backbone\.)?layers\.", name) for name in state)
    head = "classifier.head." if hierarchical else "head."
    public, foreign = {}, []
    for name, x in state.items():
        if name.startswith("head.fc."):
            public[head + name.removeprefix("head.fc.")] = x
            continue
        bare = name.removeprefix("backbone.")
        dense = r"norm[0-2]\." if hierarchical else r"norm\d|adapter\."
        if (wrapped and bare == name) or re.match(dense, bare):
            foreign.append(name)
        elif hierarchical and bare.startswith("norm3."):
            public["classifier." + bare.replace("norm3", "norm")] = x
        else:
            public[bare] = x
    if foreign:
        raise CheckpointError(
            f"the public ViG models have no place for {len(foreign)} of these weights: "
            f"{shortlist(foreign)}; only classifiers and their backbones convert back"
        )
    return public


def prepare_checkpoint(path: str, work_dir: str) -> str:
    """A file that mmengine can load: ``path`` itself, or an mm copy.

    Copied are files with public keys or names, and those of the format safetensors.

    Args:
        work_dir: where the copy is written as ``<name>_mm.pth``: a public file's is a classifier's,
            of which detectors and segmentors take the ``backbone.`` part.
    """
    path = local_file(str(path))
    checkpoint = read_checkpoint(path)
    public = is_public(checkpoint)
    if not public and not _public_parts(checkpoint) and not is_safetensors(path):
        return path
    state, key = weights(checkpoint, path=path)
    kind = "an mm model's file with public keys" if key else "a safetensors file"
    if public:
        state, kind = to_classifier(state), "a public ViG file or one of timm's"
    target = Path(work_dir) / f"{Path(path).stem}_mm.pth"
    target.parent.mkdir(parents=True, exist_ok=True)
    # every process of a distributed run does this: replace in one step, never half a file
    part = target.with_suffix(f".{os.getpid()}.tmp")
    torch.save({"state_dict": state, "meta": {}}, part)
    os.replace(part, target)
    print_log(f"{path} is {kind}: its {key or 'weights'} was written to {target}", "current")
    return str(target)
