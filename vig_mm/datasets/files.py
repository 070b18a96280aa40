"""Files of data sets: endings of pictures, listings of folders, and names in messages."""

import os
from collections.abc import Iterable
from typing import Any, NoReturn

from vig_mm.errors import DataError

IMAGES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm",
          ".pgm", ".mpo", ".heic", ".avif")  # fmt: skip


def files(folder: str | os.PathLike, suffixes: Iterable[str] = ("",), any_case=False) -> list[str]:
    """Files below a folder with one of the suffixes, relative to it, sorted; hidden ones aside.

    Raises:
        DataError: A folder cannot be listed, so that its files would be left out unseen.
    """
    found, suffixes = [], tuple(suffixes)
    for path, _, names in os.walk(folder, onerror=_refuse, followlinks=True):
        for name in names:
            if (name.lower() if any_case else name).endswith(suffixes) and name[0] != ".":
                found.append(os.path.relpath(os.path.join(path, name), folder))
    return sorted(found)


def entries(folder: str) -> list[os.DirEntry]:
    """What lies in a folder; a `DataError` if it cannot be listed."""
    try:
        return list(os.scandir(folder))
    except OSError as error:
        _refuse(error)


def _refuse(error: OSError) -> NoReturn:
    advice = "; correct its permissions" if isinstance(error, PermissionError) else ""
    raise DataError(
        f"folder {error.filename!r} cannot be read: {error.strerror}{advice}"
    ) from error


def some(names: Iterable[Any], limit: int = 5) -> str:
    """The first few names, and how many there are."""
    names = list(names)
    more = f", ... ({len(names)} in all)" if len(names) > limit else ""
    return (", ".join(map(str, names[:limit])) or "none") + more
