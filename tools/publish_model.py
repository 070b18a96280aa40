"""Make a training checkpoint ready to publish: weights, config and class names, nothing else.

Optimizer, schedules, log and message hub are left out. Of a run with EMAHook the averaged weights
are taken. The file is named OUT-<hash>.pth after the first eight hexadecimal digits of its SHA-256,
and it can be read with torch's protection on (`torch.load(..., weights_only=True)`).

It loads by `init_cfg=dict(type='Pretrained', checkpoint=...)`, by tools/test.py, and by the
libraries' inferencers, which find the config in it (docs/predict.md).

Example: python tools/publish_model.py work_dirs/CONFIG/epoch_12.pth models/mask-rcnn_vig-h-t.pth
"""

# ruff: noqa: E402
import argparse
from pathlib import Path

from vig_mm.checks.environment import exit_without_mmengine

exit_without_mmengine()

from vig_mm.apis.launch import run
from vig_mm.checkpoints.publishing import publish
from vig_mm.errors import UsageError


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="checkpoint file that a training wrote")
    parser.add_argument("out", type=Path, help="file to write; the hash is added to its name")
    args = parser.parse_args()
    if args.out.is_dir():
        raise UsageError(f"OUT is a file's name, and {str(args.out)!r} is a folder")
    published, content = publish(args.checkpoint, args.out)
    meta, before = content["meta"], args.checkpoint.stat().st_size
    classes = meta["dataset_meta"]["classes"]
    print(
        f"{published}: {published.stat().st_size / 2**20:.1f} MB of {before / 2**20:.1f} MB\n"
        f"weights: {len(content['state_dict'])} tensors, "
        f"{'averaged (EMAHook)' if meta['averaged'] else 'as trained (no EMAHook)'}\n"
        f"classes: {len(classes)} ({', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''})"
    )


if __name__ == "__main__":
    run(main)
