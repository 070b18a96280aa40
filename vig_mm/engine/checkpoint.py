"""Reading checkpoints: public ViG files, mm files, and the renaming between the two.

Public files hold the weights under ``model`` (and ``model_ema``); the names inside are those of our
backbones, plus the head's. mm files hold them under ``state_dict``, a backbone's behind
``backbone.`` when a whole model was saved. So conversion is a renaming of prefixes.
"""

import argparse
import errno
import os
import pickle
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import torch
from mmengine.dist import barrier, get_dist_info
from mmengine.logging import print_log
from torch import Tensor

from .serialization import allow_mmengine_types

if TYPE_CHECKING:
    from vig_mm.models.backbones.base import ViGBackbone

PUBLIC_KEYS = ("model_ema", "model")
"""Where public files keep weights, the preferred one first."""

StateDict = dict[str, Tensor]

# what torch's safe unpickler names when it refuses something
_REFUSED = re.compile(
    r"(?:GLOBAL|unrecognized function|add_safe_globals` but got|asks for attribute) "
    r"(.+?)(?: was | whose |\n|$)"
)

# public name -> name in an mm classifier; what no rule names gets ``backbone.`` in front
_TO_CLASSIFIER = (
    (r"^classifier\.norm\.", "backbone.norm3."),
    (r"^classifier\.head\.", "head.fc."),
    (r"^head\.", "head.fc."),
)


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message says which file, why, and what to do."""


def local_file(path: str) -> str:
    """``path`` itself, or for an address (``http://...``) the file in torch's cache, fetched once.

    Raises:
        CheckpointError: another kind of address, or it cannot be fetched.
    """
    if "://" not in path:
        return path
    if not path.startswith(("http://", "https://")):
        raise CheckpointError(f"{path!r}: only files and http(s) addresses can be read")
    folder = Path(torch.hub.get_dir(), "checkpoints")
    target = folder / Path(urlsplit(path).path).name
    rank, _ = get_dist_info()
    try:
        if rank == 0 and not target.exists():
            folder.mkdir(parents=True, exist_ok=True)
            print_log(f"downloading {path} to {target}", "current")
            torch.hub.download_url_to_file(path, str(target))
        barrier()
        if not target.exists():  # another machine's cache
            torch.hub.download_url_to_file(path, str(target))
    except OSError as error:
        raise CheckpointError(
            f"{path!r} cannot be downloaded: {_first_line(error)}; check the address and the "
            "network, or fetch the file by hand"
        ) from error
    return str(target)


def read_checkpoint(path: str | os.PathLike) -> dict:
    """Unpickle a checkpoint onto the CPU, with torch's weights-only protection on.

    Args:
        path: a file, or an address as `local_file` takes it.

    Raises:
        CheckpointError: missing, not a checkpoint, truncated, or holding types that are refused.
    """
    path = os.fspath(path)
    file = local_file(path)
    allow_mmengine_types()
    if not os.path.isfile(file):  # unlike Path's, false for any text that is no path
        raise CheckpointError(f"checkpoint {path!r} is not a file; check the path")
    try:
        # public training scripts keep their command line beside the weights
        with torch.serialization.safe_globals([argparse.Namespace]):
            # said here, so that TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD does not turn it off
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # on broken bytes the unpickler may raise anything
        raise CheckpointError(f"{path!r} {_what_is_wrong(file, error)}") from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{path!r} holds a {type(checkpoint).__name__}, not a state dict")
    return checkpoint


def _what_is_wrong(file: str, error: Exception) -> str:
    """Why torch could not load a file. Its own text advises to switch the protection off."""
    found = _REFUSED.search(str(error))
    if found and isinstance(error, pickle.UnpicklingError):
        return (
            f"cannot be loaded safely: it asks Python for {found[1]}, which weights do not need. "
            "It was refused, and nothing of it was run: take weights from a source that you trust, "
            "or, if a whole model was saved, save its state_dict"
        )
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EIO, errno.ESTALE):
        return f"cannot be read: {_first_line(error)}"
    with open(file, "rb") as opened:
        start = opened.read(64)
    if not start:
        why = "it is empty"
    elif start.lstrip().startswith(b"<"):
        why = "it is a web page; the download went wrong, e.g. because the address needs a login"
    elif start.startswith(b"version https://git-lfs"):
        why = "it is a pointer of Git LFS; `git lfs pull` fetches the file"
    elif "TorchScript" in str(error):
        why = "it is a TorchScript program"
    elif isinstance(error, pickle.UnpicklingError):
        why = "it is truncated or another kind of file"
    else:
        why = f"it is truncated or another kind of file ({_first_line(error)})"
    return f"is not a readable torch checkpoint: {why}"


def is_public(checkpoint: dict) -> bool:
    """Whether this is a public ViG file rather than an mm one.

    An mm model's weights may lie where public files have theirs; their names tell.
    """
    found = _public_parts(checkpoint)
    return bool(found) and not any(_is_wrapped(state) for state in found)


def _public_parts(checkpoint: dict) -> list[dict]:
    """What lies where public files have their weights, and mm files nothing."""
    if isinstance(checkpoint.get("state_dict"), dict):
        return []
    return [checkpoint[key] for key in PUBLIC_KEYS if isinstance(checkpoint.get(key), dict)]


def _is_wrapped(names: Iterable) -> bool:
    """Whether a state dict is of a whole mm model, whose backbone stands behind ``backbone.``."""
    return any(str(name).removeprefix("module.").startswith("backbone.") for name in names)


def weights(checkpoint: dict, key: str | None = None, path: str = "") -> tuple[StateDict, str]:
    """The state dict inside a checkpoint and the key it was found under ('' for a bare one).

    Without ``key``: ``state_dict``, then ``model_ema``, then ``model``, then the dict itself.

    Args:
        path: the checkpoint's file, for the messages.

    Raises:
        CheckpointError: there are no weights, or some that have no name.
    """
    for name in (key,) if key else ("state_dict", *PUBLIC_KEYS):
        if isinstance(checkpoint.get(name), dict):
            state = checkpoint[name]
            break
    else:
        name, state = "", checkpoint
    file = f"{path!r}: " if path else ""
    tensors = {k: x for k, x in state.items() if isinstance(x, Tensor)}
    if not tensors or (key and not name):
        raise CheckpointError(
            f"{file}no weights{f' under {key!r}' if key else ''} in a checkpoint with the keys "
            f"{', '.join(map(repr, list(checkpoint)[:8]))}{_where_else(checkpoint, key, name)}"
        )
    unnamed = [k for k in tensors if not isinstance(k, str)]
    if unnamed:
        raise CheckpointError(
            f"{file}{len(unnamed)} of its {len(tensors)} tensors have no name but "
            f"{', '.join(map(repr, unnamed[:4]))}: it is no model's state_dict. Save that one: "
            "torch.save({'state_dict': model.state_dict()}, FILE)"
        )
    return {k.removeprefix("module."): x for k, x in tensors.items()}, name


def _where_else(checkpoint: dict, key: str | None, name: str) -> str:
    """What a checkpoint holds that has no weights under ``key`` or ``name``, and what to do."""
    inside = list(_states_inside(checkpoint))
    if inside:
        there = f". There are tensors in checkpoint{' and checkpoint'.join(inside)}"
        save = f"torch.save({{'model': checkpoint{inside[0]}}}, FILE)"
        return there if key else f"{there}: save them where they are found, {save}"
    advice = ". Give a file written by torch.save({'state_dict': model.state_dict()}, FILE)"
    if not name:
        return advice
    held = ", ".join(sorted({type(x).__name__ for x in checkpoint[name].values()}))
    return f"; its {name!r} {f'holds {held}, no tensors' if held else 'is empty'}{advice}"


def _states_inside(checkpoint: dict, depth: int = 2) -> Iterator[str]:
    """Subscripts of the dicts with tensors in them; an optimizer's lie deeper than these."""
    for key, value in checkpoint.items():
        if isinstance(value, dict):
            if any(isinstance(x, Tensor) for x in value.values()):
                yield f"[{key!r}]"
            elif depth > 1:
                yield from (f"[{key!r}]{rest}" for rest in _states_inside(value, depth - 1))


def check_numbers(state: StateDict, parameters: Mapping[str, Tensor], path: str) -> None:
    """See that weights are finite floating-point numbers; torch copies anything that it can cast.

    Buffers are not looked at: counters are integers, and masks may hold infinities.

    Args:
        state: weights of a file under the model's names.
        parameters: the model's parameters.
        path: the file, for the messages.

    Raises:
        CheckpointError: names those that are not.
    """
    pairs = {
        name: (state[name], own)
        for name, own in parameters.items()
        if name in state and own.is_floating_point()
    }
    kinds = {name: _kind(x) for name, (x, _) in pairs.items()}
    unfit = [f"{name} ({kind})" for name, kind in kinds.items() if kind]
    if unfit:
        raise CheckpointError(
            f"{path!r} cannot be used: {len(unfit)} of its weights are no plain floating-point "
            f"tensors: {_some(unfit, 4)}. Save the state_dict of the model that was trained, "
            "neither quantized nor made on the device 'meta'"
        )
    broken = [k for k, (x, own) in pairs.items() if not x.to(own.dtype).isfinite().all()]
    if broken:
        raise CheckpointError(
            f"{path!r} cannot be used: {len(broken)} of its weights hold NaN or infinity: "
            f"{_some(broken, 4)}. The training that wrote it has diverged: take a checkpoint from "
            "before that (docs/troubleshooting.md, 'The loss is nan')"
        )


def _kind(tensor: Tensor) -> str:
    """What keeps a tensor from being weights: its type, layout or device ('': nothing)."""
    if tensor.is_meta:
        return "meta, no values"
    if tensor.layout is not torch.strided:
        return str(tensor.layout)
    return "" if tensor.is_floating_point() else str(tensor.dtype)


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
            f"{_some(foreign)}; only classifiers and their backbones convert back"
        )
    return public


