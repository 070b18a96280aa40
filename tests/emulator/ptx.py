"""PTX text as instructions in basic blocks."""

import re
from typing import NamedTuple

_INSTRUCTION = re.compile(r"(?:@(!?)%(\w+)\s+)?([\w.:]+)\s*(.*)", re.S)
_COMMA = re.compile(r",(?![^{\[(]*[}\])])")  # between operands
_LOCATION = re.compile(r"\.loc\s.*//\s*(.*)")
_WITHOUT_TARGET = ("st", "stmatrix", "cp", "bra", "bar", "fence", "ret")


class Instruction(NamedTuple):
    op: str  # ld.global.v4.b32
    parts: list[str]
    operands: list[str]
    predicate: str | None  # p3 or ~p3
    where: str  # line of the source

    @property
    def targets(self) -> list[str]:
        """Registers that it writes."""
        if self.parts[0] in _WITHOUT_TARGET or not self.operands:
            return []
        return re.findall(r"%([a-z]+\d+)", self.operands[0])


class Kernel:
    """The kernel of a PTX file.

    Attributes:
        name: of the function.
        threads: of a thread block.
        params: types of its arguments.
        blocks: instructions of each basic block.
        labels: name of a label -> index of its basic block.
    """

    def __init__(self, ptx: str) -> None:
        head, _, body = ptx[ptx.index(".entry ") :].partition("\n{")
        self.name = re.match(r"\.entry (\w+)", head)[1]
        self.threads = int(re.search(r"\.reqntid (\d+)", head)[1])
        self.params = re.findall(r"\.param \.(\w+)[^,\n]*_param_\d+", head)
        self.blocks: list[list[Instruction]] = [[]]
        self.labels: dict[str, int] = {}
        self._parse(body)
        self._predicate_short_branches()

    def _parse(self, body: str) -> None:
        where = text = ""
        for line in map(str.strip, body.splitlines()):
            if found := _LOCATION.match(line):
                where = re.sub(r"\s+", " ", found[1])
                continue
            line = line.split("//")[0].strip()
            if line.startswith("$L__func_end"):
                break
            if found := re.fullmatch(r"(\$?\w+):", line):
                if found[1].startswith("$L__tmp"):  # for debuggers
                    continue
                if self.blocks[-1]:
                    self.blocks.append([])
                self.labels[found[1]] = len(self.blocks) - 1
            elif not line.startswith("."):
                *complete, text = f"{text} {line}".split(";")
                for one in complete:
                    self._add(one.lstrip("{} "), where)

    def _add(self, text: str, where: str) -> None:
        if not text or text.startswith("."):
            return
        negated, predicate, op, rest = _INSTRUCTION.match(text).groups()
        operands = [x.strip() for x in _COMMA.split(rest)] if rest else []
        mask = ("~" if negated else "") + predicate if predicate else None
        self.blocks[-1].append(Instruction(op, op.split("."), operands, mask, where))
        if op.split(".")[0] in ("bra", "ret"):
            self.blocks.append([])

    def _predicate_short_branches(self) -> None:
        """Around a few arithmetic instructions, as in libdevice's log2 of NaN: the only branches
        that a part of the threads may take. The instructions get the opposite predicate."""
        for k, (block, skipped) in enumerate(zip(self.blocks, self.blocks[1:], strict=False)):
            jump = block[-1] if block else None
            if not (jump and jump.parts[0] == "bra" and jump.predicate):
                continue
            plain = not any(
                i.predicate or i.parts[0] in (*_WITHOUT_TARGET, "ld", "mma", "wgmma", "shfl")
                for i in skipped
            )
            alone = k + 1 not in self.labels.values()
            if plain and alone and self.labels[jump.operands[0]] == k + 2:
                otherwise = jump.predicate[1:] if jump.predicate[0] == "~" else f"~{jump.predicate}"
                block[-1:] = [i._replace(predicate=otherwise) for i in skipped]
                skipped.clear()

    @property
    def instructions(self) -> list[Instruction]:
        return [i for block in self.blocks for i in block]
