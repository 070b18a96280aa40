"""One case: what the emulator runs, what has to come out, and which problems it has to find."""

import math
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .emulator import Emulator

Results = dict[str, Tensor]


class Case(NamedTuple):
    name: str
    run: Callable[[Emulator], Results]
    reference: Callable[[], Results]
    tolerance: float  # of the relative error of each result
    nan: bool = False  # the first entry of an input holds NaN
    problems: tuple[str, ...] = ()  # kinds of which one has to be found, instead of results
    edit: Callable[[str], str] = lambda ptx: ptx  # see `Emulator`


def error(x: Tensor, want: Tensor, nan: bool) -> float:
    """Relative error; NaN where finite numbers are missing or should be missing.

    With ``nan`` x has to be NaN where the reference is, and finite where that is, but for the
    first entry: a chunk's tokens share products.
    """
    x, want = x.detach().double(), want.detach().double()
    if x.shape != want.shape:
        return math.nan
    if nan:
        if not bool(x[want.isnan()].isnan().all()):
            return math.nan
        both = want.isfinite()
        both[:1] &= x[:1].isfinite()
        x, want = x[both], want[both]
    if not torch.equal(x.isfinite(), want.isfinite()):
        return math.nan
    x, want = x[want.isfinite()], want[want.isfinite()]
    return float((x - want).norm()) / (float(want.norm()) or 1.0)


def judge(case: Case, emulator: Emulator) -> tuple[bool, str]:
    """Whether a case passes, and a line about it."""
    emulator.forget()
    emulator.edit = case.edit
    failure, errors = "", {}
    try:
        with emulator.installed():
            got = case.run(emulator)
        wanted = {} if case.problems else case.reference()
        errors = {key: error(got[key], x, case.nan) for key, x in wanted.items() if key in got}
    except Exception as problem:
        failure = f"{type(problem).__name__}: {problem}"
    kinds: Counter = Counter()
    for (kind, *_), count in emulator.problems.items():
        kinds[kind] += count
    if not any(launch.blocks for launch in emulator.launches):
        failure = failure or "no kernel ran"
    right = all(e <= case.tolerance for e in errors.values()) and bool(errors or case.problems)
    found = bool(set(case.problems) & set(kinds)) if case.problems else not kinds
    ok = right and found and not failure
    lines = [
        " | ".join(
            [
                f"{'ok  ' if ok else 'FAIL'} {case.name}",
                " ".join(f"{key}={e:.1e}" for key, e in errors.items()),
                f"{dict(kinds) or 'nothing found'} {failure}".strip(),
            ]
        )
    ]
    if not case.problems:
        for (kind, kernel, where), count in sorted(emulator.problems.items())[:12]:
            lines.append(f"       {kind} x{count} {kernel} {where}")
    return ok, "\n".join(lines)
