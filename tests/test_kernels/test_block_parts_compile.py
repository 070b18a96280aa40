"""Compiles every launch of the block's parts for real GPUs, which needs no GPU; none may spill.

Launches are taken from the launch code, run on `meta` tensors, as in test_triton_compile.py.
"""

import json
import os
import subprocess
import sys
from inspect import unwrap

import pytest
import torch
from test_triton_compile import CHOSEN, SHARED_LIMITS, Recorder, compile_and_measure

pytest.importorskip("triton")

TARGETS = (80, 90)
MORE_TARGETS = {"hier_stage1_autocast": (89, 100), "plain_tiny_autocast": (89, 100)}
# name: batch, grid, channels, hidden width, dtype of the residual stream, of the projections, act
CASES = {
    "hier_stage1_autocast": (2, (200, 334), 96, 256, "float32", "bfloat16", False),
    "hier_base_stage1_autocast": (2, (200, 334), 128, 352, "float32", "bfloat16", False),
    "hier_base_stage1_fp32": (2, (200, 334), 128, 352, "float32", "float32", False),
    "hier_stage1_fp32": (2, (200, 334), 96, 256, "float32", "float32", False),
    "hier_stage2_fp32": (2, (100, 167), 192, 512, "float32", "float32", False),
    "hier_base_stage2_autocast": (2, (100, 167), 256, 704, "float32", "bfloat16", False),
    "hier_base_stage2_fp32": (2, (100, 167), 256, 704, "float32", "float32", False),
    "hier_stage4_autocast": (2, (25, 42), 768, 2048, "float32", "bfloat16", False),
    "hier_base_stage4_fp32": (1, (7, 7), 1024, 2752, "float32", "float32", False),
    "plain_tiny_autocast": (128, (14, 14), 192, 512, "float32", "bfloat16", True),
    "plain_base_fp16": (8, (14, 14), 768, 2048, "float16", "float16", True),
}
KERNELS = {
    "swiglu": ("swiglu_kernel", "swiglu_gradient_kernel"),
    "norm": ("norm_kernel", "norm_gradient_kernel"),
    "norm_conv": ("statistics_kernel", "conv_kernel", "conv_gradient_kernel"),
    "locality_gate": ("blend_gradient_kernel",),
    "gate_projection": ("gate_projection_kernel",),
}
NARROW = {"feed_forward": ("feed_forward_kernel", "feed_forward_gradient_kernel")}
LIMITS = {"bfloat16": (256, 128), "float16": (256, 128), "float32": (192, 128)}  # widest C of each


def launches(case: str) -> list:
    """What both passes of a block's parts launch."""
    from vig_mm.kernels.feed_forward import triton as feed_forward
    from vig_mm.kernels.feed_forward import triton_norm, triton_swiglu
    from vig_mm.kernels.locality_gate import triton as locality_gate
    from vig_mm.kernels.locality_gate import triton_projection
    from vig_mm.kernels.norm_conv import triton as norm_conv

    batch, hw, channels, hidden, stream, projections, act = CASES[case]
    stream, projections = (getattr(torch, name) for name in (stream, projections))
    found: list = []
    modules = {"swiglu": triton_swiglu, "norm": triton_norm, "norm_conv": norm_conv}
    modules |= {"locality_gate": locality_gate, "gate_projection": triton_projection}
    modules |= {"feed_forward": feed_forward}
    # what the registered operators do, which on meta tensors would do nothing
    swiglu, swiglu_backward = map(unwrap, (triton_swiglu.swiglu, triton_swiglu.swiglu_backward))
    norm, norm_backward = map(unwrap, (triton_norm.norm, triton_norm.norm_backward))
    statistics, conv, conv_backward = map(
        unwrap, (norm_conv.statistics, norm_conv.conv, norm_conv.conv_backward)
    )

    def empty(*shape, dtype=stream):
        return torch.empty(shape, dtype=dtype, device="meta")

    with pytest.MonkeyPatch.context() as patch:
        for name, kernels in (KERNELS | NARROW).items():
            for kernel in kernels:
                patch.setattr(
                    modules[name], kernel, Recorder(getattr(modules[name], kernel), found)
                )
        tokens = (batch, hw[0] * hw[1])
        x, grad = empty(*tokens, channels), empty(*tokens, channels, dtype=projections)
        inside = empty(*tokens, 2 * hidden, dtype=projections)
        weight, bias, taps = empty(channels), empty(channels), empty(channels, 1, 3, 3)
        out = swiglu(inside)
        swiglu_backward(out, inside, empty(batch))
        for b in (bias, None):
            norm(x, weight, b, 1e-6, projections)
            norm_backward(grad, x, weight, b, x, 1e-6)
            stats = statistics(x, b is not None, 1e-6)
            norms = (x, stats, weight, b, taps)
            conv(*norms, *hw, act, projections)
            conv_backward(grad, *norms, x, *hw, act)
        width = 64 if case.startswith("plain") else 32
        heads = (*tokens, channels // width, width)
        o = empty(*heads, dtype=torch.float32 if projections == torch.float16 else projections)
        packed = empty(*tokens, 3 * channels + 16, dtype=projections)
        gate = packed[..., 2 * channels : 3 * channels].view(heads)
        local, last = empty(*heads, dtype=projections), empty(channels, channels, dtype=projections)
        gated = (o, local, gate, empty(width), empty(width))
        for scale in (empty(batch), None):
            unwrap(triton_projection.gate_projection)(*gated, last, x, scale, 1e-6, act)
            unwrap(locality_gate.gate_backward_into)(local, *gated, scale, gate, 1e-6, act)
            layers = (
                empty(2 * hidden, channels, dtype=projections),
                empty(channels, hidden, dtype=projections),
            )
            for b in (bias, None):
                rows = x.flatten(0, 1)
                args = (rows, weight, b, *layers, scale, 1e-6)
                if channels <= feed_forward.MAX_CHANNELS[projections.itemsize]:
                    unwrap(feed_forward.fused)(*args)
                if channels <= feed_forward.MAX_GRADIENT_CHANNELS:
                    unwrap(feed_forward.fused_backward)(rows, *args)
    return found


@pytest.mark.parametrize("case", CASES)
def test_launches_compile_without_spills(case, record_property):
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    run = subprocess.run(
        [sys.executable, __file__, case], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-4000:]
    results = [json.loads(line) for line in run.stdout.splitlines()]
    found = {result["kernel"].removesuffix("_grad") for result in results}
    channels, projections = CASES[case][2], CASES[case][5]
    limits = zip(*NARROW.values(), LIMITS[projections], strict=True)
    narrow = {kernel for kernel, limit in limits if channels <= limit}
    assert found == {name for names in KERNELS.values() for name in names} | narrow
    for result in results:
        print(case, result)
        record_property(f"{result['kernel']}_sm{result['target']}", json.dumps(result))
        assert result["shared"] <= SHARED_LIMITS[result["target"]], result
        assert not result["drops_nan"] and not result["unrounded"], result
        assert result["spills"] <= (0 if CHOSEN else 8), result


if __name__ == "__main__":
    seen: list = []
    for launch in launches(sys.argv[1]):
        if (launch.kernel, launch.options) not in seen:
            seen.append((launch.kernel, launch.options))
            for target in (*TARGETS, *MORE_TARGETS.get(sys.argv[1], ())):
                print(json.dumps({"target": target, **compile_and_measure(launch, target)}))
