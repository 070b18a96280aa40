"""Runs of tools/train.py and tools/test.py."""

import importlib.util
import json
import pickle
import shutil
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.utils import ManagerMixin
from numpy.typing import ArrayLike

ROOT = Path(__file__).resolve().parents[1]


def tool(name: str, *args, cwd: Path) -> None:
    """Call the main function of a file in tools/, in this process."""
    spec = importlib.util.spec_from_file_location(f"tools_{Path(name).stem}", ROOT / "tools" / name)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        patch.setattr(sys, "argv", [name, *map(str, args)])
        # loggers and the like of runs that start in the same second have the same name
        for kind in kinds_of(ManagerMixin):
            patch.setattr(kind, "_instance_dict", OrderedDict())
        spec.loader.exec_module(module)
        module.main()


def kinds_of(kind: type) -> list[type]:
    return [kind, *(x for sub in kind.__subclasses__() for x in kinds_of(sub))]


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


def scores(config: Path, checkpoint: Path, *options) -> tuple[dict[str, float], list[dict]]:
    """What tools/test.py reports on a config's test data, and what it dumps."""
    folder = config.parent / f"test_{config.stem}{''.join(options)}"
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier run
    out = folder / "out.pkl"
    args = (config, checkpoint, "--work-dir", folder, "--out", out, *options)
    tool("test.py", *args, cwd=config.parent)
    (report,) = folder.glob("*/*.json")
    return json.loads(report.read_text()), pickle.loads(out.read_bytes())


def agree(reported: dict[str, float], expected: dict[str, float], digits: int) -> None:
    """The evaluator rounds to so many digits after the point."""
    for name, value in expected.items():
        assert reported[name] == pytest.approx(value, abs=0.5001 * 10**-digits), name
