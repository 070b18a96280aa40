"""Listing of files and folders, and hints where they are missing."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from .findings import DataError

_DIGITS = "python tools/data/make_digits.py"
# Endings by which a file that a data set does not take is an image all the same.
IMAGES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm",
          ".pgm", ".heic", ".avif")  # fmt: skip


def files(folder: str, suffixes: tuple[str, ...], any_case: bool = False) -> Iterator[str]:
    """Files below a folder with one of the suffixes, relative to it; hidden ones aside.

    mmengine leaves hidden files alone, too.

    Raises:
        DataError: a folder cannot be listed, so that its files would be left out unseen.
    """
    for path, _, names in os.walk(folder, onerror=_refuse, followlinks=True):
        for name in names:
            suffixed = (name.lower() if any_case else name).endswith(tuple(suffixes))
            if suffixed and not name.startswith("."):
                yield os.path.relpath(os.path.join(path, name), folder)


def entries(folder: str) -> list[os.DirEntry]:
    """What lies in a folder.

    Raises:
        DataError: the folder cannot be listed.
    """
    try:
        return list(os.scandir(folder))
    except OSError as error:
        _refuse(error)


def absent(names: list[str], folder: str) -> list[str]:
    """Those of the names that are no files in a folder.

    Raises:
        DataError: the folder cannot be listed.
    """
    # One listing instead of a look-up per image, which is slow on network file systems.
    there = {entry.name for entry in entries(folder)}
    return [
        name
        for name in names
        if name not in there and not ("/" in name and os.path.isfile(os.path.join(folder, name)))
    ]


def _refuse(error: OSError) -> NoReturn:
    advice = "; correct its permissions" if isinstance(error, PermissionError) else ""
    raise DataError(
        f"folder {error.filename!r} cannot be read: {error.strerror}{advice}"
    ) from error


def hint(path: str) -> str:
    """How to make the data at a path, where this project does."""
    return f"; the built-in digits are made by `{_DIGITS}`" if "digits" in Path(path).parts else ""
