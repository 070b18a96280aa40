"""Count what the Triton kernels issue and move, without a GPU: warp instructions, registers, bytes.

    python tools/benchmark/kernel_cost.py [--target 90] [--out docs/benchmark/kernel_cost.json]

The launches of both operators for the shapes of all six models are compiled, and their machine code
is read. With flash-linear-attention installed (or its folder on PYTHONPATH), two passes of its
chunk_gla stand beside them. The count sees neither memory nor latency nor the rates of the units:
it ranks variants, and a GPU decides.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

os.environ["TRITON_INTERPRET"] = "0"
import torch

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parent))
import common
from kernel_launches import Launch, compile_launch, record, specialize
from sass import Code, read
from shapes import COCO, MODELS, Shape, model_shapes

IMAGES = (((224, 224), 128), (COCO, 2), ((1024, 1024), 128))  # with their batch sizes
# tensors that a launch reads and writes, and which are not counted as moved once
TWICE = {"scan_kernel": ("states",)}
SELDOM = {"output_kernel": ("factors",), "exact_gradient_kernel": None}  # only the exception reads


class Cost(NamedTuple):
    """Of one launch, for one token of one head."""

    kernel: str
    instructions: float
    bytes: float
    code: Code
    warps: int


def compiled_code(launch: Launch, target: int, cache: dict[str, Code]) -> Code:
    key = repr(
        (launch.kernel.__name__, specialize(launch), sorted(launch.options.items(), key=str))
    )
    if key not in cache:
        cache[key] = read(compile_launch(launch, target))
    return cache[key]


def trips(launch: Launch) -> int:
    """Trips of the kernel's main loop, of all programs together."""
    x = launch.named
    programs = launch.grid[0]
    if launch.kernel.__name__.startswith("blend"):
        return programs * -(-x["N"] // x["R"])
    if launch.kernel.__name__ in ("segment_kernel", "scan_kernel"):
        return programs * 2 * launch.grid[2] * x["NT"]
    return programs * x["NT"]


def moved(launch: Launch) -> int:
    """Bytes of the tensors that a launch reads or writes, each once."""
    name = launch.kernel.__name__
    seldom = SELDOM.get(name, ())
    if seldom is None:
        return 0
    twice = TWICE.get(name, ())
    return sum(
        y.numel() * y.element_size() * (1 + (n in twice))
        for n, x in launch.named.items()
        for y in (x if isinstance(x, tuple) else (x,))
        if isinstance(y, torch.Tensor) and n not in seldom
    )


def cost(launch: Launch, token_heads: int, target: int, cache: dict[str, Code]) -> Cost:
    code = compiled_code(launch, target, cache)
    programs = 1
    for size in launch.grid:
        programs *= size
    warps = launch.options["num_warps"]
    issued = warps * (programs * code.fixed + trips(launch) * code.body)
    return Cost(
        launch.kernel.__name__, issued / token_heads, moved(launch) / token_heads, code, warps
    )


def costs(
    shape: Shape, dtype: torch.dtype, target: int, cache: dict[str, Code]
) -> dict[str, list[Cost]]:
    """Per pass, see `kernel_launches.record`, its launches."""
    token_heads = shape.B * shape.N * shape.H
    return {
        name: [cost(launch, token_heads, target, cache) for launch in found]
        for name, found in record(*shape, dtype).items()
    }


def total(found: list[Cost]) -> dict[str, float | int]:
    return {
        "launches": len(found),
        "instructions": round(sum(x.instructions for x in found), 1),
        "bytes": round(sum(x.bytes for x in found), 1),
        "registers": max(x.code.registers for x in found),
        "spilled": max(x.code.stack for x in found),
        "shared": max(x.code.shared for x in found),
    }


def all_shapes() -> dict[Shape, list[str]]:
    shapes: dict[Shape, list[str]] = {}
    for image, batch in IMAGES:
        for model in MODELS:
            for stage, shape in enumerate(model_shapes(model, image, batch), 1):
                place = f"{model} {image[0]}x{image[1]}"
                shapes.setdefault(shape, []).append(
                    f"{place} stage {stage}" if len(MODELS[model].heads) > 1 else place
                )
    return shapes


def as_json(found: dict[str, list[Cost]]) -> dict[str, Any]:
    return {
        name: {
            **total(launches),
            "kernels": [
                {
                    "kernel": x.kernel,
                    "instructions": round(x.instructions, 1),
                    "bytes": round(x.bytes, 1),
                    "warps": x.warps,
                    **x.code._asdict(),
                }
                for x in launches
            ],
        }
        for name, launches in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=int, default=90, help="compute capability, 90 for sm_90")
    parser.add_argument("--out", default="docs/benchmark/kernel_cost.json")
    args = parser.parse_args()
    cache: dict[str, Code] = {}
    results, rows = [], []
    for shape, places in all_shapes().items():
        found = as_json(costs(shape, torch.bfloat16, args.target, cache))
        results.append({"shape": shape._asdict(), "where": places, **found})
        rows.append([places[0], str(shape), *(_cell(found[name]) for name in found)])
        print(" | ".join(rows[-1]), flush=True)
    rivals = []
    try:
        from fla_cost import fla_costs
    except ImportError as error:
        print(f"flash-linear-attention is left out: {error}")
    else:
        for width, v_width in ((16, 32), (32, 64)):
            rivals.append({"K": width, "V": v_width, **fla_costs(width, v_width, args.target)})
            per_pass = [
                f"{rivals[-1][name]['instructions']:.0f}" for name in ("forward", "backward")
            ]
            rows.append([f"two passes of chunk_gla, {width}/{v_width}", "", *per_pass, "", ""])
    common.report(
        f"Warp instructions / bytes moved / bytes spilled, for a token and head, sm_{args.target}, "
        "bfloat16",
        ["where", "shape", "forward", "backward", "gate forward", "gate backward"],
        rows,
        {
            "target": args.target,
            "triton": common.version("triton"),
            "results": results,
            "fla": rivals,
        },
        args.out,
    )


def _cell(x: dict[str, float | int]) -> str:
    return f"{x['instructions']:.0f} / {x['bytes']:.0f} / {x['spilled']}"


if __name__ == "__main__":
    main()
