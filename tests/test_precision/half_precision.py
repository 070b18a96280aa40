"""Backbones with drawn weights, and how far half precision moves their outputs.

Two sets of random weights: initial, as training begins, except that layer scales are drawn, or an
adapter's injectors, which begin at 0, would do nothing; and unit gain, where every layer keeps the
size of its input, and no block is small beside the residual stream. Such a network multiplies any
rounding. Its share of the blame is the error that is left when only the weights are rounded and
everything is computed in float32; no arithmetic in that precision can do better.
"""

import copy
import math

import torch
from torch import Tensor, nn

import vig_mm

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
BOUNDS = {"bf16": 1e-2, "fp16": 2e-3}
ARCHS = {"T": "tiny", "S": "small", "B": "base"}
FAMILIES = {"ViG": "ViG", "ViG-H": "HierViG", "ViG adapter": "ViGAdapter"}
NAMES = tuple(f"{family}-{arch}" for family in FAMILIES for arch in ARCHS)


def build(name: str, size: int, **options) -> nn.Module:
    """A backbone of `NAMES` for square images, in evaluation mode, as training begins."""
    family, _, arch = name.rpartition("-")
    sized = {} if family == "ViG-H" else {"img_size": size}
    model = getattr(vig_mm, FAMILIES[family])(ARCHS[arch], drop_path_rate=0.0, **sized, **options)
    model.init_weights()
    return model.eval()


@torch.no_grad()
def draw(model: nn.Module, kind: str, seed: int = 0) -> nn.Module:
    """Give a model "initial" or "unit gain" weights, in place.

    Layer scales become x / 2, x standard normal; for unit gain also norm weights 1 + x / 10, biases
    and position embeddings x / 2, all other weights x / sqrt(fan-in).
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        x = torch.randn(parameter.shape, generator=generator)
        if name.endswith("gamma"):
            parameter.copy_(x / 2)
        elif kind == "unit gain":
            if parameter.dim() == 1:
                parameter.copy_(1 + x / 10 if name.endswith("weight") else x / 2)
            else:
                fan_in = 4 if "_embed" in name else math.prod(parameter.shape[1:])
                parameter.copy_(x / math.sqrt(fan_in))
    return model


def image(size: tuple[int, int], batch: int = 1, seed: int = 0) -> Tensor:
    """``[B, 3, *size]``, standard normal as after normalisation."""
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def maps(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Output maps in float64 on the CPU."""
    return [y.cpu().double() for y in model(x)]


def errors(found: list[Tensor], expected: list[Tensor]) -> list[float]:
    """Relative error of each map."""
    pairs = zip(found, expected, strict=True)
    return [((x - y).norm() / y.norm()).item() for x, y in pairs]


def autocast_errors(
    model: nn.Module, x: Tensor, dtype: torch.dtype, device: str, expected: list[Tensor]
) -> list[float]:
    """Of each map under autocast on a device, where it leaves the model."""
    model.to(device)
    with torch.autocast(device, dtype=dtype):
        return errors(maps(model, x.to(device)), expected)


def rounding_errors(
    model: nn.Module, x: Tensor, dtype: torch.dtype, expected: list[Tensor]
) -> list[float]:
    """Of each map when weights with more than one dimension are rounded, and nothing else."""
    model = copy.deepcopy(model).cpu()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data = parameter.data.to(dtype).float()
    return errors(maps(model, x), expected)
