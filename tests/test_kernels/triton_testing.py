"""What the tests of the Triton kernels share: they run on a GPU, or interpreted on a CPU.

Importing this skips a test module where neither is possible. Import it before `vig_mm.kernels`.
"""

import math
import os
import sys
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    # Triton decides at import what its functions are; mmseg and torch._dynamo import it.
    if "triton" in sys.modules and not sys.modules["triton"].knobs.runtime.interpret:
        pytest.skip("set TRITON_INTERPRET=1 before triton is imported", allow_module_level=True)
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALF = (torch.bfloat16, torch.float16)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=torch.float64).to(DEVICE, dtype)


def surrounded(x: Tensor | None) -> Tensor | None:
    """x as a view with NaN on all sides."""
    if x is None:
        return None
    room = torch.full([size + 40 for size in x.shape], math.nan, dtype=x.dtype, device=x.device)
    return room[tuple(slice(20, 20 + size) for size in x.shape)].copy_(x)


def check_surroundings(
    found: Callable[..., Sequence[Tensor]], tensors: Sequence[Tensor | None], poisoned=surrounded
) -> None:
    """Results are the same to the last bit, and finite, where NaN lies around the inputs."""
    results = (found(*tensors), found(*map(poisoned, tensors)))
    for x, y in zip(*results, strict=True):
        assert y.isfinite().all() and torch.equal(x, y)


def check_nan(
    found: Callable[..., Sequence[Tensor]],
    expected: Callable[..., Sequence[Tensor]],
    tensors: Sequence[Tensor | None],
    which: Sequence[int] | None = None,
) -> None:
    """With one NaN in a tensor, each in turn, results are NaN where those in float64 are.

    That a GPU's minimum and maximum keep it, too, test_compile shows."""
    for i in range(len(tensors)) if which is None else which:
        if tensors[i] is None:
            continue
        inputs = [None if x is None else x.detach().clone() for x in tensors]
        inputs[i].view(-1)[inputs[i].numel() // 2] = math.nan
        references = expected(*(None if x is None else x.double() for x in inputs))
        for n, (x, y) in enumerate(zip(found(*inputs), references, strict=True)):
            assert x[y.isnan()].isnan().all(), (i, n)
        assert any(y.isnan().any() for y in references), i


def replayed(step: Callable[[], list[Tensor]]) -> list[Tensor]:
    """What a function returns whose launches are captured in a CUDA graph and replayed."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()  # compiles the kernels
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    graph.replay()
    torch.cuda.synchronize()
    return results
