"""Compiles every launch of the Triton kernels for real GPUs, which needs no GPU.

A kernel that spills registers is slow, one that does not compile is worse. The launches are those
of blocks of the models and of the widest heads, recorded on `meta` tensors, and compiled in other
processes, as this one may have Triton's interpreter switched on. Registers, spills and shared
memory of each are printed (`pytest -s`). What the code computes is for tests/emulator, how many
instructions it has for test_kernel_cost.
"""

import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest
import torch

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools/benchmark"))
from kernel_launches import (  # noqa: E402
    Launch,
    compile_launch,
    record,
    record_block,
    recorded,
    specialize,
)

# bytes a program may have, by compute capability; all that Triton and the kernels support
SHARED_LIMITS = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
# of a process each: the first two compile all cases
PROCESSES = {"sm_80": (80,), "sm_90": (90,), "others": (86, 89, 100, 120)}
# The settings were chosen with these. Triton 3.9 spills at most 404 bytes (`output_kernel`, sm_80).
CHOSEN_WITH = ("3.5.", "3.6.")
CHOSEN = version("triton").startswith(CHOSEN_WITH)
MAX_SPILLS = {"exact_gradient_kernel": 128, "gradient_kernel": 2**20}
KNOWN_SPILLS = {
    # one register, since operands are rounded to tf32; no model has such heads
    ("heads of 128, 128 fp32", "output_kernel", 80): 4,
    # without a norm's bias
    ("plain_192_autocast", "feed_forward_kernel", 90): 8,
}
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
BOTH = (80, 90)


class Case(NamedTuple):
    launches: Callable[[], list[Launch]]
    targets: tuple[int, ...] = BOTH
    may_spill: bool = False


