"""Run several tools after one another in every process of one launch, which saves the imports.

Usage: torchrun ... run_tools.py COMMANDS.json, a list of [tool under tools/, argument, ...]
"""

import json
import runpy
import sys
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[3] / "tools"

for name, *arguments in json.loads(Path(sys.argv[1]).read_text()):
    sys.argv = [name, *arguments]
    runpy.run_path(str(TOOLS / name), run_name="__main__")
