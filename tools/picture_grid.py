"""Put the first pictures that `tools/test.py --show-dir` drew into one picture.

Example: python tools/picture_grid.py work_dirs/demo/pictures work_dirs/demo/predictions.png
"""

import argparse
import sys
from pathlib import Path

from PIL import Image

SUFFIXES = (".jpg", ".jpeg", ".png")
GAP = 12  # pixels between pictures


def picture_grid(paths: list[Path], columns: int, width: int) -> Image.Image:
    """Lay pictures out in rows.

    Args:
        paths: picture files, in reading order.
        columns: pictures beside each other.
        width: pixels; every picture is scaled to this width.
    """
    pictures = []
    for path in paths:
        with Image.open(path) as picture:
            height = round(picture.height * width / picture.width)
            pictures.append(
                picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
            )
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    heights = [max(picture.height for picture in row) for row in rows]
    size = (columns * (width + GAP) + GAP, sum(height + GAP for height in heights) + GAP)
    grid = Image.new("RGB", size, "white")
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        for column, picture in enumerate(row):
            grid.paste(picture, (GAP + column * (width + GAP), top))
        top += height + GAP
    return grid


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", type=Path, help="folder of pictures, searched with its subfolders"
    )
    parser.add_argument("out", type=Path, help="picture to write")
    parser.add_argument("--count", type=int, default=8, help="how many, in order of name (8)")
    parser.add_argument("--columns", type=int, default=2, help="pictures beside each other (2)")
    parser.add_argument("--width", type=int, default=640, help="pixels of each picture (640)")
    args = parser.parse_args()
    if min(args.count, args.columns, args.width) < 1:
        parser.error("--count, --columns and --width must be 1 or more")
    paths = sorted(path for path in args.folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        sys.exit(
            f"picture_grid.py: error: no picture under {args.folder}; draw some first with "
            "tools/test.py --show-dir"
        )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    picture_grid(paths[: args.count], args.columns, args.width).save(args.out)
    print(f"{args.out}: {min(args.count, len(paths))} of {len(paths)} pictures")


if __name__ == "__main__":
    main()
