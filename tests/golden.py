"""The public models' golden outputs (tests/data) and the rule that draws their weights.

Made by running the public definitions in float64; see tests/data/README.md.
"""

import json
import math
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

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


def check_outputs(
    model: str,
    net: nn.Module,
    outputs: Callable[[Tensor], tuple[Tensor, Sequence[Tensor]]],
    bounds: dict[torch.dtype, float],
) -> None:
    """Hold a network against the golden outputs, cast to each dtype of ``bounds``.

    Args:
        outputs: image -> logits ``[1, classes]``, and of a hierarchical model the tokens
            ``[1, N, C]`` of each stage.
        bounds: largest relative errors.
    """
    golden = np.load(DATA / f"{model}.npz")
    for dtype, bound in bounds.items():
        net.to(dtype)
        for height, width in SIZES:
            resized = "_h_" not in model and (height, width) != (224, 224)
            if resized and not torch.__version__.startswith("2.11."):
                # its position embedding is resized in float32, which torch rounds as its version
                bound = max(bound, 1e-6)
            with torch.no_grad():
                logits, stages = outputs(image((height, width)).to(dtype))
            assert len(stages) == (4 if "_h_" in model else 0)
            found = {"logits": logits[0]}
            for i, tokens in enumerate(stages):
                channels, h, w = golden[f"stage{i}_shape_{height}x{width}"]
                assert tokens.shape == (1, h * w, channels)
                found[f"stage{i}"] = tokens.mean(dim=1)[0]
            for what, x in found.items():
                expected = torch.from_numpy(golden[f"{what}_{height}x{width}"])
                error = (x.double() - expected).norm() / expected.norm()
                assert error <= bound, f"{what} at {height}x{width} in {dtype}: {error:.1e}"
