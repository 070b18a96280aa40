"""Make a training checkpoint ready to publish: weights, config and class names, nothing else.

Optimizer, schedules, log and message hub are left out. Of a run with EMAHook the averaged weights
are taken. The file is named OUT-<hash>.pth after the first eight hexadecimal digits of its SHA-256,
and it can be read with torch's protection on (`torch.load(..., weights_only=True)`).

It loads by `init_cfg=dict(type='Pretrained', checkpoint=...)`, by tools/test.py, and by the
libraries' inferencers, which find the config in it (docs/look.md).

Example: python tools/publish_model.py work_dirs/CONFIG/epoch_12.pth models/mask-rcnn_vig-h-t.pth
"""

# ruff: noqa: E402
import argparse
import ast
import hashlib
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

from vig_mm.preflight.environment import exit_without_mmengine

exit_without_mmengine()

import numpy as np
import torch
from mmengine.config import Config

from vig_mm.apis.launch import run
from vig_mm.checkpoints.conversion import is_public
from vig_mm.checkpoints.reading import read_checkpoint, weights
from vig_mm.preflight.user_input import UsageError
from vig_mm.version import __version__

LOCAL = ("work_dir", "launcher")  # config entries that are about the machine, not the model
KEPT = ("epoch", "iter", "seed", "time", "experiment_name", "mmengine_version")


def publishable(checkpoint: dict, source: str) -> dict:
    """What is published of a checkpoint: `state_dict` and `meta` with `cfg` and `dataset_meta`.

    Args:
        checkpoint: what mmengine's Runner saved.
        source: its file, for messages.

    Raises:
        UsageError: there is no config or no class names in it.
    """
    meta = checkpoint.get("meta", {})
    if is_public(checkpoint) or "cfg" not in meta:
        raise UsageError(
            f"{source!r} has no config in it: only checkpoints that a training wrote can be "
            "published (tools/convert_checkpoint.py rewrites public ViG files)"
        )
    classes = meta.get("dataset_meta", {}).get("classes")
    if not classes:
        raise UsageError(f"{source!r} has no class names in it (meta.dataset_meta.classes)")
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
        UsageError: it holds more than plain values.
    """
    try:
        entries = dict(_entry(statement) for statement in ast.parse(text).body)
    except (SyntaxError, ValueError) as error:
        raise UsageError(
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
        CheckpointError: ``source`` is no checkpoint.
        UsageError: see `publishable`.
    """
    if out.is_dir():
        raise UsageError(f"OUT is a file's name, and {str(out)!r} is a folder")
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="checkpoint file that a training wrote")
    parser.add_argument("out", type=Path, help="file to write; the hash is added to its name")
    args = parser.parse_args()
    published, content = publish(args.checkpoint, args.out)
    meta, before = content["meta"], args.checkpoint.stat().st_size
    classes = meta["dataset_meta"]["classes"]
    print(
        f"{published}: {published.stat().st_size / 2**20:.1f} MB of {before / 2**20:.1f} MB\n"
        f"weights: {len(content['state_dict'])} tensors, "
        f"{'averaged (EMAHook)' if meta['averaged'] else 'as trained (no EMAHook)'}\n"
        f"classes: {len(classes)} ({', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''})"
    )


if __name__ == "__main__":
    run(main)
