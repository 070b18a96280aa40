"""Finding files, and what to say of those that are not there."""

import os
from collections.abc import Iterator
from pathlib import Path

_DIGITS = "python tools/data/make_digits.py"
# Endings by which a file that a data set does not take is an image all the same.
IMAGES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm",
          ".pgm", ".heic", ".avif")  # fmt: skip


def files(folder: str, suffixes: tuple[str, ...], any_case: bool = False) -> Iterator[str]:
    """Files below a folder with one of the suffixes, relative to it; hidden ones aside.

    mmengine leaves hidden files alone, too.
    """
    for path, _, names in os.walk(folder, followlinks=True):
        for name in names:
            suffixed = (name.lower() if any_case else name).endswith(tuple(suffixes))
            if suffixed and not name.startswith("."):
                yield os.path.relpath(os.path.join(path, name), folder)


def absent(names: list[str], folder: str) -> list[str]:
    """Those of the names that are no files in a folder."""
    # One listing instead of a look-up per image, which is slow on network file systems.
    there = set(os.listdir(folder))
    return [
        name
        for name in names
        if name not in there and not ("/" in name and os.path.isfile(os.path.join(folder, name)))
    ]


def hint(path: str) -> str:
    """How to make the data at a path, where this project does."""
    return f"; the built-in digits are made by `{_DIGITS}`" if "digits" in Path(path).parts else ""
