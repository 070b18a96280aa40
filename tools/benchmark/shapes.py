"""The operator's shapes in all six models, from their heads, head widths and strides."""

import math
from collections.abc import Iterable
from typing import NamedTuple


class Shape(NamedTuple):
    """B images, N tokens, H heads, K and V head widths."""

    B: int
    N: int
    H: int
    K: int
    V: int

    def __str__(self) -> str:
        return f"B{self.B} N{self.N} H{self.H} K{self.K} V{self.V}"


class Model(NamedTuple):
    heads: tuple[int, ...]  # stage by stage
    strides: tuple[int, ...]
    widths: tuple[int, int]  # K, V


_HIER_STRIDES = (4, 8, 16, 32)
MODELS = {
    "ViG-T": Model((3,), (16,), (32, 64)),
    "ViG-S": Model((6,), (16,), (32, 64)),
    "ViG-B": Model((12,), (16,), (32, 64)),
    "ViG-H-T": Model((3, 6, 12, 24), _HIER_STRIDES, (16, 32)),
    "ViG-H-S": Model((3, 6, 12, 24), _HIER_STRIDES, (16, 32)),
    "ViG-H-B": Model((4, 8, 16, 32), _HIER_STRIDES, (16, 32)),
}
Use = tuple[tuple[int, int], int, Iterable[str]]  # image (height, width), batch, models
COCO = (800, 1333)
# What is worth most first: whatever a time limit cuts off then is what matters least.
USES: tuple[Use, ...] = (
    ((224, 224), 128, ("ViG-H-T", "ViG-T")),
    (COCO, 1, ("ViG-H-T",)),
    ((1024, 1024), 1, ("ViG-T",)),
    ((2048, 2048), 1, ("ViG-T",)),
    ((1024, 1024), 32, MODELS),
    ((224, 224), 128, MODELS),
    *((image, 1, MODELS) for image in (COCO, *((x, x) for x in (224, 1024, 2048, 512)))),
)


def model_shapes(model: str, image: tuple[int, int], batch: int) -> list[Shape]:
    """One shape per stage; sizes that a stride does not divide are rounded up."""
    heads, strides, widths = MODELS[model]
    tokens = [math.prod(math.ceil(side / stride) for side in image) for stride in strides]
    return [Shape(batch, n, h, *widths) for n, h in zip(tokens, heads, strict=True)]


def all_shapes(uses: Iterable[Use] = USES) -> dict[Shape, list[str]]:
    """Every shape once, in order, with where it occurs."""
    places: dict[Shape, dict[str, None]] = {}
    for image, batch, models in uses:
        for model in models:
            for stage, shape in enumerate(model_shapes(model, image, batch), 1):
                where = f"{model} {image[0]}x{image[1]}"
                where += f" stage {stage}" if len(MODELS[model].heads) > 1 else ""
                places.setdefault(shape, {})[where] = None
    return {shape: list(found) for shape, found in places.items()}
