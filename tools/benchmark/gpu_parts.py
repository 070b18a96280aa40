"""Fused steps of a block beside their parts, each a launch of its own, as variants on a GPU.

Feed-forward, gate with projection, norm with convolution; forward, activations in bfloat16 and the
residual stream in float32, as under autocast.
"""

from collections.abc import Callable
from unittest import mock

import torch
import torch.nn.functional as F
from common import Budget, report, save
from gpu import Gpu

SIZES = ((128, (56, 56), 96), (128, (28, 28), 192), (128, (14, 14), 192), (32, (28, 28), 256))
HEAD = 32  # channels of a head
MAX_ERROR = 2e-2
SECONDS = 0.1
COLUMNS = ["images, grid, channels", "step", "fused ms", "in parts ms", "fused / parts"]
Rivals = dict[str, Callable[[], torch.Tensor]]


def steps(
    batch: int, hw: tuple[int, int], channels: int, device: torch.device
) -> dict[str, Rivals]:
    """Name of a step -> what computes it."""
    from vig_mm.kernels.feed_forward import triton as feed_forward
    from vig_mm.kernels.feed_forward.triton_norm import norm
    from vig_mm.kernels.locality_gate.triton import gate_forward
    from vig_mm.kernels.locality_gate.triton_projection import gate_projection
    from vig_mm.kernels.norm_conv.triton import conv, statistics

    half, eps, tokens = torch.bfloat16, 1e-6, hw[0] * hw[1]
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int, dtype: torch.dtype = half, scale: float = 1.0) -> torch.Tensor:
        return (scale * torch.randn(shape, generator=generator)).to(device, dtype)

    x = randn(batch, tokens, channels, dtype=torch.float32)
    rows, weight, bias = x.flatten(0, 1), *randn(2, channels, dtype=torch.float32)
    hidden = -(-(8 * channels // 3) // 32) * 32
    layers = (randn(2 * hidden, channels, scale=channels**-0.5),
              randn(channels, hidden, scale=hidden**-0.5))  # fmt: skip
    o, local, gate = randn(3, batch, tokens, channels // HEAD, HEAD)
    gated = (o, local, gate, *randn(2, HEAD, dtype=torch.float32))
    last = randn(channels, channels, scale=channels**-0.5)
    taps = randn(channels, 1, 3, 3, dtype=torch.float32, scale=1 / 3)

    def ffn() -> torch.Tensor:
        return feed_forward.triton_feed_forward(rows, weight, bias, *layers, None, eps)[0]

    def ffn_in_parts() -> torch.Tensor:
        with mock.patch.object(feed_forward, "MAX_CHANNELS", {}):
            return ffn()

    def conv_in_parts() -> torch.Tensor:
        y = norm(x, weight, bias, eps, half).unflatten(1, hw).permute(0, 3, 1, 2)
        y = F.conv2d(y, taps.to(half), padding=1, groups=channels)
        return y.permute(0, 2, 3, 1).flatten(1, 2)

    def norm_conv() -> torch.Tensor:
        stats = statistics(x, True, eps)
        return conv(x, stats, weight, bias, taps, *hw, False, half)

    return {
        "feed-forward": {"fused": ffn, "parts": ffn_in_parts},
        "gate and projection": {
            "fused": lambda: gate_projection(*gated, last, x, None, eps, False),
            "parts": lambda: x + gate_forward(*gated, eps, False).flatten(2) @ last.mT,
        },
        "norm and convolution": {"fused": norm_conv, "parts": conv_in_parts},
    }


def measure(size: tuple, gpu: Gpu) -> list[dict]:
    """A row a step: error between both, and the time of each."""
    rows = []
    for name, rivals in steps(*size, gpu.device).items():
        row: dict = {"size": size, "step": name}

        def check(row: dict = row, rivals: Rivals = rivals) -> None:
            fused, parts = (run().float() for run in rivals.values())
            row["error"] = ((fused - parts).norm() / parts.norm()).item()

        row["problem"] = gpu.attempt(check)
        if row["problem"] is None and not row["error"] <= MAX_ERROR:
            row["problem"] = f"error {row['error']:.1e}"
        if row["problem"] is None:
            row["times"] = gpu.time(dict(rivals), SECONDS)
        rows.append(row)
    return rows


def cells(row: dict) -> list[str]:
    batch, (height, width), channels = row["size"]
    line = [f"{batch}, {height}x{width}, {channels}", row["step"]]
    times = [entry.get("median") for entry in row.get("times", {}).values()]
    if len(times) != 2 or None in times:
        return [*line, "", "", row["problem"] or "not measured"]
    return [*line, *(f"{1e3 * t:.3f}" for t in times), f"{times[0] / times[1]:.2f}"]


def benchmark(gpu: Gpu, sizes: tuple, out: str, budget: Budget) -> bool:
    """Measure until the time is up, and write after each size; whether all is right."""
    results: list[dict] = []
    for i, size in enumerate(sizes):
        if budget.over():
            print("time is up", flush=True)
            break
        results += measure(size, gpu)
        lines = [cells(row) for row in results]
        put = report if i + 1 == len(sizes) else save
        title = "Fused steps of a block beside their parts, forward, bf16"
        put(title, COLUMNS, lines, {"results": results}, out, device=gpu.device.type)
    return all(row["problem"] is None for row in results)
