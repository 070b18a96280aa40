"""Convert YOLO or Pascal VOC annotations to a COCO file.

Boxes and polygons stay as exact as they are; images are not touched. What has no place in COCO, or
cannot be read, is named, and nothing is written.
"""

import argparse
import json
import sys
from pathlib import Path

from vig_mm.datasets.to_coco import FORMATS, OTHERS, convert
from vig_mm.errors import DataError

EXAMPLE = """examples:
  python tools/data/convert.py --from yolo data/my/data.yaml data/my/train.json
  python tools/data/convert.py --from yolo data/my/data.yaml data/my/val.json --split val
  python tools/data/convert.py --from voc data/my/Annotations data/my/train.json
LabelMe, VIA and CVAT export COCO themselves: --from labelme, via or cvat says how.
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--from", dest="kind", choices=(*FORMATS, *OTHERS), required=True, help="format of SRC"
    )
    parser.add_argument("source", metavar="SRC", help="data.yaml, or a folder of xml")
    parser.add_argument("target", metavar="DST.json", type=Path, help="COCO file to write")
    parser.add_argument("--images", help="folder of the images, where SRC does not tell")
    parser.add_argument("--split", default="train", help="of data.yaml (train)")
    parser.add_argument(
        "--classes", nargs="+", metavar="NAME", help="order of the classes (SRC's, or alphabetical)"
    )
    parser.add_argument(
        "--as-polygons", action="store_true", help="yolo: take oriented boxes for polygons"
    )
    args = parser.parse_args()
    if args.target.suffix != ".json":
        parser.error(f"DST must end in .json, not {args.target.name!r}")
    return args


def main() -> None:
    args = parse_args()
    try:
        content, notes = convert(
            args.kind, args.source, args.images, args.split, args.classes, args.as_polygons
        )
    except DataError as error:
        sys.exit(f"{sys.argv[0]}: error: {error}")
    args.target.parent.mkdir(parents=True, exist_ok=True)
    args.target.write_text(json.dumps(content) + "\n")
    counts = ", ".join(f"{len(content[key])} {key}" for key in content)
    print(f"{args.target}: {counts}", *notes, sep="\n- ")


if __name__ == "__main__":
    main()
