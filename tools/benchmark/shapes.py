"""The operator's shapes in all six models, from their heads, head widths and strides."""

import math
import os
import signal
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
COCO = (800, 1333)
# Images (height, width), batch size, models: what is worth most first. Whatever is cut off by a
# time limit then is what matters least.
_ORDER = (
    ((224, 224), 128, ("ViG-H-T", "ViG-T")),
    (COCO, 1, ("ViG-H-T",)),
    ((1024, 1024), 1, ("ViG-T",)),
    ((2048, 2048), 1, ("ViG-T",)),
    ((1024, 1024), 32, tuple(MODELS)),
    ((224, 224), 128, tuple(MODELS)),
    (COCO, 1, tuple(MODELS)),
    ((224, 224), 1, tuple(MODELS)),
    ((1024, 1024), 1, tuple(MODELS)),
    ((2048, 2048), 1, tuple(MODELS)),
    ((512, 512), 1, tuple(MODELS)),
)


def model_shapes(model: str, image: tuple[int, int], batch: int) -> list[Shape]:
    """One shape per stage; sizes that a stride does not divide are rounded up."""
    heads, strides, widths = MODELS[model]
    tokens = [math.prod(math.ceil(side / stride) for side in image) for stride in strides]
    return [Shape(batch, n, h, *widths) for n, h in zip(tokens, heads, strict=True)]


def all_shapes() -> dict[Shape, list[str]]:
    """Every shape once, what is worth most first, with where it occurs."""
    shapes: dict[Shape, list[str]] = {}
    for image, batch, models in _ORDER:
        for model in models:
            for stage, shape in enumerate(model_shapes(model, image, batch), 1):
                where = f"{model} {image[1]}x{image[0]}"
                if len(MODELS[model].heads) > 1:
                    where += f" stage {stage}"
                places = shapes.setdefault(shape, [])
                if where not in places:
                    places.append(where)
    return shapes


def pytest_configure() -> None:
    """As a plugin, `pytest -p shapes`: a shell's background processes ignore interrupts, after
    which pytest says what failed so far."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config, items: list) -> None:
    """Of the tests every n-th, by TEST_SHARD=0/8, so that n processes share them."""
    index, count = map(int, os.environ.get("TEST_SHARD", "0/1").split("/"))
    others = items[:]
    del others[index::count]
    config.hook.pytest_deselected(items=others)
    items[:] = items[index::count]
