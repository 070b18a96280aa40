"""Keeps the record of which versions the tests were run with, and shows it in CONTRIBUTING.md.

    bash tools/run_tests.sh --line onedl --record docs/tested/onedl_py313.json
    python tools/dev/tested_versions.py

The first command, a test run, also writes its versions and counts (this file is then a plugin of
pytest). The second writes the table of CONTRIBUTING.md from all records.
"""

import datetime
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "docs" / "tested"
PAGE = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- tested:begin -->\n", "<!-- tested:end -->\n"
PACKAGES = ("torch", "torchvision", "triton", "numpy")
# Of these the installed one is recorded: upstream's, its build without operators, the fork's.
MM_PACKAGES = (
    ("mmcv", "mmcv-lite", "onedl-mmcv"),
    ("mmengine", "onedl-mmengine"),
    ("mmdet", "onedl-mmdetection"),
    ("mmsegmentation", "onedl-mmsegmentation"),
    ("mmpretrain", "onedl-mmpretrain"),
)
OUTCOMES = ("passed", "failed", "error", "skipped", "xfailed")


def installed(names: tuple[str, ...]) -> dict[str, str]:
    """Those of the distributions that are installed, with their versions."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def pytest_addoption(parser: Any) -> None:
    parser.addoption("--record", metavar="JSON", type=Path, help="write versions and counts there")


def pytest_terminal_summary(terminalreporter: Any, config: Any) -> None:
    path = config.getoption("record")
    if path is None:
        return
    asked = [word for word in config.invocation_params.args if word.startswith("tests/")]
    record = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "packages": installed(PACKAGES + sum(MM_PACKAGES, ())),
        "tests": asked or ["tests"],
        "outcomes": {name: len(terminalreporter.stats.get(name, ())) for name in OUTCOMES},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")


def table(records: list[dict]) -> str:
    """Markdown, one row for each record, oldest torch first."""
    lines = [
        "| OpenMMLab packages | Python | torch | numpy | Triton | tests | result | date |",
        "|---|---|---|---|---|---|---|---|",
    ]
    by_torch = sorted(records, key=lambda r: [*map(int, r["packages"]["torch"].split(".")[:2])])
    for record in by_torch:
        packages = record["packages"]
        mmcv = next(f"{name} {packages[name]}" for name in MM_PACKAGES[0] if name in packages)
        cells = [
            f"line onedl, {mmcv}" if mmcv.startswith("onedl-") else f"upstream, {mmcv}",
            record["python"],
            *(packages[name].partition("+")[0] for name in ("torch", "numpy", "triton")),
            "all" if record["tests"] == ["tests"] else ", ".join(f"`{t}`" for t in record["tests"]),
            ", ".join(f"{count} {name}" for name, count in record["outcomes"].items() if count),
            record["date"],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def page_with_table() -> str:
    """The text of CONTRIBUTING.md with the table of the records that are there."""
    records = [json.loads(path.read_text()) for path in sorted(RECORDS.glob("*.json"))]
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + table(records) + END + after


def main() -> None:
    PAGE.write_text(page_with_table(), encoding="utf-8")


if __name__ == "__main__":
    main()
