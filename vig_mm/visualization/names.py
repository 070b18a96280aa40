"""Names of drawn pictures: the path below the data's root, so that none overwrites another."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vig_mm.checks.config import leaves


def data_root(dataset: Any) -> Path:
    """The folder that the images of a data set's config lie below."""
    roots = {os.path.abspath(one.get("data_root") or "") for _, one in leaves("dataset", dataset)}
    return Path(os.path.commonpath(roots))


def drawn_names(paths: Sequence[str | Path], root: Path) -> list[Path]:
    """A file to write for each image: ``sub/a.jpg`` for ``root/sub/a.png``.

    Where two differ in nothing but their endings these are kept: ``a_png.jpg``.
    """
    names = []
    for path in paths:
        whole = Path(os.path.abspath(path))
        inside = whole.is_relative_to(root)
        names.append(whole.relative_to(root if inside else whole.anchor))
    same = Counter(name.with_suffix("") for name in dict.fromkeys(names))
    return [
        name.with_name(name.name.replace(".", "_") + ".jpg")
        if same[name.with_suffix("")] > 1
        else name.with_suffix(".jpg")
        for name in names
    ]
