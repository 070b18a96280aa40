"""mmcv's compiled operators through torchvision, where mmcv comes without its own (mmcv-lite).

Every operator of `mmcv.ops` takes its functions by name from one compiled module, `mmcv._ext`.
`import vig_mm.ops` puts a finder at the end of `sys.meta_path` that offers `ext.py` under that
name: a compiled `mmcv._ext` is found before it and always wins. Nothing is loaded until mmcv asks.

`vig_mm.registry` and the tools import this package. For programs that import `mmcv.ops` before
anything of vig_mm (mmdet's own tools, `mim train mmdet`, a notebook),

    python -m vig_mm.ops enable      # disable takes it back

makes every Python of an environment do so when it starts; `tools/setup_env.sh` has done that.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_file_location
from pathlib import Path

MODULE = "mmcv._ext"
STAND_IN = Path(__file__).with_name("ext.py")
COMPILE = (
    "install mmcv with its own compiled operators in place of mmcv-lite: "
    "`bash tools/setup_env.sh --mmcv compiled`"
)


class OperatorFinder:  # importlib.abc's base class would double the time that a start takes
    """Finds `ext.py` for `mmcv._ext`, and nothing else."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: object = None
    ) -> ModuleSpec | None:
        return spec_from_file_location(MODULE, STAND_IN) if fullname == MODULE else None


def install() -> None:
    """Offer the operators to mmcv; a second call changes nothing."""
    if not any(isinstance(finder, OperatorFinder) for finder in sys.meta_path):
        sys.meta_path.append(OperatorFinder())
    # If mmcv.cnn was imported before, it has looked for this class of mmcv.ops and done without.
    early = sys.modules.get("mmcv.cnn.bricks.transformer")
    if early is not None and not hasattr(early, "MultiScaleDeformableAttention"):
        from mmcv.ops import multi_scale_deform_attn

        early.MultiScaleDeformableAttention = multi_scale_deform_attn.MultiScaleDeformableAttention


def provider() -> str | None:
    """Where mmcv's operators come from: `compiled`, `torchvision`, or None without an mmcv."""
    try:
        spec = find_spec(MODULE)
    except ModuleNotFoundError:
        return None
    return "torchvision" if spec is None or spec.origin == str(STAND_IN) else "compiled"


install()
