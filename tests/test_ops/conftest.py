"""mmcv's operators with vig_mm's functions in the place of mmcv's compiled ones."""

import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType

import pytest

from vig_mm.ops import MODULE, STAND_IN


@pytest.fixture(scope="session")
def stand_in() -> ModuleType:
    pytest.importorskip("mmcv")
    if MODULE in sys.modules and sys.modules[MODULE].__file__ == str(STAND_IN):
        return sys.modules[MODULE]
    spec = spec_from_file_location("stand_in", STAND_IN)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def serve(stand_in: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """After a call of it mmcv's operators use vig_mm's functions."""
    import mmcv.ops  # noqa: F401

    def put_in_place() -> None:
        for name, module in list(sys.modules.items()):
            if name.startswith("mmcv.ops.") and hasattr(module, "ext_module"):
                monkeypatch.setattr(module, "ext_module", stand_in)

    return put_in_place
