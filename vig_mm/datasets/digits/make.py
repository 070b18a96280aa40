"""The built-in digits data: small COCO, ADE20K and ImageNet sets with nothing downloaded.

Real pixels that scikit-learn ships (1797 handwritten digits, two photographs) are composed into
scenes: `scenes` makes a scene, `layouts` writes the files, this module looks after
the folder (arguments, reuse, and never a half-made set that looks whole).
"""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .classes import Progress

GENERATOR = "vig_mm.digits"
VERSION = 1  # raise it when the same arguments give other files
META = "meta.json"
MIN_SIDE = 32  # pixels; a digit of fewer than about 18 pixels can't be read
MAX_SIDE = 4096
SOURCES = (
    "handwritten digits: UCI Optical Recognition of Handwritten Digits (scikit-learn load_digits)",
    "photographs: china.jpg (danielbuechele) and flower.jpg (vultilion), CC BY 2.0, "
    "cropped, scaled and brightened (scikit-learn load_sample_images)",
)


def make_digits(
    root: str | Path,
    *,
    seed: int = 0,
    coco: Sequence[int] = (400, 80),
    ade: Sequence[int] = (400, 80),
    imagenet: Sequence[int] = (200, 40),
    coco_size: Sequence[int] = (192, 256),
    ade_size: Sequence[int] = (128, 128),
    imagenet_size: Sequence[int] = (64, 64),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> bool:
    """Make the digits data under `root`, or find it there already.

    Layout: `coco/{train,val}/*.jpg` with `coco/annotations/{train,val}.json` (RLE masks, so load
    them with `poly2mask=True`); `ade/{images,annotations}/{training,validation}` with labels
    0 ignored (the soft rim of a digit), 1 background, 2..11 zero..nine;
    `imagenet/{train,val}/<class>/*.jpg`; `meta.json` with the arguments, written last.

    The same arguments give the same bytes (for one version of Pillow and its JPEG library), and
    each image depends only on the seed, its layout, split and number: a larger set starts with
    the images of a smaller one. Train and val share neither a digit sample nor a photo region.

    Args:
        root: Folder of the set. It may be missing or empty; a set of other arguments or any
            other content is refused. Built beside its place and renamed, so a killed run leaves
            at most a hidden folder there.
        seed: Non-negative integer.
        coco: Images of (train, val); (0, 0) leaves this layout out.
        ade: Images of (training, validation); (0, 0) leaves this layout out.
        imagenet: Images per class of (train, val); (0, 0) leaves this layout out.
        coco_size: (height, width) in pixels, as the two below; each side 32 to 4096.
        ade_size: See `coco_size`.
        imagenet_size: See `coco_size`.
        overwrite: Replace the digits set that is there, whatever its arguments.
        progress: Called after every image as `progress(stage, done, total)`, where stage is
            e.g. `coco/train`.

    Returns:
        True if the set was made, False if it was there already and was left as it is.

    Raises:
        ValueError: An argument is out of range, or `root` can't be used.
        FileExistsError: `root` holds a set of other arguments (or a damaged one) and
            `overwrite` is off.
        ImportError: A package that the generator needs is missing.
    """
    arguments: dict[str, Any] = {
        "seed": _integer("seed", seed),
        "coco": _pair("coco", coco),
        "ade": _pair("ade", ade),
        "imagenet": _pair("imagenet", imagenet),
        "coco_size": _pair("coco_size", coco_size, MIN_SIDE, MAX_SIDE),
        "ade_size": _pair("ade_size", ade_size, MIN_SIDE, MAX_SIDE),
        "imagenet_size": _pair("imagenet_size", imagenet_size, MIN_SIDE, MAX_SIDE),
    }
    wanted = [name for name in ("coco", "ade", "imagenet") if any(arguments[name])]
    if not wanted:
        raise ValueError("digits data: coco, ade and imagenet are all (0, 0), nothing to make")

    root = Path(root).expanduser().resolve()
    if _is_there(root, arguments, overwrite):
        return False
    _require("numpy", "PIL.Image", "sklearn.datasets")
    if "coco" in wanted:
        _require("pycocotools.mask")
    from . import layouts, scenes

    sources = scenes.load_sources()
    report = progress or (lambda stage, done, total: None)
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent) as beside:
        made = Path(beside) / "made"
        made.mkdir()
        for name in wanted:
            write = getattr(layouts, f"write_{name}")
            counts, size = arguments[name], arguments[f"{name}_size"]
            write(made / name, sources, arguments["seed"], counts, size, report)
        meta = {
            "generator": GENERATOR,
            "version": VERSION,
            "arguments": arguments,
            "files": _count_files(made),
            "sources": list(SOURCES),
        }
        (made / META).write_text(json.dumps(meta, indent=1) + "\n", encoding="ascii")
        if root.exists():
            root.rename(Path(beside) / "old")  # goes with the temporary folder
        made.rename(root)
    return True


def _is_there(root: Path, arguments: dict[str, Any], overwrite: bool) -> bool:
    """Whether `root` holds exactly this set; raises where it can't be made there either."""
    for path in (root, *root.parents):
        if path.exists() and not path.is_dir():
            raise ValueError(f"digits data: {path} is a file, root {root} must be a folder")
    if not root.exists() or not any(root.iterdir()):
        return False
    meta = _read_meta(root)
    if meta.get("generator") != GENERATOR:
        # Never replaced, not even by overwrite: these files are somebody else's.
        raise ValueError(
            f"digits data: {root} is not empty and holds no {META} of this generator; "
            "name another folder, or empty this one"
        )
    if overwrite:
        return False
    other = [
        f"{key} {meta.get('arguments', {}).get(key)} there, {value} asked for"
        for key, value in arguments.items()
        if meta.get("arguments", {}).get(key) != value
    ]
    if meta.get("version") != VERSION:
        other.append(f"generator version {meta.get('version')} there, {VERSION} here")
    found = _count_files(root)
    if found != meta.get("files"):
        other.append(f"{found} files there, {meta.get('files')} were made")
    if not other:
        return True
    raise FileExistsError(
        f"digits data: {root} holds another set ({'; '.join(other)}); "
        "name another folder, or replace it with overwrite=True (--overwrite)"
    )


def _read_meta(root: Path) -> dict[str, Any]:
    path = root / META
    if not path.is_file():
        return {}
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"digits data: {path} is not readable JSON ({error}); remove {root}"
        ) from error
    return meta if isinstance(meta, dict) else {}


def _count_files(root: Path) -> int:
    """Files of the set below `root`, `meta.json` left out."""
    return sum(path.is_file() for path in root.rglob("*")) - (root / META).is_file()


def _integer(name: str, value: Any, low: int = 0, high: int | None = None) -> int:
    limit = f"at least {low}" if high is None else f"{low} to {high}"
    is_integer = hasattr(value, "__index__") and not isinstance(value, bool)
    if not is_integer or value < low or (high is not None and value > high):
        raise ValueError(f"digits data: {name} must be an integer, {limit}, got {value!r}")
    return int(value)


def _pair(name: str, value: Any, low: int = 0, high: int | None = None) -> list[int]:
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        raise ValueError(f"digits data: {name} must be two integers, got {value!r}")
    return [_integer(f"{name}[{i}]", part, low, high) for i, part in enumerate(value)]


def _require(*modules: str) -> None:
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ImportError(
                f"digits data: cannot import {module} ({error}); "
                "install what the generator needs: pip install 'vig-mm[mm,tools]'"
            ) from error
