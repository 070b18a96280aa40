"""Text files that list the images of a data set, one a line."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mmengine.fileio import list_from_file

if TYPE_CHECKING:
    from .check import DataCheck


def lines_of(found: DataCheck, where: str, path: str) -> list[str]:
    """The lines of an `ann_file`, split as the libraries do; none after noting the problem.

    Args:
        found: Takes the finding.
        where: Key of the data set in its config.
        path: The file.
    """
    if not os.path.isfile(path):
        found.missing(where, "ann_file", path, "list of images")
        return []
    try:
        lines = list_from_file(path)
    except UnicodeDecodeError as error:
        found.error(
            where, "list", f"{where}.ann_file: {path!r} is not UTF-8 ({error}): save it as UTF-8"
        )
        return []
    except OSError as error:
        found.error(
            where, "list", f"{where}.ann_file cannot be read ({error}): correct its permissions"
        )
        return []
    if not lines:
        found.error(
            where,
            "no-images",
            f"{where}.ann_file: {path!r} is empty: list the images in it, one a line",
        )
    return lines
