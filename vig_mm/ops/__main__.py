"""Say where mmcv's operators come from, or make every Python of this environment find vig_mm's.

    python -m vig_mm.ops             # says where mmcv's operators come from
    python -m vig_mm.ops enable      # for mmdet's own tools, mim and notebooks
    python -m vig_mm.ops disable     # takes it back

`enable` writes one file, vig_mm_ops.pth, into site-packages, which runs `vig_mm.startup`.
"""

import argparse
import sysconfig
from pathlib import Path

from . import provider

# Python runs such a line when it starts. It must not fail once vig_mm is uninstalled.
LINE = 'import importlib.util as u; u.find_spec("vig_mm") and __import__("vig_mm.startup")\n'


def hook() -> Path:
    return Path(sysconfig.get_path("purelib")) / "vig_mm_ops.pth"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m vig_mm.ops",
        description="Without a command: say where mmcv's operators come from.",
    )
    parser.add_argument("command", nargs="?", choices=("enable", "disable"))
    command = parser.parse_args().command
    if command == "enable":
        hook().write_text(LINE)
    elif command == "disable":
        hook().unlink(missing_ok=True)
    state = "enabled" if hook().exists() else "disabled"
    source = {
        "compiled": "mmcv's own, compiled",
        "torchvision": "vig_mm.ops, through torchvision",
        None: "none, as mmcv is not installed",
    }[provider()]
    print(f"mmcv's operators: {source}")
    print(f"for programs that do not import vig_mm.ops: {state} ({hook()})")


if __name__ == "__main__":
    main()
