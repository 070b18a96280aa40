"""Convert a ViG checkpoint between the public form and the mm form.

The direction follows from SRC: a public file (weights under `model` or `model_ema`) becomes an mm
file, an mm file (weights under `state_dict`) becomes a public one.
"""

import argparse
import sys
from pathlib import Path

import torch

from vig_mm.checkpoints.conversion import is_public, to_backbone, to_classifier, to_public
from vig_mm.checkpoints.reading import CheckpointError, read_checkpoint, weights


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python tools/convert_checkpoint.py vig_h_t.pth vig_h_t_mm.pth",
    )
    parser.add_argument("src", help="public ViG file, or mm file of a classifier or backbone")
    parser.add_argument("dst", help="file to write")
    parser.add_argument(
        "--form",
        choices=("classifier", "backbone"),
        default="classifier",
        help="to the mm form only: a whole classifier (backbone.*, head.fc.*) or the bare backbone",
    )
    parser.add_argument(
        "--weights",
        choices=("model_ema", "model"),
        help="which of a public file's weights; default: model_ema where there is one",
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    checkpoint = read_checkpoint(args.src)
    if is_public(checkpoint):
        state, key = weights(checkpoint, args.weights, path=args.src)
        state = to_classifier(state) if args.form == "classifier" else to_backbone(state)
        converted, form = {"state_dict": state, "meta": {}}, f"mm {args.form}"
    else:
        state, key = weights(checkpoint, path=args.src)
        converted, form = {"model": to_public(state)}, "public"
    dst = Path(args.dst)
    dst.parent.mkdir(parents=True, exist_ok=True)
    torch.save(converted, dst)
    print(f"{args.src} [{key or 'bare state dict'}] -> {dst}: {form} form, {len(state)} tensors")


if __name__ == "__main__":
    try:
        main()
    except CheckpointError as error:
        sys.exit(f"error: {error}")
