"""A kernel's PTX as one Python function.

A register is a local variable, an array of a value for each thread; a basic block is straight-line
code under ``if pc == ...``. Branches must be uniform over the thread block, as Triton's are. What
is unknown raises: only instructions that Triton makes of our kernels are here.
"""

import re
from collections import Counter

import numpy as np

from . import arithmetic, products
from .arithmetic import DTYPES, WIDTHS
from .ptx import Instruction, Kernel

REGISTERS = {"p": "pred", "rs": "b16", "r": "b32", "rd": "b64"}
SPECIAL = {"%tid.x": "B.tid"}
SPECIAL |= {f"%ctaid.{d}": f"B.ctaid[{k}]" for k, d in enumerate("xyz")}
SPECIAL |= {f"%nctaid.{d}": f"B.nctaid[{k}]" for k, d in enumerate("xyz")}
# of operands of the instruction's type, with exceptions below
ELEMENTWISE = {
    "add": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}", "mad": "{0} * {1} + {2}",
    "and": "{0} & {1}", "or": "{0} | {1}", "xor": "{0} ^ {1}", "not": "~{0}", "neg": "-{0}",
    "abs": "np.abs({0})", "fma": "fma({0}, {1}, {2})", "selp": "np.where({2}, {0}, {1})",
    "min": "np.fmin({0}, {1})", "max": "np.fmax({0}, {1})",  # the one that is a number
    "min.NaN": "np.minimum({0}, {1})", "max.NaN": "np.maximum({0}, {1})",
    "shl": "shift({0}, {1}, True)", "shr": "shift({0}, {1}, False)", "bfe": "bfe({0}, {1}, {2})",
    "prmt": "prmt({0}, {1}, {2})", "div": "divide({0}, {1})",
    "rem": "{0} - {1} * divide({0}, {1})", "div.full": "approximate('div', {0} / {1})",
    "sqrt": "approximate('sqrt', np.sqrt({0}))", "rcp": "approximate('rcp', F4.type(1) / {0})",
    "ex2": "approximate('ex2', np.exp2({0}))", "lg2": "approximate('lg2', np.log2({0}))",
    "rsqrt": "approximate('rsqrt', F4.type(1) / np.sqrt({0}))",
    "tanh": "approximate('tanh', np.tanh({0}))",
}  # fmt: skip
OTHER_KINDS = {"shl": {1: "u32"}, "shr": {1: "u32"}, "bfe": {1: "u32", 2: "u32"}}
OTHER_KINDS["selp"] = {2: "pred"}
COMPARE = {
    "eq": "{0} == {1}", "lt": "{0} < {1}", "le": "{0} <= {1}", "gt": "{0} > {1}",
    "ge": "{0} >= {1}", "ne": "({0} < {1}) | ({0} > {1})", "num": "({0} == {0}) & ({1} == {1})",
    # or one is NaN
    "equ": "~(({0} < {1}) | ({0} > {1}))", "neu": "{0} != {1}", "ltu": "~({0} >= {1})",
    "leu": "~({0} > {1})", "gtu": "~({0} <= {1})", "geu": "~({0} < {1})",
    "nan": "({0} != {0}) | ({1} != {1})",
}  # fmt: skip
CHANGES_LATER = "register-race"  # use of a register of a wgmma in flight


def vector(text: str) -> list[str]:
    return [x.strip() for x in text.strip("{} ").split(",")]


