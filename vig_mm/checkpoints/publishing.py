"""Publishing of a training checkpoint: weights, config and class names, nothing else."""

import ast
import hashlib
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config

from vig_mm.version import __version__

from .conversion import is_public
from .reading import CheckpointError, read_checkpoint, weights

LOCAL = ("work_dir", "launcher")  # config entries that are about the machine, not the model
KEPT = ("epoch", "iter", "seed", "time", "experiment_name", "mmengine_version")


def publishable(checkpoint: dict, source: str) -> dict:
    """What is published of a checkpoint: `state_dict` and `meta` with `cfg` and `dataset_meta`.

    Args:
        checkpoint: what mmengine's Runner saved.
        source: its file, for messages.

    Raises:
        CheckpointError: there is no config or no class names in it.
    """
    meta = checkpoint.get("meta", {})
    if is_public(checkpoint) or "cfg" not in meta:
        raise CheckpointError(
            f"{source!r} has no config in it: only checkpoints that a training wrote can be "
            "published (tools/convert_checkpoint.py rewrites public ViG files)"
        )
    classes = meta.get("dataset_meta", {}).get("classes")
    if not classes:
        raise CheckpointError(f"{source!r} has no class names in it (meta.dataset_meta.classes)")
    state, _ = weights(checkpoint, "state_dict", path=source)
    state = OrderedDict((name, x.detach().cpu().contiguous()) for name, x in state.items())
    # versions of modules, for those that rename weights of old checkpoints
    state._metadata = getattr(checkpoint["state_dict"], "_metadata", OrderedDict())
    kept = {key: meta[key] for key in KEPT if key in meta}
    kept |= dict(
        cfg=clean_config(meta["cfg"]),
        dataset_meta=plain(meta["dataset_meta"]),
        vig_mm_version=__version__,
        averaged="ema_state_dict" in checkpoint,
    )
    return dict(meta=kept, state_dict=state)


def clean_config(text: str) -> str:
    """A config's text without the folders and files of the run.

    The text is read, not run as configs are: it comes out of a checkpoint. Parts that it names by
    `vig_mm.` are found by that; other custom modules stay in `custom_imports`.

    Raises:
        CheckpointError: it holds more than plain values.
    """
    try:
        entries = dict(_entry(statement) for statement in ast.parse(text).body)
    except (SyntaxError, ValueError) as error:
        raise CheckpointError(
            "the config in the checkpoint is not the list of plain values that mmengine writes, "
            f"and it was not run: {error}"
        ) from error
    cfg = Config(entries)
    for key in LOCAL:
        cfg.pop(key, None)
    cfg.load_from, cfg.resume = None, False
    return cfg.pretty_text


def _entry(statement: ast.stmt) -> tuple[str, Any]:
    """Name and value of ``name = value``."""
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            return name, ast.literal_eval(_DictCalls().visit(value))
    raise ValueError(f"line {statement.lineno} does not set a value")


class _DictCalls(ast.NodeTransformer):
    """``dict(a=1)`` -> ``{"a": 1}``, which `ast.literal_eval` takes."""

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        match node:
            case ast.Call(func=ast.Name(id="dict"), args=[], keywords=entries):
                if all(entry.arg for entry in entries):
                    keys = [ast.Constant(entry.arg) for entry in entries]
                    return ast.Dict(keys, [entry.value for entry in entries])
        return node


def plain(value: Any) -> Any:
    """A copy with numpy's arrays and numbers as Python's, which any reader may load."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value


def publish(source: Path, out: Path) -> tuple[Path, dict]:
    """Write the published file; returns its path and content.

    Raises:
        CheckpointError: ``source`` is no checkpoint, or see `publishable`.
    """
    content = publishable(read_checkpoint(source), str(source))
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f"{out.name}.{os.getpid()}.tmp")
    try:
        with part.open("wb") as file:  # by a path, torch would write its name into the file
            torch.save(content, file)
        digest = hashlib.sha256(part.read_bytes()).hexdigest()
        published = out.with_name(f"{out.name.removesuffix('.pth')}-{digest[:8]}.pth")
        os.replace(part, published)
    finally:
        part.unlink(missing_ok=True)
    return published, content
