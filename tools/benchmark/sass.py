"""Read the machine code of a compiled Triton kernel: instructions, loops, and what never runs.

Of a kernel with an exception inside (`exact.py`: chunks beyond the anchored range) the blocks that
only the exception reaches are told apart by the source lines that ptxas notes.
"""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

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
