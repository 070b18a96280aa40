"""Make a folder from which this checkout can be imported without being installed.

    python tools/benchmark/source_tree.py FOLDER && PYTHONPATH=FOLDER python ...

setup.py installs the folder `kernels` as `vig_mm.kernels`; here links put it in its place.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def link(folder: Path) -> None:
    """Fill ``folder`` with the package `vig_mm`, as links into this checkout."""
    package = folder / "vig_mm"
    package.mkdir(parents=True)
    for source in sorted((ROOT / "vig_mm").iterdir()):
        if source.name != "__pycache__":
            (package / source.name).symlink_to(source)
    (package / "kernels").symlink_to(ROOT / "kernels")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python source_tree.py FOLDER (must not hold a vig_mm yet)")
    link(Path(sys.argv[1]))
