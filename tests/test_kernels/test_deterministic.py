"""Blocks of both models under `torch.use_deterministic_algorithms`: the same bits in every run.

Torch then fills empty tensors with NaN, and raises where an operator has no deterministic form.
"""

import pytest
import torch
from triton_testing import DEVICE

from vig_mm.nets.hier_vig import HierBlock
from vig_mm.nets.vig import PlainBlock

BLOCKS = {
    "HierViG": lambda backend: HierBlock(32, 1, 0.0, backend),
    "ViG": lambda backend: PlainBlock(64, 1, True, 0.0, backend),
}


@pytest.mark.parametrize("backend", ["chunked", "triton"])
@pytest.mark.parametrize("name", BLOCKS)
def test_same_bits_in_every_run(name, backend, monkeypatch, request):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or torch refuses products on a GPU
    torch.manual_seed(0)
    block = BLOCKS[name](backend).to(DEVICE)
    hw = (3, 4)
    channels = next(block.parameters()).shape[0]
    x = torch.randn(2, hw[0] * hw[1], channels, device=DEVICE)

    def step():
        block.zero_grad()
        leaf = x.clone().requires_grad_()
        out = block(leaf, hw)
        out.square().sum().backward()
        return [out.detach(), leaf.grad, *(p.grad for p in block.parameters())]

    free = step()
    request.getfixturevalue("nan_memory")
    assert torch.are_deterministic_algorithms_enabled()
    for result, before in zip(step(), free, strict=True):
        assert result.isfinite().all() and torch.equal(result, before)
