"""The public models' golden outputs (tests/data) and the rule that draws their weights.

Made by running the public definitions in float64; see tests/data/README.md.
"""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

DATA = Path(__file__).parent / "data"
SHAPES = json.loads((DATA / "state_dict_shapes.json").read_text())
MODELS = tuple(SHAPES)
SIZES = ((224, 224), (96, 160))
CONFIGS = Path(__file__).parents[1] / "configs"


def draw(key: str, shape: list[int]) -> Tensor:
    rng = np.random.RandomState(zlib.crc32(key.encode()))
    x = rng.standard_normal(shape)
    if "pos_embed" in key:
        x = 0.5 * x
    elif len(shape) >= 2:
        x = x / math.sqrt(math.prod(shape[1:]))
    elif key.endswith("weight"):
        x = 1 + 0.1 * x
    else:
        x = 0.5 * x
    return torch.from_numpy(x)


def public_state(model: str) -> dict[str, Tensor]:
    """The public state dict of a model, float64."""
    return {key: draw(key, shape) for key, shape in SHAPES[model].items()}


def image(size: tuple[int, int]) -> Tensor:
    return torch.from_numpy(np.random.RandomState(0).standard_normal((1, 3, *size)))


def backbone_config(model: str) -> dict:
    """``vig_h_small`` -> ``dict(type='vig_mm.HierViG', arch='small', ...)``."""
    arch = model.rsplit("_", 1)[1]
    if "_h_" in model:
        return dict(type="vig_mm.HierViG", arch=arch, out_indices=(3,))
    return dict(type="vig_mm.ViG", arch=arch)
