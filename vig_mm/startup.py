"""What every program of an environment gets at its start, by `python -m vig_mm.ops enable`.

- mmcv-lite's operators (`vig_mm.ops`);
- mmengine's own checkpoints: torch 2.6 and newer refuse the training log in them, and the
  libraries' inferencers read a checkpoint before a config's model can import anything;
- `_base_ = 'vig_mm::…'` (`vig_mm.own_configs`).

Nothing heavy is loaded until mmengine is.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec

from . import ops  # noqa: F401 (puts its finder in place)


class MMEngineWatcher:
    """Prepares mmengine when its reader of checkpoints is imported; finds no module itself."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: object = None
    ) -> ModuleSpec | None:
        if fullname == "mmengine.runner.checkpoint":
            sys.meta_path.remove(self)
            from .own_configs import tell_mmengine_of_own_configs
            from .serialization import allow_mmengine_types

            allow_mmengine_types()
            tell_mmengine_of_own_configs()
        return None


sys.meta_path.insert(0, MMEngineWatcher())
