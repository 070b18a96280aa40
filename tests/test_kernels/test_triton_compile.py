"""Compiles every launch of the Triton kernels for real GPUs, which needs no GPU.

A kernel that spills registers is slow, one that does not compile is worse. The launches are taken
from the launch code itself, run on `meta` tensors, and compiled in other processes, as this one
may have Triton's interpreter switched on. Registers, spills and shared memory of each are printed
(`pytest -s`) and kept as properties of the report (`--junit-xml`).
"""

import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

TARGETS = (80, 90)
SHARED_LIMITS = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}
# Later releases (3.9 was seen) spill one register for sm_100.
OLDER_TRITON = ("3.5.", "3.6.")
# name: batch, tokens, heads, K, V, dtype
CASES = {
    "hier_16_32_bf16": (1, 66800, 3, 16, 32, "bfloat16"),
    "hier_16_32_fp32": (1, 66800, 3, 16, 32, "float32"),
    "hier_one_segment_bf16": (128, 3136, 3, 16, 32, "bfloat16"),
    "hier_one_chunk_bf16": (128, 49, 24, 16, 32, "bfloat16"),
    "short_bf16": (2, 9, 3, 16, 32, "bfloat16"),
    "plain_32_64_bf16": (128, 196, 3, 32, 64, "bfloat16"),
    "plain_32_64_fp16": (128, 196, 3, 32, 64, "float16"),
    "wide_64_128_bf16": (2, 4200, 4, 64, 128, "bfloat16"),
    "widest_128_128_fp32": (2, 4200, 4, 128, 128, "float32"),
}
# for the widths of ViG and HierViG in the dtype they are trained in, and for what needs most memory
MORE_TARGETS = {
    "hier_16_32_bf16": (89, 100),
    "plain_32_64_bf16": (89, 100),
    "widest_128_128_fp32": (89,),
}


class Recorder:
    """Stands in for a kernel in the launch code and notes what it is launched with."""

    def __init__(self, kernel, launches: list) -> None:
        self.kernel = kernel
        self.launches = launches

    def __getitem__(self, grid):
        return lambda *args, **options: self.launches.append((self.kernel, args, options))


def launches(case: str) -> list:
    """What both passes of the two operators launch: kernel, arguments, options.

    As `meta` tensors hold no values, this also shows that no launch depends on one.
    """
    from vig_mm.kernels.triton import launch, locality_gate

    batch, tokens, heads, width, v_width, dtype = CASES[case]
    found: list = []
    kernels = {
        launch: ("state_kernel", "segment_kernel", "output_kernel", "gradient_kernel"),
        locality_gate: ("blend_kernel", "blend_gradient_kernel"),
    }
    with pytest.MonkeyPatch.context() as patch:
        for module, names in kernels.items():
            for name in names:
                patch.setattr(module, name, Recorder(getattr(module, name), found))
        qkv = torch.empty(
            batch, tokens, heads * (2 * width + v_width), dtype=getattr(torch, dtype), device="meta"
        )
        q, k, v = qkv.split([heads * width, heads * width, heads * v_width], dim=-1)
        q, k, v = (x.unflatten(-1, (heads, -1)) for x in (q, k, v))
        gates = torch.empty_like(qkv[..., : 2 * heads * width]).chunk(2, dim=-1)
        gates = [x.unflatten(-1, (heads, -1)) for x in gates]
        o = launch.triton_forward(q, k, v, *gates)
        launch.triton_backward(o, q, k, v, *gates)
        weight = torch.empty(v_width, device="meta")  # float32, also under autocast
        inputs = (o, torch.empty_like(o), torch.empty_like(o), weight, weight, 1e-6, True)
        locality_gate.gate_forward(*inputs)
        locality_gate.gate_backward(o, *inputs)
    return found


def compile_launch(kernel, args: tuple, options: dict, target: int) -> dict:
    """Registers, bytes spilled and shared memory of one launch on one architecture."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability
    from triton.compiler import ASTSource

    types = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
    signature, constants, attributes = {}, {}, {}
    options = dict(options)
    settings = ("num_warps", "num_stages", "maxnreg")
    launch = {name: options.pop(name) for name in settings if name in options}
    names = kernel.arg_names
    for i, (name, x) in enumerate(zip(names, args)):  # noqa: B905 - constants are by keyword
        specialized = not kernel.params[i].do_not_specialize
        if isinstance(x, torch.Tensor):
            signature[name] = types[x.dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]
        elif isinstance(x, float):
            signature[name] = "fp32"
        elif x is None or (x == 1 and specialized):
            signature[name] = "constexpr"
            constants[(i,)] = x
        else:
            signature[name] = "i32" if x < 2**31 else "i64"
            if x % 16 == 0 and specialized:
                attributes[(i,)] = [["tt.divisibility", 16]]
    for name, x in options.items():
        signature[name] = "constexpr"
        constants[(names.index(name),)] = x
    signature = {name: signature[name] for name in names}
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", target, 32), options=launch)
    # before Triton 3.6 there is one ptxas for all targets
    ptxas = get_ptxas(target) if inspect.signature(get_ptxas).parameters else get_ptxas()
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder, "kernel.ptx")
        ptx.write_text(compiled.asm["ptx"])
        log = subprocess.run(
            [
                ptxas.path,
                "-v",
                f"--gpu-name={sm_arch_from_capability(target)}",
                str(ptx),
                "-o",
                str(Path(folder, "kernel.cubin")),
            ],
            check=True,
            capture_output=True,
            text=True,
        ).stderr
    return {
        "kernel": kernel.__name__ + ("_grad" if options.get("GRAD") else ""),
        "warps": launch["num_warps"],
        "registers": int(re.search(r"Used (\d+) registers", log)[1]),
        "spills": int(re.search(r"(\d+) bytes spill stores", log)[1]),
        "shared": compiled.metadata.shared,
        "wgmma": "wgmma.mma_async" in compiled.asm["ptx"],
    }


def main(case: str) -> Iterator[dict]:
    seen = []
    for kernel, args, options in launches(case):
        if (kernel, options) in seen:  # the backward pass repeats the forward's states
            continue
        seen.append((kernel, options))
        for target in (*TARGETS, *MORE_TARGETS.get(case, ())):
            yield {"target": target, **compile_launch(kernel, args, options, target)}


@pytest.mark.parametrize("case", CASES)
def test_launches_compile_without_spills(case, record_property):
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    run = subprocess.run(
        [sys.executable, __file__, case], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-4000:]
    results = [json.loads(line) for line in run.stdout.splitlines()]
    kernels = {result["kernel"] for result in results}
    assert {"output_kernel", "gradient_kernel", "blend_kernel", "blend_gradient_kernel"} <= kernels
    for result in results:
        print(case, result)
        record_property(f"{result['kernel']}_sm{result['target']}", json.dumps(result))
        assert result["shared"] <= SHARED_LIMITS[result["target"]], result
        if result["kernel"] != "gradient_kernel":
            # one register of 4 bytes, in blend_gradient_kernel
            newer = result["target"] == 100 and not version("triton").startswith(OLDER_TRITON)
            assert result["spills"] <= (4 if newer else 0), result


if __name__ == "__main__":
    for line in main(sys.argv[1]):
        print(json.dumps(line), flush=True)
