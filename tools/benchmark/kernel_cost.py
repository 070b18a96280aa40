"""Count what the Triton kernels issue and move, without a GPU: warp instructions, registers, bytes.

    python tools/benchmark/kernel_cost.py [--target 90] [--out docs/kernel_cost.json]

The launches of both operators for the shapes of all six models are compiled, and their machine code
is read: instructions of a warp for one token of one head, where a loop over chunks counts once for
each chunk. What only chunks beyond the anchored range reach (`exact.py`) is told apart by the
source lines that ptxas notes, and left out. Bytes are those of all tensors that a launch reads or
writes, each once. The count sees neither memory nor latency nor the rates of the units: it ranks
variants, and a GPU decides.
"""

import math
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

os.environ["TRITON_INTERPRET"] = "0"
import torch  # noqa: E402

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "analysis_tools")]
from common import fill_page, machine, make_parser, markdown, write_json  # noqa: E402
from kernel_launches import Launch, compile_launch, record, specialize  # noqa: E402
from shapes import COCO, MODELS, Shape, all_shapes  # noqa: E402

USES = (((224, 224), 128, MODELS), (COCO, 2, MODELS), ((1024, 1024), 128, MODELS))
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
    after: set[int]  # numbers of the blocks that may follow


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

        counts = _count(_blocks(run("nvdisasm", "-c", "-g")))
        usage = run("cuobjdump", "-res-usage")
    registers, stack = (int(re.search(rf"{x}:(\d+)", usage)[1]) for x in ("REG", "STACK"))
    return Code(*counts, registers, stack, compiled.metadata.shared)


def _blocks(text: str) -> list[_Block]:
    """Basic blocks; block 0 is the entry."""
    found: list[tuple[int, bool, list[str], bool]] = []  # size, exceptional, targets, falls through
    starts: dict[str, int] = {}
    sources: list[str] = []  # of the instructions of the block that is being read
    source = ""

    def close(targets: list[str], falls: bool) -> None:
        # ptxas moves a few instructions out of the exception's blocks
        exceptional = sources.count(EXCEPTION) > _SHARE * len(sources)
        found.append((len(sources), exceptional, targets, falls))
        sources.clear()

    for line in text.splitlines():
        if match := _LABEL.match(line):
            if sources:
                close([], True)
            starts[match[1]] = len(found)
        elif match := _SOURCE.match(line):
            source = Path(match[1]).name
        elif (match := _CODE.match(line)) and (op := match[2].split(".")[0]) != "NOP":
            sources.append(source)
            if op == "BRA":
                # a uniform predicate stands among the operands
                always = match[1] is None and not re.match(r"\s*!?UP\d", match[3])
                close(_TARGET.findall(match[3])[-1:], not always)
            elif op in ("EXIT", "RET"):
                close([], match[1] is not None)
    if sources:
        close([], False)
    blocks = []
    for i, (size, flag, targets, falls) in enumerate(found):
        after = {starts[target] for target in targets if target in starts}
        after |= {i + 1} if falls else set()
        blocks.append(_Block(size, flag, {x for x in after if x < len(found)}))
    return blocks


def _reached(edges: list[set[int]], start: int, without: int | None = None) -> set[int]:
    """The nodes that ways from ``start`` lead to, itself included, which avoid one node."""
    found = {start} - {without}
    stack = list(found)
    while stack:
        new = edges[stack.pop()] - found - {without}
        found |= new
        stack += new
    return found


def _count(blocks: list[_Block]) -> tuple[int, int, list[int], int]:
    """The first four fields of `Code`."""
    after = [block.after for block in blocks]
    reached = _reached(after, 0)
    before = [{p for p in reached if b in after[p]} for b in range(len(blocks))]
    dominators: dict[int, set[int]] = {b: set() for b in reached}  # all ways to b lead through them
    for d in reached:
        for b in reached - _reached(after, 0, without=d):
            dominators[b].add(d)
    # what every run passes: it leads to an end; and the ways back that close a loop
    kept = set().union({0}, *(dominators[b] for b in reached if not after[b]))
    backs = [(b, c) for b in reached for c in after[b] if c in dominators[b]]
    loops: dict[int, set[int]] = {}
    for tail, head in backs:
        loops[head] = loops.get(head, set()) | {head} | _reached(before, tail, without=head)
    outer = {
        head: loop
        for head, loop in loops.items()
        if not any(head in other for h, other in loops.items() if h != head)
    }
    for tail, head in backs:
        always = dominators[tail] & outer.get(head, set())
        if always and not any(blocks[b].exceptional for b in always):
            kept |= dominators[tail]
    doors = {d for b in reached if blocks[b].exceptional for d in dominators[b] - kept}
    exception = {b for b in reached if dominators[b] & doors}

    def size(part: set[int]) -> int:
        return sum(blocks[b].size for b in part)

    ordered = [outer[head] for head in sorted(outer) if head not in exception]
    bodies = [size(loop - exception) for loop in ordered]
    body = bodies.pop() if bodies else 0
    return size(reached.difference(exception, *ordered)), body, bodies, size(exception)


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
    x, name = launch.named, launch.kernel.__name__
    if name.startswith("blend"):
        return launch.grid[0] * -(-x["N"] // x["R"])
    passes = 2 * launch.grid[2] if name in ("segment_kernel", "scan_kernel") else 1
    return launch.grid[0] * passes * x["NT"]


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
    code, warps = compiled_code(launch, target, cache), launch.options["num_warps"]
    issued = warps * (math.prod(launch.grid) * code.fixed + trips(launch) * code.body)
    name = launch.kernel.__name__
    return Cost(name, issued / token_heads, moved(launch) / token_heads, code, warps)


def costs(
    shape: Shape, dtype: torch.dtype, target: int, cache: dict[str, Code]
) -> dict[str, list[Cost]]:
    """Per pass, see `kernel_launches.record`, its launches."""
    token_heads = shape.B * shape.N * shape.H
    return {
        name: [cost(launch, token_heads, target, cache) for launch in found]
        for name, found in record(*shape, dtype).items()
    }


def as_json(found: dict[str, list[Cost]]) -> dict[str, dict]:
    """Of each pass the sums and maxima over its launches, and instructions of each kernel."""
    return {
        name: {
            "launches": len(launches),
            "instructions": round(sum(x.instructions for x in launches), 1),
            "bytes": round(sum(x.bytes for x in launches), 1),
            "registers": max(x.code.registers for x in launches),
            "spilled": max(x.code.stack for x in launches),
            "shared": max(x.code.shared for x in launches),
            "kernels": {x.kernel: round(x.instructions, 1) for x in launches},
        }
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
    parser = make_parser(__doc__, "work_dirs/kernel_cost.json", page=True)
    parser.add_argument("--target", type=int, default=90, help="compute capability, 90 for sm_90")
    args = parser.parse_args()
    import triton

    cache: dict[str, Code] = {}
    results: list[dict] = []
    for shape, places in all_shapes(USES).items():
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
