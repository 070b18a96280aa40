"""ViG visual backbones (gated linear attention) for mmdet, mmseg and mmpretrain.

`import vig_mm` is light: it loads nothing but this file. The models are imported on first use,
so the operator `vig_mm.kernels` works where only torch is installed. A config needs no import at
all: `type='vig_mm.ViG'` makes mmengine import `vig_mm.registry` by itself.
"""

from importlib import import_module
from typing import Any

from .version import __version__

_MODELS = ("HierViG", "SimplePyramid", "ViG", "ViGAdapter")
_MM_PACKAGES = ("mmengine", "mmcv")  # all that vig_mm.models may import of OpenMMLab

__all__ = ["__version__", *_MODELS]


def __getattr__(name: str) -> Any:
    """Import a model when it is first asked for (PEP 562).

    Raises:
        AttributeError: there is no such name.
        ImportError: an OpenMMLab package that the models build on is not installed.
    """
    if name not in _MODELS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(f"{__name__}.models"), name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _MM_PACKAGES:
            raise
        raise ImportError(
            f"vig_mm.{name} needs {missing}, which is not installed: "
            "run `pip install 'vig-mm[mm]'` (docs/install.md)."
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODELS})
