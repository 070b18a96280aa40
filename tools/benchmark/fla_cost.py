"""Count what two passes of flash-linear-attention's chunk_gla issue, as `kernel_cost` counts ours.

Needs fla-core and einops, installed or in a folder on PYTHONPATH, and no GPU: the launches of one
direction are recorded on the CPU, and of each kernel the configuration that issues least counts.
"""

import math
import os
from typing import Any

os.environ.setdefault("TRITON_F32_DEFAULT", "tf32")
import fla.ops.gla.chunk as gla
import torch
from kernel_launches import Launch, compile_launch
from sass import read
from triton.runtime.autotuner import Autotuner, Heuristics
from triton.runtime.jit import JITFunction

BATCH, TOKENS, HEADS, CHUNK = 2, 256, 3, 64
# Trips of a kernel's loop that do not follow from its grid, by a part of its name: 16 rows of a
# block inside a chunk; one for each chunk where a program walks the sequence.
TRIPS = {
    "intra_sub_intra": 16,
    "kernel_intra": 16,
    "kernel_h": TOKENS // CHUNK,
    "dh": TOKENS // CHUNK,
}


def _record(width: int, v_width: int) -> tuple[list[tuple], int]:
    """Autotuned launches of forward and backward, and how many are the forward's."""
    calls: list[tuple] = []
    patched = {
        Autotuner: lambda self, *args, **options: calls.append((self, args, options)),
        JITFunction: lambda self, *args, **options: None,
        Heuristics: lambda self, *args, **options: self.fn.run(
            *args,
            **options,
            **{
                name: rule({**dict(zip(self.arg_names, args, strict=False)), **options})
                for name, rule in self.values.items()
            },
        ),
    }
    saved = {cls: cls.run for cls in patched}
    q, k, g = (torch.randn(BATCH, TOKENS, HEADS, width).bfloat16() for _ in range(3))
    v = torch.randn(BATCH, TOKENS, HEADS, v_width).bfloat16()
    try:
        for cls, run in patched.items():
            cls.run = run
        gla.chunk_gla_fwd(q, k, v, g, None, 1.0, None, False)
        forward = len(calls)
        sums = torch.randn(BATCH, TOKENS, HEADS, width)
        a = torch.randn(BATCH, TOKENS, HEADS, CHUNK)
        gla.chunk_gla_bwd(q, k, v, g, sums, 1.0, None, None, a, v, None)
    finally:
        for cls, run in saved.items():
            cls.run = run
    return calls, forward


def _cheapest(tuner: Any, args: tuple, options: dict, target: int) -> dict[str, Any]:
    found = []
    for config in tuner.configs:
        values = {
            **dict(zip(tuner.arg_names, args, strict=False)),
            **options,
            **config.kwargs,
        }
        kernel = tuner.fn
        while not isinstance(kernel, JITFunction):
            if isinstance(kernel, Heuristics):
                values |= {name: rule(values) for name, rule in kernel.values.items()}
            kernel = kernel.fn
        grid = options["grid"](values) if callable(options["grid"]) else options["grid"]
        named = {name: values[name] for name in kernel.arg_names}
        settings = dict(num_warps=config.num_warps, num_stages=config.num_stages)
        launch = Launch(kernel, (), {**named, **settings}, tuple(grid))
        try:
            code = read(compile_launch(launch, target))
        except Exception:  # noqa: BLE001, S112 - a configuration that this target cannot take
            continue
        name = kernel.__name__
        trips = next((n for part, n in TRIPS.items() if part in name), 1)
        issued = code.fixed + trips * (code.body + sum(code.others))
        issued *= config.num_warps * math.prod(grid) / (BATCH * TOKENS * HEADS)
        found.append({"kernel": name, "instructions": issued, "warps": config.num_warps})
    return min(found, key=lambda x: x["instructions"])


def fla_costs(width: int, v_width: int, target: int) -> dict[str, Any]:
    """Of both directions: warp instructions for a token and head, forward and backward."""
    calls, forward = _record(width, v_width)
    result: dict[str, Any] = {}
    for name, part in (("forward", calls[:forward]), ("backward", calls[forward:])):
        kernels = [_cheapest(*call, target) for call in part]
        total = 2 * sum(x["instructions"] for x in kernels)
        result[name] = {
            "instructions": round(total, 1),
            "launches": 2 * len(kernels),
            "kernels": kernels,
        }
    return result
