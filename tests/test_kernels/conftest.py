"""Fixtures of the tests of the Triton kernels."""

import functools

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
    """Kernels that compute in float64, for gradcheck. Triton's interpreter alone can do that."""
    if torch.cuda.is_available():
        pytest.skip("no float64 products on a GPU")
    import triton.language as tl

    from vig_mm.kernels.gla.triton import backward, exact, forward, launch, states, tile
    from vig_mm.kernels.locality_gate import triton as locality_gate

    for module in (backward, exact, forward, locality_gate, states, tile):
        monkeypatch.setattr(module, "ACC", tl.float64)
    for module in (backward, exact, forward, states):
        more_terms = functools.partial(module.gate_bits, TERMS=14)
        monkeypatch.setattr(module, "gate_bits", more_terms)
    for module in (launch, locality_gate):
        monkeypatch.setattr(module, "SCRATCH", torch.float64)
    monkeypatch.setattr(launch, "dot_dtype", lambda dtype: tl.float64)