class Program:
    """A kernel as ``function(block)``.

    Attributes:
        kernel: as parsed.
        sites: instructions by the number under which accesses are reported.
        opcodes: of each basic block.
    """

    def __init__(self, ptx: str) -> None:
        self.kernel = Kernel(ptx)
        self.sites: list[Instruction] = []
        self.constants: dict[str, np.ndarray] = {}
        self.lines: list[str] = []
        self.opcodes = [Counter(i.op for i in block) for block in self.kernel.blocks]
        instructions = self.kernel.instructions
        self.floats = self._float_registers(instructions)
        # what may be read before it is written is NaN
        defined = {r for i in instructions for r in i.targets}
        used = {r for i in instructions for x in i.operands for r in re.findall(r"%([a-z]+\d+)", x)}
        partly = {r for i in instructions if i.predicate for r in i.targets}
        sums = {r for i in instructions if i.op.startswith("wgmma.mma") for r in i.targets}
        for r in sorted((used - defined) | partly | sums):
            self.lines.append(f"    {r} = {self._constant(-1, self._storage(r))}")
        self.in_flight: dict[str, str] = {}  # registers of a wgmma, its "A" or its "D"
        self.lines += ["    G, M, pc = B.launch.memory, B.shared, 0", "    while True:"]
        for k, block in enumerate(self.kernel.blocks):
            self.lines += [f"        if pc == {k}:", f"            B.visits[{k}] += 1"]
            self.fragments: dict[str, tuple] = {}  # variables by what they are made of
            self.block, self.ended = k, False
            for i in block:
                self._translate(i)
            if not self.ended:
                self._line(f"pc = {k + 1}")
        names = {**vars(arithmetic), **vars(products), **self.constants}
        source = "\n".join(["def kernel(B, params):", *self.lines])
        exec(compile(source, f"<{self.kernel.name}>", "exec"), names)
        self.function = names["kernel"]

    def where(self, site: int) -> str:
        i = self.sites[site]
        return f"{i.where} [{i.op}]"

    # ---- registers
    def _float_registers(self, instructions: list[Instruction]) -> set[str]:
        """Registers of 32 bits that are kept as float32, for speed: most uses are."""
        votes: Counter = Counter()
        for i in instructions:
            if i.parts[0] in ("mov", "selp", "ld", "st", "shfl"):
                continue
            kinds = [p for p in i.parts if p in DTYPES]
            for k, x in enumerate(i.operands):
                if "mma" in i.op:
                    kind = "f32" if k in (0, 3) else "b32"
                else:
                    kind = kinds[0 if i.parts[0] == "cvt" and k == 0 else -1] if kinds else "b32"
                for r in re.findall(r"%(r\d+)", x) if "[" not in x else ():
                    votes[r] += 1 if kind == "f32" else -1
        return {r for r, v in votes.items() if v > 0}

    def _storage(self, register: str) -> str:
        return "f32" if register in self.floats else REGISTERS[register.rstrip("0123456789")]

    def _constant(self, value: int, kind: str) -> str:
        dtype = DTYPES[kind]
        bits = (value & (256**dtype.itemsize - 1)).to_bytes(dtype.itemsize, "little")
        array = np.frombuffer(bits if dtype.kind != "b" else bytes([value != 0]), dtype)
        name = f"c_{kind}_{bits.hex()}"
        self.constants[name] = np.repeat(array, self.kernel.threads)
        return name

    def _read(self, x: str, kind: str) -> str:
        """Expression of an operand as an array of a type."""
        dtype = DTYPES[kind]
        if x.startswith("{"):
            parts = vector(x)
            items = ", ".join(self._read(p, f"b{dtype.itemsize * 8 // len(parts)}") for p in parts)
            return f"np.stack([{items}], 1).view('{dtype.str}').ravel()"
        if x.startswith("!"):
            return f"~{self._read(x[1:], kind)}"
        if x in SPECIAL:
            return SPECIAL[x]
        if x.startswith("%"):
            own = DTYPES[self._storage(x[1:])]
            if own.itemsize > dtype.itemsize:  # the lower part
                return f"{x[1:]}.astype('u{dtype.itemsize}').view('{dtype.str}')"
            return x[1:] if own == dtype else f"{x[1:]}.view('{dtype.str}')"
        if x == "global_smem":
            return self._constant(0, kind)
        if found := re.fullmatch(r"0f([0-9A-Fa-f]+)", x):
            return self._constant(int(found[1], 16), kind)
        return self._constant(int(x.rstrip("U"), 0), kind)

    def _set(self, i: Instruction, x: str, expression: str, kind: str) -> None:
        """Assign an array of a type to a register, where the instruction's predicate holds."""
        if x == "_":
            return
        name = x.lstrip("%")
        own, dtype = DTYPES[self._storage(name)], DTYPES[kind]
        if own.itemsize != dtype.itemsize:
            wide = "i" if dtype.kind == "i" else "u"
            expression = f"({expression}).astype('{wide}{own.itemsize}').view('{own.str}')"
        elif own != dtype:
            expression = f"({expression}).view('{own.str}')"
        if i.predicate:
            expression = f"np.where({i.predicate}, {expression}, {name})"
        self._line(f"{name} = {expression}")
        for key in [k for k, parts in self.fragments.items() if name in parts]:
            del self.fragments[key]

    def _line(self, text: str) -> None:
        self.lines.append("            " + text)

    def _address(self, x: str, kind: str) -> str:
        base, offset = re.fullmatch(r"\[\s*(%?\w+)\s*(?:\+\s*(-?\w+))?\s*\]", x).groups()
        plus = f" + {self._constant(int(offset, 0), kind)}" if offset else ""
        return f"({self._read(base, kind)}{plus})"

    def _list(self, x: str, kind: str) -> str:
        return f"[{', '.join(self._read(p, kind) for p in vector(x))}]"

    # ---- instructions
    def _translate(self, i: Instruction) -> None:
        site = len(self.sites)
        self.sites.append(i)
        if i.parts[0] != "wgmma":
            for r in re.findall(r"%(\w+)", " ".join(i.operands)):
                use = self.in_flight.get(r)
                if use == "D" or (use == "A" and r in i.targets):
                    self._line(f"B.report('{CHANGES_LATER}', {site}, True, '{r}')")
        try:
            method = getattr(self, f"_{i.parts[0]}", self._elementwise)
            method(i, i.operands, site)
        except (KeyError, ValueError, TypeError, AssertionError) as error:
            text = f"the emulator has no {i.op} {i.operands} ({i.where})"
            raise NotImplementedError(text) from error

    def _elementwise(self, i, ops, site):
        name, kind = i.parts[0], i.parts[-1]
        if name == "selp":  # no view of what is only copied
            kind = self._storage(ops[0][1:])
        template = next(
            ELEMENTWISE[key] for key in (f"{name}.{i.parts[1]}", name) if key in ELEMENTWISE
        )
        assert kind not in ("f16", "bf16", "f16x2", "bf16x2") and "hi" not in i.parts
        assert (kind == "f32") or name not in ("fma", "ex2", "lg2", "rcp")
        kinds = OTHER_KINDS.get(name, {})
        values = [self._read(x, kinds.get(k, kind)) for k, x in enumerate(ops[1:])]
        if "wide" in i.parts:  # a third operand is wide
            kind = f"{kind[0]}{int(kind[1:]) * 2}"
            values[:2] = [f"{x}.astype('{DTYPES[kind].str}')" for x in values[:2]]
            values[2:] = [self._read(x, kind) for x in ops[3:]]
        if "ftz" in i.parts:
            values, template = [f"ftz({x})" for x in values], f"ftz({template})"
        self._set(i, ops[0], template.format(*values), kind)

    def _setp(self, i, ops, site):
        kind = i.parts[2]
        values = [self._read(x, kind) for x in ops[1:]]
        assert len(i.parts) == 3 and kind not in ("f16", "bf16")
        self._set(i, ops[0], COMPARE[i.parts[1]].format(*values), "pred")

    def _mov(self, i, ops, site):
        kind = i.parts[-1]
        if not ops[0].startswith("{"):
            storage = self._storage(ops[0][1:])
            kind = storage if DTYPES[storage].itemsize == DTYPES[kind].itemsize else kind
            return self._set(i, ops[0], self._read(ops[1], kind), kind)
        names = vector(ops[0])
        part = f"b{DTYPES[kind].itemsize * 8 // len(names)}"
        whole = f"np.ascontiguousarray({self._read(ops[1], kind)})"
        self._line(f"t = {whole}.view('{DTYPES[part].str}').reshape(-1, {len(names)})")
        for k, name in enumerate(names):
            self._set(i, name, f"t[:, {k}]", part)

    def _cvt(self, i, ops, site):
        to, source = (p for p in i.parts[1:] if p in DTYPES or p == "tf32")
        x = self._read(ops[1], source)
        if to == "tf32":
            assert i.parts[1] == "rna"
            return self._set(i, ops[0], f"to_tf32({x})", "b32")
        if to.endswith("16x2"):
            low, down = self._read(ops[2], source), f"to_{to[:-2]}"
            assert i.parts[1] == "rn" and source == "f32"
            return self._set(i, ops[0], f"pack16({down}({low}), {down}({x}))", "b32")
        if to in ("f16", "bf16"):
            assert i.parts[1] == "rn" and source == "f32"
            return self._set(i, ops[0], f"to_{to}({x})", "b16")
        if source in ("f16", "bf16"):
            assert to == "f32"
            return self._set(i, ops[0], f"from_{source}({x})", to)
        assert source != "f32" and "sat" not in i.parts
        self._set(i, ops[0], f"{x}.astype('{DTYPES[to].str}')", to)

    # ---- control
    def _bra(self, i, ops, site):
        target = self.kernel.labels[ops[0]]
        if i.predicate:
            target = f"B.branch({i.predicate}, {target}, {self.block + 1}, {site})"
        self._line(f"pc = {target}")
        self.ended = True

    def _ret(self, i, ops, site):
        assert not i.predicate
        self._line("return")
        self.ended = True

    def _bar(self, i, ops, site):
        self._line({"bar.sync": "B.barrier()", "bar.warp.sync": "B.warp_barrier()"}[i.op])
        assert ops in (["0"], ["-1"])

    # ---- memory
    def _ld(self, i, ops, site):
        kind = i.parts[-1]
        if i.parts[1] == "param":
            index = int(re.search(r"_param_(\d+)", ops[1])[1])
            return self._set(i, ops[0], f"params[{index}].view('{DTYPES[kind].str}')", kind)
        memory, pointer = {"shared": ("M.load(", "b32"), "global": ("G.load(B, ", "b64")}[
            i.parts[1].split("::")[0]
        ]
        names, width = vector(ops[0]), WIDTHS[kind[1:]]
        address = self._address(ops[1], pointer)
        self._line(f"t = {memory}{address}, {width}, {len(names)}, {i.predicate}, {site})")
        for k, x in enumerate(names):
            self._set(i, x, f"t[{k}]", f"b{8 * width}")

    def _st(self, i, ops, site):
        width = WIDTHS[i.parts[-1][1:]]
        memory, pointer = {"shared": ("M.store(", "b32"), "global": ("G.store(B, ", "b64")}[
            i.parts[1].split("::")[0]
        ]
        address, values = self._address(ops[0], pointer), self._list(ops[1], f"b{8 * width}")
        self._line(f"{memory}{address}, {width}, {values}, {i.predicate}, {site})")

    def _cp(self, i, ops, site):
        assert i.parts[1] == "async" and "bulk" not in i.parts
        if i.parts[2] == "commit_group":
            return self._line("M.commit()")
        if i.parts[2] == "wait_group":
            return self._line(f"M.wait({int(ops[0])})")
        to, address = self._address(ops[0], "b32"), self._address(ops[1], "b64")
        given = self._read(ops[3], "u32") if len(ops) > 3 else None
        size = int(ops[2], 0)
        self._line(f"M.copy_async({to}, {address}, {size}, {given}, {i.predicate}, {site})")

    # ---- between the lanes of a warp
    def _shfl(self, i, ops, site):
        mode, kind = i.parts[2], self._storage(ops[0][1:])
        b, c = (self._read(x, "u32") for x in ops[2:4])
        source = f"shuffle_source('{mode}', {b}, {c})"
        if not ops[2].startswith("%"):
            name = f"from_{site}"
            self.constants[name] = arithmetic.shuffle_source(
                mode, self.constants[b], self.constants[c]
            )
            source = name
        self._set(i, ops[0], f"{self._read(ops[1], kind)}[{source}]", kind)

    def _ldmatrix(self, i, ops, site):
        count, address = int(i.parts[4][1:]), self._address(ops[1], "b32")
        self._line(f"t = M.ldmatrix({address}, {count}, {'trans' in i.parts}, {site})")
        for k, x in enumerate(vector(ops[0])):
            self._set(i, x, f"t[{k}]", "b32")

    def _stmatrix(self, i, ops, site):
        address, values = self._address(ops[0], "b32"), self._list(ops[1], "b32")
        self._line(f"M.stmatrix({address}, {values}, {'trans' in i.parts}, {site})")

    def _mma(self, i, ops, site):
        shape, kind = i.parts[3], i.parts[-2]
        assert i.parts[-4:] == ["f32", kind, kind, "f32"] and not i.predicate
        assert shape == ("m16n8k8" if kind == "tf32" else "m16n8k16")
        found = []
        for k in (1, 2):
            names = (k, *(x.lstrip("%") for x in vector(ops[k])))
            name = next((f for f, parts in self.fragments.items() if parts == names), None)
            if name is None:
                name = f"fragment_{site}_{k}"
                registers = ", ".join(self._read(x, "b32") for x in vector(ops[k]))
                self._line(f"{name} = fragment('{kind}', {k == 1}, {registers})")
                self.fragments[name] = names
            found.append(name)
        self._line(f"t = mma({', '.join(found)}, *{self._list(ops[3], 'f32')})")
        for k, x in enumerate(vector(ops[0])):
            self._set(i, x, f"t[{k}]", "f32")

    # ---- products of warpgroups
    def _wgmma(self, i, ops, site):
        action = i.parts[1]
        if action == "commit_group":
            self._line("M.commit_products()")
        elif action == "wait_group":
            self._line(f"M.wait_products({int(ops[0])})")
            if int(ops[0]) == 0:
                self.in_flight = {}
        elif action == "mma_async":
            kind, width = i.parts[-1], int(re.match(r"m64n(\d+)k", i.parts[4])[1])
            assert not i.predicate and ops[4:6] == ["1", "1"]
            names, fragments = vector(ops[0]), ops[1].startswith("{")
            a = self._list(ops[1], "b32") if fragments else self._read(ops[1], "b64")
            trans = [not fragments and ops[6:7] == ["1"], ops[6 if fragments else 7 :][:1] == ["1"]]
            b, accumulate = self._read(ops[2], "b64"), self._read(ops[3], "pred")
            self._line(
                f"t = M.wgmma('{kind}', {width}, {a}, {b}, {accumulate}, "
                f"{self._list(ops[0], 'f32')}, {trans[0]}, {trans[1]}, {site})"
            )
            for k, x in enumerate(names):
                self._set(i, x, f"t[{k}]", "f32")
            if fragments:
                self.in_flight |= dict.fromkeys((x[1:] for x in vector(ops[1])), "A")
            self.in_flight |= dict.fromkeys((x[1:] for x in names), "D")
        else:
            assert action == "fence"

    def _fence(self, i, ops, site):
        assert i.op.startswith("fence.proxy.async")
        self._line("M.fence()")
