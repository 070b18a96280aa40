"""A working directory with a few of the built-in digits in it."""

from pathlib import Path

import pytest

from vig_mm.datasets import make_digits


@pytest.fixture(scope="session")
def work(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    sizes = dict(coco_size=(96, 128), ade_size=(64, 64), imagenet_size=(48, 48))
    make_digits(folder / "data/digits", coco=(8, 1), ade=(8, 1), imagenet=(2, 1), **sizes)
    return folder
