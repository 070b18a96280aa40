"""Every backbone in half precision against itself in float32.

Two sets of random weights: initial, as training begins, except that layer scales are drawn, or an
adapter's injectors, which begin at 0, would do nothing; and unit gain, where every layer keeps the
size of its input, and no block is small beside the residual stream. Such a network multiplies any
rounding. Its share of the blame is the error that is left when only the weights are rounded and
everything is computed in float32; no arithmetic in that precision can do better.
"""

import copy
import math

import pytest
import torch
from references import rel
from torch import Tensor, nn

pytest.importorskip("mmcv")

import vig_mm

BOUNDS = {torch.bfloat16: 1e-2, torch.float16: 2e-3}
DTYPES = pytest.mark.parametrize("dtype", BOUNDS, ids=str)
SIZE = (64, 96)
TINY = ("ViG-tiny", "HierViG-tiny", "ViGAdapter-tiny")  # at their full depth
SHALLOW = {
    "ViG-base": dict(depth=4),
    "HierViG-base": dict(depths=(1, 1, 3, 1)),
    "ViGAdapter-base": dict(depth=4),
}


def build(name: str) -> nn.Module:
    """A backbone in evaluation mode, as training begins."""
    pytest.importorskip("mmcv.ops" if "Adapter" in name else "mmcv")
    family, _, arch = name.partition("-")
    options = SHALLOW.get(name, {}) | ({} if family == "HierViG" else dict(img_size=SIZE[0]))
    model = getattr(vig_mm, family)(arch, drop_path_rate=0.0, **options)
    model.init_weights()
    return model.eval()


@torch.no_grad()
def draw(model: nn.Module, unit_gain: bool) -> nn.Module:
    """Layer scales become x / 2, x standard normal; for unit gain also norm weights 1 + x / 10,
    biases and position embeddings x / 2, all other weights x / sqrt(fan-in)."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        x = torch.randn(parameter.shape, generator=generator)
        if name.endswith("gamma"):
            parameter.copy_(x / 2)
        elif unit_gain and parameter.dim() == 1:
            parameter.copy_(1 + x / 10 if name.endswith("weight") else x / 2)
        elif unit_gain:
            fan_in = 4 if "_embed" in name else math.prod(parameter.shape[1:])
            parameter.copy_(x / math.sqrt(fan_in))
    return model


@torch.no_grad()
def maps(model: nn.Module, device: str, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Output maps in float64 on the CPU; ``dtype``: of autocast."""
    x = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
        outs = model.to(device)(x.to(next(model.parameters()).dtype))
    return [y.cpu().double() for y in outs]


@pytest.mark.parametrize("name", [*TINY, *SHALLOW])
def test_outputs(name: str, device: str) -> None:
    """Every map, with the weights that training begins with, under autocast; and, coarser, with
    weights and activations in half precision."""
    model = draw(build(name), unit_gain=False)
    expected = maps(model, device)
    assert len(expected) == (1 if name.startswith("ViG-") else 4)
    for dtype, bound in BOUNDS.items():
        found = maps(model, device, dtype)
        assert 0 < max(map(rel, found, expected)) < bound
    for dtype in BOUNDS if name in TINY else ():
        cast = maps(copy.deepcopy(model).to(dtype), device)
        assert max(map(rel, cast, expected)) < 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("name", TINY)
def test_outputs_of_an_unfavourable_network(name: str, device: str) -> None:
    """Random layers of unit gain multiply any error, that of rounded weights too.

    Rounding these alone, with everything else in float32, leaves more than 1e-2 of some maps. What
    autocast adds is no more than as much again.
    """
    model = draw(build(name), unit_gain=True)
    expected = maps(model, device)
    for dtype in BOUNDS:
        rounded = copy.deepcopy(model)
        for parameter in rounded.parameters():
            if parameter.dim() > 1:
                parameter.data = parameter.data.to(dtype).float()
        inevitable = map(rel, maps(rounded, device), expected)
        found = map(rel, maps(model, device, dtype), expected)
        assert all(y < 2 * z for y, z in zip(found, inevitable, strict=True))
