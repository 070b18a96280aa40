"""Write the digits for classification as 16-bit TIFF of four bands: red, green, blue, infrared.

Infrared is made up: the negative of the grey picture. For trying out other images than RGB:

    python tools/data/make_digits.py
    python tools/data/digits_to_bands.py
    python tools/train.py configs/mmpretrain/vig-h-mini_digits-4bands.py
"""

import argparse
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

DEPTH = 257  # 255 * 257 = 65535


def bands(image: Image.Image) -> np.ndarray:
    """RGB -> uint16 ``[h, w, 4]``."""
    grey = 255 - np.asarray(image.convert("L"), np.uint16)
    return np.dstack([np.asarray(image.convert("RGB"), np.uint16), grey]) * np.uint16(DEPTH)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="?", type=Path, default="data/digits/imagenet")
    parser.add_argument("target", nargs="?", type=Path, default="data/digits/bands")
    args = parser.parse_args()
    paths = sorted(args.source.rglob("*.jpg"))
    if not paths:
        parser.error(f"no jpg below {str(args.source)!r}: run python tools/data/make_digits.py")
    for path in paths:
        target = (args.target / path.relative_to(args.source)).with_suffix(".tif")
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            tifffile.imwrite(target, bands(image), photometric="rgb", compression="zlib")
    print(f"{len(paths)} files in {args.target}")


if __name__ == "__main__":
    main()
