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
