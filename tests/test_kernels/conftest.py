"""Fixtures of the tests of the Triton kernels."""

import functools
import sys

import pytest
import torch


@pytest.fixture
def nan_memory():
    """Fresh memory is NaN."""
    torch.use_deterministic_algorithms(True)  # fills what torch.empty returns with NaN
    assert torch.empty(1).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def double_kernels(monkeypatch):
    """Kernels that compute in float64, to tell rounding from a small term that is missing.

    Triton's interpreter alone can do that."""
    if torch.cuda.is_available():
        pytest.skip("no float64 products on a GPU")
    import triton.language as tl

    from vig_mm.kernels.feed_forward import triton  # noqa: F401
    from vig_mm.kernels.gla.triton import tile

    doubles = dict(ACC=tl.float64, SCRATCH=torch.float64, dot_dtype=lambda dtype: tl.float64)
    doubles["gate_bits"] = functools.partial(tile.gate_bits, TERMS=14)
    for path, module in list(sys.modules.items()):
        for name in doubles.keys() & vars(module) if path.startswith("vig_mm.kernels.") else ():
            monkeypatch.setattr(module, name, doubles[name])
