"""What every program of an environment gets at its start, by `python -m vig_mm.ops enable`.

mmcv-lite's operators (`vig_mm.ops`), and mmengine's own checkpoints: torch 2.6 and newer refuse the
training log in them, and the libraries' inferencers read a checkpoint before a config's model can
import anything. Nothing heavy is loaded until mmengine is.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec

from . import ops  # noqa: F401 (puts its finder in place)


class CheckpointTypes:
    """Allows the types of that log when mmengine's reader is imported; finds nothing itself."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: object = None
    ) -> ModuleSpec | None:
        if fullname == "mmengine.runner.checkpoint":
            sys.meta_path.remove(self)
            from .serialization import allow_mmengine_types

            allow_mmengine_types()
        return None


sys.meta_path.insert(0, CheckpointTypes())
