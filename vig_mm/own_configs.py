"""`_base_ = 'vig_mm::mmdet/NAME.py'`: our configs as the base of one that lies anywhere."""

import difflib
from pathlib import Path

from mmengine.config import Config

PREFIX = "vig_mm::"
_find = Config._get_cfg_path


def tell_mmengine_of_own_configs() -> None:
    """Let mmengine find our configs, where it knows those of OpenMMLab's own packages only."""
    Config._get_cfg_path = staticmethod(_find_with_own)


def _find_with_own(cfg_path: str, filename: str) -> tuple[str, str | None]:
    """Path and scope of an entry of `_base_` in the config `filename`."""
    if not cfg_path.startswith(PREFIX):
        return _find(cfg_path, filename)
    package = Path(__file__).parent
    # of a regular install, and of an editable one
    places = (package / ".mim/configs", package.parent / "configs")
    folder = next(place for place in places if place.is_dir())
    path = folder / cfg_path.removeprefix(PREFIX)
    if not path.is_file():
        names = [x.relative_to(folder).as_posix() for x in folder.glob("mm*/**/*.py")]
        close = difflib.get_close_matches(cfg_path.removeprefix(PREFIX), names, 1)
        meant = f"did you mean {PREFIX}{close[0]!s}?" if close else f"they are in {folder}"
        raise FileNotFoundError(f"vig_mm has no config {cfg_path!r}: {meant}")
    return str(path), None