def prepare_checkpoint(path: str, work_dir: str) -> str:
    """A file that mmengine can load: ``path`` itself, or an mm copy of one with public keys.

    Args:
        work_dir: where the copy is written as ``<name>_mm.pth``: a public file's is a classifier's,
            of which detectors and segmentors take the ``backbone.`` part.
    """
    path = local_file(str(path))
    checkpoint = read_checkpoint(path)
    if not _public_parts(checkpoint):
        return path
    state, key = weights(checkpoint, path=path)
    kind = "an mm model's file with public keys"
    if is_public(checkpoint):
        state, kind = to_classifier(state), "a public ViG file"
    target = Path(work_dir) / f"{Path(path).stem}_mm.pth"
    target.parent.mkdir(parents=True, exist_ok=True)
    # every process of a distributed run does this: replace in one step, never half a file
    part = target.with_suffix(f".{os.getpid()}.tmp")
    torch.save({"state_dict": state, "meta": {}}, part)
    os.replace(part, target)
    print_log(f"{path} is {kind}: its {key!r} was written to {target}", "current")
    return str(target)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__} {str(error).partition(chr(10))[0]}".strip()


def _some(names: list[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def load_pretrained_backbone(backbone: "ViGBackbone", path: str, prefix: str | None = None) -> None:
    """Load a public or mm checkpoint into a backbone and log exactly what did not fit.

    What may differ: heads (left out), output norms of stages that one of the two does not return
    (start fresh), the adapter of `ViGAdapter` (starts fresh as a whole), ``pos_embed`` of another
    grid (resized, bicubic). Anything else that is missing is logged as a warning, name by name.

    Raises:
        CheckpointError: nothing fits, a weight has another shape, the file has blocks that this
            backbone lacks (a checkpoint of another model or size), or a weight is no finite number.
    """
    state, key = weights(read_checkpoint(path), path=path)
    named = _some(list(state), 4)
    state = to_backbone(state, prefix)
    # before a grid is resized, which takes floating-point numbers only
    check_numbers(state, dict(backbone.named_parameters()), path)
    own = backbone.state_dict()
    state = backbone.fit_state_dict(state)

    norm = re.compile(r"norm\d*\.")
    matched = [k for k in own if k in state]
    added = [k for k in own if k.startswith(backbone.added_parts)]
    if any(k in state for k in added):
        added = []  # the file has this part, too: what it lacks of it is missing
    missing = [k for k in own if k not in state and k not in added and not norm.match(k)]
    fresh = [k for k in own if k not in state and norm.match(k)]
    unexpected = [k for k in state if k not in own and not norm.match(k)]
    reshaped = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(own[k].shape)}"
        for k in matched
        if state[k].shape != own[k].shape
    ]
    if not any(not norm.match(k) for k in matched):
        raise CheckpointError(
            f"nothing in {path!r} fits {type(backbone).__name__}: its weights"
            f"{f' (under {key!r})' if key else ''} are named {named}. "
            "Is it a checkpoint of another model, or is init_cfg's prefix wrong?"
        )
    known_top = {k.split(".")[0] for k in own}
    extra = [k for k in unexpected if k.split(".")[0] in known_top]
    extra = [k for k in extra if not k.startswith(backbone.added_parts)]
    # blocks beyond the last returned stage are not built, so a file may well have them
    extra = [k for k in extra if not _beyond_last_output(k, own)]
    if reshaped or extra:
        raise CheckpointError(
            f"{path!r} is of another size than {type(backbone).__name__}(embed_dims="
            f"{backbone.embed_dims}): "
            + "; ".join(
                f"{len(names)} {what}: {_some(names, 4)}"
                for what, names in (
                    ("of another shape", reshaped),
                    ("not in this backbone", extra),
                    ("missing", missing),
                )
                if names
            )
            + ". Choose the arch that the file was trained with."
        )
    backbone.load_state_dict(state, strict=False)
    where = f"{path}{f' [{key}]' if key else ''}"
    print_log(f"{where}: loaded {len(matched)} of {len(own)} backbone weights", "current")
    if fresh:
        print_log(f"{where}: output norms that start fresh: {_some(fresh)}", "current")
    if added:
        parts = ", ".join(f"{prefix}*" for prefix in backbone.added_parts)
        print_log(f"{where}: {parts} starts fresh: {len(added)} weights not in the file", "current")
    left_out = [k for k in state if k not in own]
    if left_out:
        print_log(f"{where}: left out, not in this backbone: {_some(left_out)}", "current")
    if missing:
        print_log(f"{where}: MISSING, left as initialised: {', '.join(missing)}", "current", 30)


def _beyond_last_output(name: str, own: StateDict) -> bool:
    """Whether ``blocks.i`` / ``layers.i`` lies after the last one that the backbone built."""
    match = re.match(r"(blocks|layers)\.(\d+)\.", name)
    if not match:
        return False
    part, index = match[1], int(match[2])
    last = max(int(k.split(".")[1]) for k in own if k.startswith(f"{part}."))
    if part == "layers" and index == last:
        return ".downsample." in name
    return index > last
