"""Write the table of docs/deploy.md from the exports that docs/export.json lists.

`tools/export_onnx.py CONFIG none OUT --report docs/export.json` adds one to that list.

Example: python tools/analysis/export_table.py
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from model_table import ROOT, fill

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmark"))
from common import markdown  # noqa: E402

TABLE = "exports"


def table(exports: Sequence[dict]) -> str:
    """A row for each export: what, how large, and how far onnxruntime is off at any size."""
    columns = ["config", "exported", "parameters, M", "file, MB", "dynamic", "largest difference"]
    rows = []
    for export in sorted(exports, key=lambda export: (export["part"], export["parameters"])):
        differences = [max(check["differences"].values()) for check in export["checks"]]
        rows.append(
            [
                f"[{Path(export['config']).stem}](../{export['config']})",
                export["part"],
                f"{export['parameters'] / 1e6:.1f}",
                f"{export['bytes'] / 2**20:.0f}",
                ", ".join(export["dynamic"]),
                f"{max(differences):.1e}",
            ]
        )
    shapes = sorted({tuple(check["shape"]) for export in exports for check in export["checks"]})
    versions = sorted({tuple(export["versions"].items()) for export in exports})
    return (
        f"{markdown(columns, rows)}\n\n"
        f"Images: {', '.join('{} x {}x{}'.format(*shape) for shape in shapes)} (batch x HxW). "
        + "; ".join(", ".join(f"{name} {number}" for name, number in x) for x in versions)
        + "."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    page, listed = ROOT / "docs/deploy.md", ROOT / "docs/export.json"
    if not listed.is_file():
        sys.exit(f"error: no file {listed}: make it with tools/export_onnx.py --report")
    exports = json.loads(listed.read_text())["exports"]
    page.write_text(fill(page.read_text(), TABLE, table(exports)))
    print(f"written: {page}")


if __name__ == "__main__":
    main()
