"""Draw what a config feeds its model: augmented pictures with their boxes, masks and labels.

The pictures come out of the config's data loader and the model's data preprocessor, so they show
everything between file and network: the pipeline, the order and mix of a batch, padding, resizing
of whole batches, and mixup or CutMix (`model.train_cfg` of a classifier) with the shares of the
mixed classes. Normalisation is undone. With --split val or test no augmentation is applied.

Pictures are written as OUT_DIR/<number>_<path below the data's root>.jpg, or together into one
picture with --grid.

Example: python tools/browse_dataset.py CONFIG --count 8 --grid batch.png
"""

# ruff: noqa: E402
import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vig_mm.checks.environment import exit_without_mmengine

exit_without_mmengine()

import numpy as np
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner, set_random_seed
from picture_grid import picture_grid
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from vig_mm.apis.launch import add_config_options, load_config, run
from vig_mm.checks.config import leaves
from vig_mm.checks.data import prepare_data
from vig_mm.checks.data.guard import guard
from vig_mm.errors import SampleError, UsageError
from vig_mm.visualization.pictures import as_picture, save
from vig_mm.visualization.sample_pictures import (
    TRUTH,
    data_root,
    drawn_names,
    sample_pictures,
    truth_frame,
)

SPLITS = ("train", "val", "test")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="config file")
    parser.add_argument("--split", choices=SPLITS, default="train", help="which loader (train)")
    parser.add_argument("--count", type=int, default=12, help="how many pictures (12)")
    written = parser.add_mutually_exclusive_group()
    written.add_argument(
        "--out-dir",
        help="folder of the pictures drawn (default: work_dirs/browse_dataset/CONFIG/SPLIT)",
    )
    written.add_argument("--grid", metavar="FILE", type=Path, help="write one picture of them all")
    parser.add_argument("--columns", type=int, default=4, help="of --grid (4)")
    parser.add_argument("--seed", type=int, default=0, help="seed of order and augmentation (0)")
    add_config_options(parser)
    args = parser.parse_args()
    if min(args.count, args.columns) < 1:
        parser.error("--count and --columns must be 1 or more")
    if args.grid is not None and args.grid.suffix.lower() not in Image.registered_extensions():
        parser.error(f"--grid must end in .png or .jpg, not {args.grid.name!r}")
    return args


def batches(cfg: Config, split: str, seed: int) -> tuple[Any, Iterator]:
    """The data set of a split, and its batches as its data loader makes them.

    A sample that cannot be read is named, and its batch goes on without it.
    """
    loader = cfg.get(f"{split}_dataloader")
    if loader is None:
        raise UsageError(f"the config has no {split}_dataloader")
    # in this process, so that the seed decides about every augmentation
    loader = {**loader, "num_workers": 0, "persistent_workers": False}
    loader.pop("prefetch_factor", None)
    built = Runner.build_dataloader(loader, seed=seed)
    guard(built.dataset)

    def sampled() -> Iterator:
        for indices in built.batch_sampler:
            samples = []
            for i in indices:
                try:
                    samples.append(built.dataset[i])
                except SampleError as error:
                    print(f"skipped: {error}", file=sys.stderr)
            if samples:
                yield built.collate_fn(samples)

    return built.dataset, sampled()


def fed(preprocessor: nn.Module, batch: dict, training: bool) -> Iterator[tuple[np.ndarray, Any]]:
    """Put a batch through the data preprocessor.

    Yields:
        each image as RGB ``[h, w, 3]`` (uint8) with its normalisation undone, and its sample.
    """
    out = preprocessor(batch, training)
    for image, sample in zip(out["inputs"], out["data_samples"], strict=True):
        yield to_picture(preprocessor, image), sample


def to_picture(preprocessor: nn.Module, image: Tensor) -> np.ndarray:
    """A network's input ``[C, h, w]`` -> RGB ``[h, w, 3]`` (uint8)."""
    if hasattr(preprocessor, "mean"):
        image = image * preprocessor.std + preprocessor.mean
    picture = as_picture(image)
    if len(image) != 3:  # grey, or the first bands of many, as they stand in the file
        return picture
    # mmdet's, mmseg's and mmpretrain's name of "BGR files become RGB"
    names = ("_channel_conversion", "channel_conversion", "to_rgb")
    is_rgb = any(getattr(preprocessor, name, False) for name in names)
    return picture if is_rgb else picture[..., ::-1]


def pictures(
    cfg: Config, args: argparse.Namespace, folder: Path
) -> Iterator[tuple[str, Image.Image]]:
    """Yield the name of each picture's file, without suffix, and the picture drawn."""
    training = args.split == "train"
    dataset, loader = batches(cfg, args.split, args.seed)
    with MODELS.switch_scope_and_registry(cfg.default_scope) as registry:
        preprocessor = registry.build(cfg.model).data_preprocessor
    drawer = sample_pictures(cfg.default_scope, dataset.metainfo)
    key = f"{args.split}_dataloader.dataset"
    (_, leaf), *_ = leaves(key, cfg[f"{args.split}_dataloader"].dataset)
    root = data_root(cfg[f"{args.split}_dataloader"].dataset)
    drawer.write_legend(args.grid.parent if args.grid else folder)
    count = 0
    for batch in loader:
        for image, sample in fed(preprocessor, batch, training):
            if not drawer.has_truth(sample):
                raise UsageError(f"{key} has no ground truth: its pipeline gives no labels")
            frame = None
            if not training:
                # annotations may lie in the original image, which the padding is no part of
                height, width = sample.img_shape[:2]
                image = image[:height, :width]
                frame = truth_frame(leaf.get("pipeline", []), sample)
            (inside,) = drawn_names([sample.img_path], root)
            name = f"{count:04d}_{inside.with_suffix('').as_posix().replace('/', '_')}"
            yield name, drawer.draw(image, sample, (TRUTH,), frame)
            count += 1
            if count == args.count:
                return


def write_all(cfg: Config, args: argparse.Namespace, folder: Path) -> list[Path]:
    paths = []
    drawn = pictures(cfg, args, folder)
    for name, picture in track(drawn, "drawing", args.count, console=Console(stderr=True)):
        paths.append(folder / f"{name}.jpg")
        save(picture, paths[-1])
    if not paths:
        raise UsageError("no picture can be read")
    return paths


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    for line in prepare_data(cfg, (args.split,)):
        print(line, file=sys.stderr)
    init_default_scope(cfg.default_scope)
    set_random_seed(args.seed)
    if args.grid is None:
        default = Path("work_dirs/browse_dataset", Path(args.config).stem, args.split)
        folder = Path(args.out_dir or default)
        paths = write_all(cfg, args, folder)
        print(f"{len(paths)} pictures of {args.split}_dataloader in {folder}")
        return
    with TemporaryDirectory() as folder:
        paths = write_all(cfg, args, Path(folder))
        with Image.open(paths[0]) as first:
            grid = picture_grid(paths, min(args.columns, len(paths)), first.width)
    args.grid.parent.mkdir(parents=True, exist_ok=True)
    grid.save(args.grid, quality=90)
    print(f"{args.grid}: {len(paths)} pictures of {args.split}_dataloader")


if __name__ == "__main__":
    run(main)
