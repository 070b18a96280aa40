"""Faults in data: quick before a run, in full, and at the sample that does not fit.

One file a format, with its rules: `coco`, `label_maps`, `folders`, `images`. `check` puts them
together, `guard` stops a run at a file that does not fit, `repair` mends what is unambiguous.
"""

from mmengine.config import Config

from .check import DataCheck, check_data
from .repair import repair

__all__ = ["DataCheck", "check_data", "prepare_data", "repair"]


def prepare_data(cfg: Config, splits: tuple[str, ...], check: bool = True) -> list[str]:
    """Check the data of a config unless that is not wanted, then repair it; what to log.

    Raises:
        DataError: See `check_data`.
    """
    read: dict[str, dict | str] = {}  # large files are read once
    lines = check_data(cfg, splits, read) if check else []
    return lines + repair(cfg, splits, read)
