"""Run kernels in the emulator against their definitions: `python -m emulator`, in tests/."""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "0"  # before triton is imported
FOLDER = tempfile.TemporaryDirectory()
os.environ["TRITON_CACHE_DIR"] = FOLDER.name  # its own, as what it keeps has no machine code

from . import cases, self_tests  # noqa: E402
from .case import judge  # noqa: E402
from .emulator import SHARED_LIMITS, Emulator, Launch  # noqa: E402

SECTIONS = {
    "emulator": self_tests.self_tests,
    "gla": cases.operator_cases,
    "exact": cases.exact_cases,
    "widths": cases.width_cases,
    "segments": cases.segment_cases,
    "parts": cases.part_cases,
    "nan": cases.nan_cases,
}
QUICK = "quick"  # what the tests run, not among "all"


def counted(case: str, launch: Launch) -> dict:
    """Executed instructions of all thread blocks, accesses of those that were counted."""
    where = launch.program.where
    accesses = {
        name: [[kind, where(site), *map(int, counts)] for (kind, site), counts in found.items()]
        for name, found in (("sectors", launch.sectors), ("wavefronts", launch.wavefronts))
    }
    kernel = launch.program.kernel
    return {
        "case": case, "kernel": kernel.name, "grid": launch.grid, "warps": kernel.threads // 32,
        "shared": launch.shared, "opcodes": dict(launch.opcodes()), **accesses,
    }  # fmt: skip


def main() -> int:
    names = [*SECTIONS, QUICK]
    parser = argparse.ArgumentParser(prog="python -m emulator", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="section", help=f"of {', '.join(names)}; "
                        f"all but {QUICK} by default")  # fmt: skip
    parser.add_argument("--capability", type=int, default=80, choices=SHARED_LIMITS)
    parser.add_argument("--match", default="", help="only cases whose name has this text")
    parser.add_argument(
        "--counts", type=Path, metavar="JSON", help="write executed instructions of each launch, "
        "and sectors and wavefronts (needed, fewest, warps) of its first two thread blocks",
    )  # fmt: skip
    args = parser.parse_args()
    if unknown := set(args.sections) - set(names):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    emulator = Emulator(args.capability, counted=(0, 1) if args.counts else ())
    ran, failed, found, kernels = 0, 0, [], set()
    for section in args.sections or SECTIONS:
        for case in (SECTIONS | {QUICK: cases.quick_cases})[section](args.capability):
            if args.match not in case.name:
                continue
            start = time.process_time()
            ok, text = judge(case, emulator)
            print(f"{text} | {time.process_time() - start:.1f} s", flush=True)
            ran, failed = ran + 1, failed + (not ok)
            kernels |= {launch.program.kernel.name for launch in emulator.launches}
            if args.counts:
                found += [counted(case.name, launch) for launch in emulator.launches]
    if args.counts:
        args.counts.write_text(json.dumps(found))
    print(f"sm_{args.capability}: {ran} cases, {failed} failed")
    print("kernels:", *sorted(kernels))
    return failed > 0 or ran == 0


if __name__ == "__main__":
    sys.exit(main())
