"""What the tests of the Triton kernels share: they run on a GPU, or interpreted on a CPU.

Importing this skips a test module where neither is possible. Import it before `vig_mm.kernels`.
"""

import math
import os
import sys
from collections.abc import Callable

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


def rel(x: Tensor, reference: Tensor) -> float:
    """Relative error of x."""
    return ((x.double() - reference.double()).norm() / reference.norm().clamp_min(1e-30)).item()


def surrounded(x: Tensor) -> Tensor:
    """x as a view with NaN on all sides."""
    room = torch.full([size + 40 for size in x.shape], math.nan, dtype=x.dtype, device=x.device)
    return room[tuple(slice(20, 20 + size) for size in x.shape)].copy_(x)


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
