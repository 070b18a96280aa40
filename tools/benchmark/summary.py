"""The summary of `run_gpu.sh`: steps, tests, targets. Its exit status is that of the whole run.

usage: python summary.py FOLDER STEP=STATUS ...
"""

import json
import re
import sys
from collections import Counter
from pathlib import Path

from targets import backbone_targets, operator_targets

STATUS = "PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS"
LINES = (
    re.compile(rf"^\[gw\d+\] \[ *\d+%\] (?P<status>{STATUS}) (?P<test>\S+::.+?)\s*$"),  # xdist
    re.compile(rf"^(?P<test>\S+::.+?) (?P<status>{STATUS})( \(.*\))?\s+\[ *\d+%\]\s*$"),
    re.compile(r"^(?P<status>ERROR) (?P<test>\S+\.py)\b"),  # a file that cannot be imported
)
MAX_NAMES = 20
# of the same shape the later file's figures count
OPERATOR = ("bidirectional_gla_gpu_fla.json", "bidirectional_gla_gpu.json")
BACKBONES = ("backbones_gpu.json",)
STEPS = {
    "bidirectional_gla_gpu_fla.json": {"fla"},
    "bidirectional_gla_gpu.json": {"operator", "operator_rest"},
    "backbones_gpu.json": {"models", "models_rest"},
}


def outcomes(log: str) -> dict[str, str]:
    """Test -> outcome, from pytest's verbose output, which may have been cut off."""
    found = {}
    for line in log.splitlines():
        for pattern in LINES:
            if match := pattern.match(line):
                found[match["test"]] = match["status"]
    return found


def describe_step(step: str, status: int) -> str:
    words = {0: "done", 124: "OUT OF TIME", 137: "OUT OF TIME (killed)"}
    return f"step {step}: {words.get(status, f'exit status {status}')}"


def report_tests(log: str) -> bool:
    """Print counts and the failed tests; whether none failed."""
    tests = outcomes(log)
    counts = Counter(tests.values())
    print("tests:", ", ".join(f"{n} {x.lower()}" for x, n in counts.items()) or "none ran")
    bad = [test for test, outcome in tests.items() if outcome in ("FAILED", "ERROR")]
    for test in bad[:MAX_NAMES]:
        print("  failed:", test)
    if len(bad) > MAX_NAMES:
        print(f"  and {len(bad) - MAX_NAMES} more, see run.log")
    return not bad


def main(folder: Path, steps: dict[str, int]) -> int:
    print("=" * 20, "summary", "=" * 20)
    for step, status in steps.items():
        print(describe_step(step, status))
    passed = True
    if "tests" in steps:
        passed = report_tests((folder / "run.log").read_text(errors="replace"))
    for evaluate, names in ((operator_targets, OPERATOR), (backbone_targets, BACKBONES)):
        if not any(STEPS[name] & steps.keys() for name in names):
            continue
        rows = []
        for path in (folder / name for name in names):
            if STEPS[path.name] & steps.keys() and path.exists():
                data = json.loads(path.read_text())
                rows += data["results"]
                about = ", ".join(f"{key} {value}" for key, value in data["machine"].items())
                print(f"{path.name}: {len(data['results'])} rows; {about}")
        for target in evaluate(rows):
            print(target)
    ok = passed and not any(steps.values())
    print("result:", "ok" if ok else "FAILED", "- files in", folder)
    return 0 if ok else 1


if __name__ == "__main__":
    pairs = [argument.rpartition("=") for argument in sys.argv[2:]]
    sys.exit(main(Path(sys.argv[1]), {step: int(status) for step, _, status in pairs}))
