"""Count what the Triton kernels issue and move, without a GPU: warp instructions, registers, bytes.

    python tools/benchmark/kernel_cost.py [--target 90] [--out docs/kernel_cost.json]

The launches of both operators for the shapes of all six models are compiled, and their machine code
is read: instructions of a warp for one token of one head, where a loop over chunks counts once for
each chunk. What only chunks beyond the anchored range reach (`exact.py`) is told apart by the
source lines that ptxas notes, and left out. Bytes are those of all tensors that a launch reads or
writes, each once. The count sees neither memory nor latency nor the rates of the units: it ranks
variants, and a GPU decides.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

os.environ["TRITON_INTERPRET"] = "0"
import torch  # noqa: E402

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).resolve().parents[1] / "analysis_tools"))
from common import fill_page, machine, markdown, write_json  # noqa: E402, I001
from kernel_launches import Launch, compile_launch, record, specialize  # noqa: E402
from shapes import COCO, MODELS, Shape, model_shapes  # noqa: E402

IMAGES = (((224, 224), 128), (COCO, 2), ((1024, 1024), 128))  # with their batch sizes
# tensors that a launch reads and writes, and which are not counted as moved once
TWICE = {"scan_kernel": ("states",)}
SELDOM = {"output_kernel": ("factors",), "exact_gradient_kernel": None}  # only the exception reads
TABLE = "kernel-cost"  # name of the markers in the page


# Machine code -----------------------------------------------------------------------------------

EXCEPTION = "exact.py"
_SHARE = 0.3  # of a block's instructions; the rest is of functions that the exception calls
_LABEL = re.compile(r"\s*(\.L\w+):")
_SOURCE = re.compile(r'\s*//## File "([^"]*)", line (\d+)')
_CODE = re.compile(r"\s*/\*[0-9a-f]+\*/\s+(@!?U?P\w+\s+)?([A-Z0-9_.]+)(.*)")
_TARGET = re.compile(r"\((\.L\w+)\)")


class Code(NamedTuple):
    """Warp instructions of one program.

    fixed: issued once; body: by each trip of the main loop, the last one at the outer level;
    others: by each trip of the loops before it. The exception is in none of them.
    """

    fixed: int
    body: int
    others: list[int]
    exception: int
    registers: int
    stack: int  # bytes spilled to
    shared: int


class _Block(NamedTuple):
    size: int
    exceptional: bool
    after: list[int]


def read(compiled: Any) -> Code:
    """Of a kernel compiled for an NVIDIA GPU."""
    import triton

    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()

        def run(tool: str, *options: str) -> str:
            command = [str(tools / tool), *options, file.name]
            return subprocess.run(command, check=True, capture_output=True, text=True).stdout

        blocks = _blocks(run("nvdisasm", "-c", "-g"))
        usage = run("cuobjdump", "-res-usage")

    def used(name: str) -> int:
        return int(re.search(rf"{name}:(\d+)", usage)[1])

    fixed, body, others, exception = _count(blocks)
    return Code(
        fixed, body, others, exception, used("REG"), used("STACK"), compiled.metadata.shared
    )


def _blocks(text: str) -> list[_Block]:
    """Basic blocks; block 0 is the entry, and ``after`` holds the numbers of the next ones."""
    found: list[tuple[int, bool, list[str], bool]] = []  # size, exceptional, targets, falls through
    starts: dict[str, int] = {}
    size, exceptional, source = 0, 0, ""

    def close(targets: list[str], falls: bool) -> None:
        nonlocal size, exceptional
        # ptxas moves a few instructions out of the exception's blocks
        found.append((size, exceptional > _SHARE * size, targets, falls))
        size, exceptional = 0, 0

    for line in text.splitlines():
        if match := _LABEL.match(line):
            if size:
                close([], True)
            starts[match[1]] = len(found)
        elif match := _SOURCE.match(line):
            source = Path(match[1]).name
        elif match := _CODE.match(line):
            predicate, op, rest = match[1], match[2].split(".")[0], match[3]
            if op == "NOP":
                continue
            size += 1
            exceptional += source == EXCEPTION
            if op == "BRA":
                # a uniform predicate stands among the operands
                always = predicate is None and not re.match(r"\s*!?UP\d", rest)
                close(_TARGET.findall(rest)[-1:], not always)
            elif op in ("EXIT", "RET"):
                close([], predicate is not None)
    if size:
        close([], False)
    blocks = []
    for i, (count, flag, targets, falls) in enumerate(found):
        after = [starts[t] for t in targets if starts.get(t, len(found)) < len(found)]
        if falls and i + 1 < len(found):
            after.append(i + 1)
        blocks.append(_Block(count, flag, after))
    return blocks


def _dominators(blocks: list[_Block]) -> dict[int, set[int]]:
    """Of every block that can be reached: which blocks all ways to it lead through."""
    reached, stack = {0}, [0]
    while stack:
        for b in blocks[stack.pop()].after:
            if b not in reached:
                reached.add(b)
                stack.append(b)
    before: dict[int, list[int]] = {b: [] for b in reached}
    for b in reached:
        for c in blocks[b].after:
            before[c].append(b)
    dominators = {b: set(reached) for b in reached}
    dominators[0] = {0}
    changed = True
    while changed:
        changed = False
        for b in sorted(reached - {0}):
            new = {b} | set.intersection(*(dominators[p] for p in before[b]))
            if new != dominators[b]:
                dominators[b], changed = new, True
    return dominators


def _count(blocks: list[_Block]) -> tuple[int, int, list[int], int]:
    dominators = _dominators(blocks)
    reached = set(dominators)
    # what every run passes: it leads to an end; and the ways back that close a loop
    ends = {b for b in reached if not blocks[b].after}
    backs = [(b, c) for b in reached for c in blocks[b].after if c in dominators[b]]
    anchors = set().union(*(dominators[b] for b in ends), {0})
    loops: dict[int, set[int]] = {}
    for tail, head in backs:
        loop, stack = {head}, [tail]
        while stack:
            b = stack.pop()
            if b not in loop:
                loop.add(b)
                stack += [p for p in reached if b in blocks[p].after]
        loops[head] = loops.get(head, set()) | loop
    outer = {
        head: loop
        for head, loop in loops.items()
        if not any(head in other for h, other in loops.items() if h != head)
    }
    kept = set(anchors)
    for tail, head in backs:
        always = dominators[tail] & outer.get(head, set())
        if always and not any(blocks[b].exceptional for b in always):
            kept |= dominators[tail]
    doors = {d for b in reached if blocks[b].exceptional for d in dominators[b] if d not in kept}
    exception = {b for b in reached if dominators[b] & doors}

    def size(part: set[int]) -> int:
        return sum(blocks[b].size for b in part - exception)

    ordered = [outer[head] for head in sorted(outer) if head not in exception]
    bodies = [size(loop) for loop in ordered]
    fixed = size(reached - set().union(set(), *ordered))
    return fixed, bodies[-1] if bodies else 0, bodies[:-1], sum(blocks[b].size for b in exception)


# Costs ------------------------------------------------------------------------------------------


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
        name: {**total(launches), "kernels": {x.kernel: round(x.instructions, 1) for x in launches}}
        for name, launches in found.items()
    }


def table(results: list[dict]) -> str:
    """Of the tiny models, a line for the places that share all figures; the JSON has all."""
    lines: dict[tuple, list[str]] = {}
    for row in results:
        passes = [x for x in row.values() if isinstance(x, dict) and "spilled" in x]
        cells = tuple(f"{x['instructions']:.0f}, {x['bytes']:.0f}, {x['spilled']}" for x in passes)
        tiny = [place for place in row["where"] if place.startswith(("ViG-T", "ViG-H-T"))]
        if tiny:
            lines.setdefault(cells, []).append(tiny[0])
    columns = ["", "forward", "backward", "gate forward", "gate backward"]
    rows = [[places[0] + " and on" * (len(places) > 1), *x] for x, places in lines.items()]
    return markdown(columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=int, default=90, help="compute capability, 90 for sm_90")
    parser.add_argument("--out", type=Path, default="work_dirs/kernel_cost.json", metavar="JSON")
    parser.add_argument("--page", type=Path, metavar="MD", help="page whose table is to be renewed")
    args = parser.parse_args()
    import triton

    cache: dict[str, Code] = {}
    results: list[dict] = []
    for shape, places in all_shapes().items():
        found = as_json(costs(shape, torch.bfloat16, args.target, cache))
        results.append({"shape": shape._asdict(), "where": places, **found})
        print(shape, *(f"{x['instructions']:.0f}" for x in found.values()), flush=True)
    about = dict(machine=machine(), target=args.target, triton=triton.__version__)
    write_json(args.out, **about, results=results)
    text = (
        f"Warp instructions, bytes moved and bytes spilled, for a token and head, "
        f"sm_{args.target}, bfloat16, Triton {triton.__version__}:\n\n{table(results)}"
    )
    print(f"{text}\nwritten: {args.out}")
    if args.page:
        fill_page(args.page, TABLE, text)


if __name__ == "__main__":
    main()
