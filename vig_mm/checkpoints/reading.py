"""Safe reading of checkpoint files, with an error that says what is wrong with a bad one."""

import argparse
import errno
import os
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import torch
from mmengine.dist import barrier, get_dist_info
from mmengine.logging import print_log
from torch import Tensor

from vig_mm.errors import CheckpointError
from vig_mm.serialization import allow_mmengine_types, check_torch

PUBLIC_KEYS = ("model_ema", "model")
"""Where public files keep weights, the preferred one first."""

StateDict = dict[str, Tensor]

# what torch's safe unpickler names when it refuses something
_REFUSED = re.compile(
    r"(?:GLOBAL|unrecognized function|add_safe_globals` but got|asks for attribute) "
    r"(.+?)(?: was | whose |\n|$)"
)


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


def is_safetensors(file: str | os.PathLike) -> bool:
    """Whether a file is of the format safetensors, by its first bytes: 8 of a length, then json."""
    try:
        with open(file, "rb") as opened:
            start = opened.read(9)
    except OSError:
        return False
    size = int.from_bytes(start[:8], "little")
    return start[8:] == b"{" and 0 < size <= os.path.getsize(file) - 8


def read_checkpoint(path: str | os.PathLike) -> dict:
    """Read a checkpoint onto the CPU, with torch's weights-only protection on.

    Args:
        path: a file, or an address as `local_file` takes it.

    Raises:
        RequirementError: torch is older than 2.6, see `check_torch`.
        CheckpointError: missing, not a checkpoint, truncated, or holding types that are refused.
    """
    path = os.fspath(path)
    file = local_file(path)
    check_torch()
    allow_mmengine_types()
    if not os.path.isfile(file):  # unlike Path's, false for any text that is no path
        raise CheckpointError(f"checkpoint {path!r} is not a file; check the path")
    if is_safetensors(file) or file.endswith(".safetensors"):
        return _read_safetensors(file, path)
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


def _read_safetensors(file: str, path: str) -> dict:
    try:
        from safetensors.torch import load_file
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f"{path!r} is a safetensors file: pip install safetensors, which reads it"
        ) from error
    try:
        return load_file(file)
    except Exception as error:  # of the library's own
        raise CheckpointError(
            f"{path!r} is not a readable safetensors file: {_first_line(error)}"
        ) from error


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
            f"tensors: {shortlist(unfit, 4)}. Save the state_dict of the model that was trained, "
            "neither quantized nor made on the device 'meta'"
        )
    broken = [k for k, (x, own) in pairs.items() if not x.to(own.dtype).isfinite().all()]
    if broken:
        raise CheckpointError(
            f"{path!r} cannot be used: {len(broken)} of its weights hold NaN or infinity: "
            f"{shortlist(broken, 4)}. The training that wrote it has diverged: take a checkpoint "
            "from before that (docs/troubleshooting.md, 'The loss is nan')"
        )


def _kind(tensor: Tensor) -> str:
    """What keeps a tensor from being weights: its type, layout or device ('': nothing)."""
    if tensor.is_meta:
        return "meta, no values"
    if tensor.layout is not torch.strided:
        return str(tensor.layout)
    return "" if tensor.is_floating_point() else str(tensor.dtype)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__} {str(error).partition(chr(10))[0]}".strip()


def shortlist(names: list[str], limit: int = 8) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
