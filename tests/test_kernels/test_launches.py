"""How many launches a block takes, Triton's and torch's own, counted on `meta` tensors.

A launch costs the host 5 to 30 us, which small batches wait for.
"""

import sys
from itertools import chain
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
sys.path.insert(0, str(Path(__file__).parents[2] / "tools/benchmark"))
from kernel_launches import Operators, record, record_block  # noqa: E402

import vig_mm.kernels  # noqa: E402
from vig_mm.kernels.feed_forward.triton import MAX_CHANNELS  # noqa: E402
from vig_mm.nets.hier_vig import HierBlock  # noqa: E402
from vig_mm.nets.vig import PlainBlock  # noqa: E402

BATCH = 128
# block, grid; whose sequences are one segment. More segments take 2 launches more forward, 4 more
# backward; one chunk alone takes fewer.
BLOCKS = {
    "hier, one kernel": (lambda rate: HierBlock(96, 3, rate, "triton"), (56, 56)),
    "hier": (lambda rate: HierBlock(384, 12, rate, "triton"), (14, 14)),
    "hier, one chunk": (lambda rate: HierBlock(768, 24, rate, "triton"), (7, 7)),
    "plain": (lambda rate: PlainBlock(384, 6, True, rate, "triton"), (14, 14)),
}
MAX_INFERENCE = 16
SAVED_BY_ONE_KERNEL = 4
MAX_MORE_IN_TRAINING = 2  # what stochastic depth draws
MAX_BACKWARD = 36
MAX_ARGUMENTS = 24


@pytest.mark.parametrize("rate", [0.0, 0.2], ids=["", "drop path"])
@pytest.mark.parametrize("how", ["fp32", "bf16", "bf16 autocast"])
@pytest.mark.parametrize("name", BLOCKS)
def test_launches_of_a_block(name, how, rate):
    make, hw = BLOCKS[name]
    with torch.device("meta"):
        block = make(rate)
    if how == "bf16":
        block = block.bfloat16()
    for _ in range(2):  # zeros for the bias are made once
        block.zero_grad()
        found = record_block(block, BATCH, hw, torch.bfloat16 if "autocast" in how else None)
    widest = MAX_CHANNELS[4 if how == "fp32" else 2]
    one_kernel = len(block._modules[block.names[0]].weight) <= widest
    assert ("feed_forward_kernel" in found["inference"]) == one_kernel
    limit = MAX_INFERENCE - SAVED_BY_ONE_KERNEL * one_kernel
    counts = {name: len(launches) for name, launches in found.items()}
    assert counts["inference"] <= limit, found["inference"]
    assert counts["forward"] <= counts["inference"] + MAX_MORE_IN_TRAINING * bool(rate)
    assert counts["backward"] <= MAX_BACKWARD, found["backward"]
    for name in ("output_kernel", "conv_kernel", "gate_projection_kernel"):
        assert name in found["inference"] and name in found["forward"]
    assert {"gradient_kernel", "conv_gradient_kernel", "mm"} <= set(found["backward"])


def test_what_is_counted():
    """Views and empty memory are no launches, each tensor of an uneven list is one."""
    found = []
    with Operators(found):
        x = torch.empty(4, 6, device="meta")
        x.view(6, 4).mT[1:].unflatten(0, (3, 1)).detach()
    assert found == []
    with Operators(found):
        (x.mT.contiguous() + 1).to(torch.bfloat16)
        torch._foreach_copy_([x, x], [x, x])
        torch._foreach_copy_([x, x], [x, torch.empty(6, 4, device="meta").mT])
    assert found == ["clone", "add", "_to_copy", *["_foreach_copy_"] * 3]


def test_kernels_take_few_arguments():
    """And read no constants of a module: Triton would compare them at every launch."""
    found = {}
    for path, module in list(sys.modules.items()):
        if path.startswith(vig_mm.kernels.__name__):
            kernels = {n: x for n, x in vars(module).items() if n.endswith("_kernel")}
            found |= {n: x for n, x in kernels.items() if hasattr(x, "arg_names")}  # not numba's
    assert len(found) > 15
    for name, kernel in found.items():
        assert len(kernel.arg_names) <= MAX_ARGUMENTS, name
        if hasattr(kernel, "cache_key"):  # finds them; the interpreter's functions have none
            assert kernel.cache_key
            constants = {constant for constant, _ in kernel.used_global_vals}
            assert constants <= {"ACC"}, name  # which a test exchanges


@pytest.mark.parametrize(
    "tokens, width, dtype", [(2**25 + 1, 16, torch.bfloat16), (2**24 + 1, 128, torch.float32)]
)
def test_grids_of_long_sequences(tokens, width, dtype):
    """CUDA takes 65 535 programs at most in y and z."""
    for launch in chain.from_iterable(record(1, tokens, 1, width, width, dtype).values()):
        name, x = launch.kernel.__name__, launch.named
        grid = (*launch.grid, 1, 1)[:3]
        assert grid[0] < 2**31 and max(grid[1:]) < 2**16, (name, grid)
        if name in ("segment_kernel", "scan_kernel"):
            continue  # by segments, of which there are few
        size = x["R"] * x["BLOCKS"] if name.startswith("blend") else x["BT"] * x.get("N", 1)
        needed = -(-tokens // size)
        assert needed > 2**16 or name == "exact_gradient_kernel", name
        assert needed <= grid[1] * grid[2] < needed + grid[2], (name, grid)
