"""Convert YOLO, Pascal VOC, LabelMe, VIA or CVAT annotations to a COCO file.

Boxes and polygons stay as exact as they are; images are not touched.
"""

import argparse
import json
import sys
from pathlib import Path

from vig_mm.datasets.to_coco import FORMATS, FormatError, convert

EXAMPLE = """examples:
  python tools/data/convert.py --from yolo data/my/data.yaml data/my/train.json
  python tools/data/convert.py --from yolo data/my/data.yaml data/my/val.json --split val
  python tools/data/convert.py --from voc data/my/Annotations data/my/train.json
  python tools/data/convert.py --from labelme data/my/json data/my/train.json
  python tools/data/convert.py --from via my/via.json my/train.json --images my/images
  python tools/data/convert.py --from cvat data/my/annotations.xml data/my/train.json
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--from", dest="kind", choices=FORMATS, required=True, help="format of SRC")
    parser.add_argument(
        "source", metavar="SRC", help="data.yaml, xml or json file, or their folder"
    )
    parser.add_argument("target", metavar="DST.json", type=Path, help="COCO file to write")
    parser.add_argument("--images", help="folder of the images, where SRC does not say their size")
    parser.add_argument("--split", default="train", help="of data.yaml (train)")
    parser.add_argument(
        "--classes", nargs="+", metavar="NAME", help="order of the classes (SRC's, or alphabetical)"
    )
    args = parser.parse_args()
    if args.target.suffix != ".json":
        parser.error(f"DST must end in .json, not {args.target.name!r}")
    return args


def main() -> None:
    args = parse_args()
    try:
        content, skipped = convert(args.kind, args.source, args.images, args.split, args.classes)
    except FormatError as error:
        sys.exit(f"{sys.argv[0]}: error: {error}")
    args.target.parent.mkdir(parents=True, exist_ok=True)
    args.target.write_text(json.dumps(content) + "\n")
    counts = ", ".join(f"{len(content[key])} {key}" for key in content)
    left_out = f"; {skipped} points or lines left out" if skipped else ""
    print(f"{args.target}: {counts}{left_out}")


if __name__ == "__main__":
    main()
