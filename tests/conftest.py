"""Tests marked `gpu` run where there is a CUDA device and are skipped elsewhere."""

import os

import pytest
import torch

from vig_mm.preflight.environment import tell_mmengine_of_forks

if not torch.cuda.is_available():
    # Triton decides when it is imported, and mmseg imports it
    os.environ["TRITON_INTERPRET"] = "1"

tell_mmengine_of_forks()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
