"""Reading of a text file that lists the images of a data set."""

import os

from mmengine.fileio import list_from_file

from .report import Report


def lines_of(found: Report, where: str, path: str) -> list[str]:
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