def hier(channels: int, *sizes, targets=BOTH) -> Case:
    """Both passes of a block of ViG-H; see `block`."""
    from vig_mm.nets.hier_vig import HierBlock

    return Case(partial(block, HierBlock, channels, channels // 32, 0.2, *sizes), targets)


def plain(channels: int, *sizes, targets=BOTH) -> Case:
    from vig_mm.nets.vig import PlainBlock

    return Case(partial(block, PlainBlock, channels, channels // 64, True, 0.2, *sizes), targets)


def block(*args) -> list[Launch]:
    """``args``: the block's class and arguments, batch, grid, its dtype, that of autocast."""
    *make, batch, hw, dtype, autocast = args
    with torch.device("meta"):
        made = make[0](*make[1:], "triton").to(dtype)
    found: list[Launch] = []
    with recorded(found):
        record_block(made, batch, hw, autocast)
    return found


def heads(*shape_and_dtype, **options) -> Case:
    """Both passes of GLA and the locality gate: batch, tokens, heads, K, V, dtype."""
    return Case(lambda: [*chain.from_iterable(record(*shape_and_dtype).values())], **options)


def cases() -> dict[str, Case]:
    large = (2, (200, 334))  # batch and grid of the first stage of a detector
    small = (128, (14, 14))
    # one chunk takes most shared memory, with operands of four bytes and as wide as one of 64 goes
    largest = partial(heads, 2, 64, 2, may_spill=True)
    return {
        "hier_96_autocast": hier(96, *large, FP32, BF16, targets=(80, 89, 90)),
        "hier_96_fp32": hier(96, *large, FP32, None),
        "hier_128_autocast": hier(128, *large, FP32, BF16),
        "hier_128_fp32": hier(128, *large, FP32, None),
        "hier_192_fp32": hier(192, 2, (100, 167), FP32, None),
        "hier_256_autocast": hier(256, 2, (100, 167), FP32, BF16),
        "hier_768_autocast": hier(768, 128, (7, 7), FP32, BF16),
        "hier_1024_fp32": hier(1024, 2, (25, 42), FP32, None),
        "plain_192_autocast": plain(192, *small, FP32, BF16, targets=(80, 86, 90, 100, 120)),
        "plain_768_fp16": plain(768, *small, FP16, None),
        "heads of 64, 128 bf16": heads(2, 4200, 4, 64, 128, BF16),
        "heads of 128, 128 fp32": heads(2, 4200, 4, 128, 128, FP32),
        "one chunk of 16, 128 fp16": largest(16, 128, FP16, targets=(86, 120)),
        "one chunk of 64, 64 fp32": largest(64, 64, FP32, targets=(86, 120)),
        "one chunk of 16, 128 fp32": largest(16, 128, FP32, targets=(86,)),
        "one chunk of 16, 128 bf16": largest(16, 128, BF16, targets=(86,)),
    }


def read_ptx(ptx: str) -> dict:
    """What of the arithmetic a GPU does and Triton's interpreter does otherwise.

    ``drops_nan``: minima and maxima of floating-point numbers that return the other operand of a
    NaN; ``unrounded``: products in tf32, which cuts off, in a kernel that rounds no operand.
    """
    extremes = re.findall(r"\b(?:min|max)\.[\w.]*(?:f16|f32|f64|bf16)\w*", ptx)
    tf32 = re.findall(r"mma\S*\.tf32\.tf32", ptx)
    return {
        "drops_nan": [x for x in extremes if ".NaN" not in x],
        "unrounded": len(tf32) if "cvt.rna.tf32.f32" not in ptx else 0,
    }


def compile_and_measure(launch: Launch, target: int) -> dict:
    """Registers, bytes spilled and shared memory of one launch on one architecture."""
    from triton.backends.nvidia.compiler import CUDABackend, get_ptxas, sm_arch_from_capability

    # ptxas runs once, below, where it says what it found
    with mock.patch.object(CUDABackend, "make_cubin", lambda *args: b""):
        compiled = compile_launch(launch, target)
    # before Triton 3.6 there is one ptxas for all targets
    ptxas = get_ptxas(target) if inspect.signature(get_ptxas).parameters else get_ptxas()
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(compiled.asm["ptx"])
        file.flush()
        command = [ptxas.path, "-v", f"--gpu-name={sm_arch_from_capability(target)}", file.name]
        done = subprocess.run([*command, "-o", os.devnull], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {
        "target": target,
        "kernel": launch.kernel.__name__,
        "registers": int(re.search(r"Used (\d+) registers", done.stderr)[1]),
        "spills": int(re.search(r"(\d+) bytes spill stores", done.stderr)[1]),
        "shared": compiled.metadata.shared,
        **read_ptx(compiled.asm["ptx"]),
    }


def main(targets: tuple[int, ...]) -> Iterator[dict]:
    seen = []
    for name, case in cases().items():
        wanted = set(targets) & set(case.targets)
        for launch in case.launches() if wanted else ():
            key = launch.kernel.__name__, specialize(launch), launch.options
            if key not in seen:  # blocks have much in common
                seen.append(key)
                for target in sorted(wanted):
                    result = compile_and_measure(launch, target)
                    yield {"case": name, "may_spill": case.may_spill, **result}


@pytest.mark.parametrize("process", PROCESSES)
def test_launches_compile_without_spills(process, tmp_path):
    # a cache of its own, as what it keeps has no machine code
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, __file__, process], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-4000:]
    results = [json.loads(line) for line in run.stdout.splitlines()]
    for result in results:
        print(result)
    assert not [result for result in results if not fits(result)]
    compiled = {(result["target"], result["kernel"]) for result in results}
    for target in PROCESSES[process] if process != "others" else ():
        assert {(target, name) for name in kernel_names()} <= compiled


def fits(result: dict) -> bool:
    """Whether a GPU has the memory, nothing spills that did not, and arithmetic is as it should."""
    kernel, target = result["kernel"], result["target"]
    limit = KNOWN_SPILLS.get((result["case"], kernel, target), MAX_SPILLS.get(kernel, 0))
    limit = limit if CHOSEN else max(limit, 404)
    # the largest are here for their memory: fp32 in one chunk spills, as was known
    spills = result["spills"] > limit and not result["may_spill"]
    wrong = result["drops_nan"] or result["unrounded"]
    return result["shared"] <= SHARED_LIMITS[target] * 1024 and not spills and not wrong


def kernel_names() -> set[str]:
    pattern = re.compile(r"^@triton\.jit.*\ndef (\w+_kernel)\(", re.MULTILINE)
    texts = [path.read_text() for path in (ROOT / "kernels").rglob("*.py")]
    names = {name for text in texts for name in pattern.findall(text)}
    assert len(names) > 10
    return names


if __name__ == "__main__":
    for line in main(PROCESSES[sys.argv[1]]):
        print(json.dumps(line), flush=True)
