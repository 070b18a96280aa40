"""Runs of tools/train.py and tools/test.py, as a user starts them."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from numpy.typing import ArrayLike

ROOT = Path(__file__).resolve().parents[1]


def tool(name: str, *args, cwd: Path) -> None:
    command = [sys.executable, "-W", "ignore", ROOT / "tools" / name, *args]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}  # for `with_model`
    done = subprocess.run(
        [str(x) for x in command], cwd=cwd, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def small_config(base: str, folder: Path, changes: dict) -> Path:
    """A config, written to ``folder``, with ``changes`` by dotted key and without data workers."""
    cfg = Config.fromfile(ROOT / "configs" / base)
    for split in ("train", "val", "test"):
        cfg[f"{split}_dataloader"].update(num_workers=0, persistent_workers=False)
    cfg.merge_from_dict(changes)
    path = folder / f"{cfg.default_scope}.py"
    cfg.dump(path)
    return path


def with_model(config: Path, module: str, kind: str, weights: dict, **options) -> tuple[Path, Path]:
    """The same config with another model in it, and that model's checkpoint.

    Args:
        module: file in tests/ that registers the model.
        kind: its class.
        weights: its state dict.
        options: its options; it gets the config's preprocessor besides.
    """
    cfg = Config.fromfile(config)
    preprocessor = cfg.model.data_preprocessor
    cfg.model = dict(type=f"vig_mm.{kind}", data_preprocessor=preprocessor, **options)
    imports = cfg.get("custom_imports", dict(imports=[]))["imports"]
    cfg.custom_imports = dict(imports=[*imports, module], allow_failed_imports=False)
    path = config.with_name(f"{kind}.py")
    cfg.dump(path)
    torch.save(dict(state_dict=weights), path.with_suffix(".pth"))
    return path, path.with_suffix(".pth")


def by_colour(config: Path, kind: str, colours: ArrayLike) -> tuple[Path, Path]:
    """`with_model` for the models of `colour_models`; ``colours``: RGB in label order."""
    weights = dict(colours=torch.tensor(np.asarray(colours)).float())
    return with_model(config, "colour_models", kind, weights, num_classes=len(colours))


def by_vig(config: Path) -> tuple[Path, Path]:
    """A config and the checkpoint of its ViG after training."""
    tool("train.py", config, "--seed", "0", cwd=config.parent)
    work_dir = config.parent / "work_dirs" / config.stem
    return config, Path((work_dir / "last_checkpoint").read_text())


def scores(config: Path, checkpoint: Path, *options) -> tuple[dict[str, float], list[dict]]:
    """What tools/test.py reports on a config's test data, and what it dumps."""
    folder = config.parent / f"test_{config.stem}{''.join(options)}"
    out = folder / "out.pkl"
    args = (config, checkpoint, "--work-dir", folder, "--out", out, *options)
    tool("test.py", *args, cwd=config.parent)
    (report,) = folder.glob("*/*.json")
    return json.loads(report.read_text()), pickle.loads(out.read_bytes())


def agree(reported: dict[str, float], expected: dict[str, float], digits: int) -> None:
    """The evaluator rounds to so many digits after the point."""
    for name, value in expected.items():
        assert reported[name] == pytest.approx(value, abs=0.5001 * 10**-digits), name
