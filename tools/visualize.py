"""Draw what a detector, segmentor or classifier predicts: the config's `default_scope` decides.

INPUT is a picture, a folder of pictures (subfolders included) or a video; with --dataset it is left
out, and pictures of the config's test set are drawn beside their ground truth. Boxes and masks are
drawn with class and score, segmentations with a legend, classifications with the five highest
scores. Small pictures are enlarged, so that the text can be read.

Pictures are written as OUT_DIR/<subfolder>/<name>.jpg, videos as OUT_DIR/<name>.mp4.

Examples:
  python tools/visualize.py photos CONFIG CHECKPOINT --out-dir drawn
  python tools/visualize.py CONFIG CHECKPOINT --dataset --count 20
CHECKPOINT may also be a public ViG file, for a classifier.
"""

# ruff: noqa: E402
import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from vig_mm.checks.environment import exit_without_mmengine

exit_without_mmengine()

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from rich.console import Console
from rich.progress import track

from vig_mm.apis.inference import Predictor, read_image
from vig_mm.apis.launch import add_config_options, load_config, run
from vig_mm.checkpoints.conversion import prepare_checkpoint
from vig_mm.checks.config import pipeline_of
from vig_mm.checks.data import prepare_data
from vig_mm.checks.data.guard import guard
from vig_mm.errors import SampleError, UsageError
from vig_mm.visualization.pictures import save
from vig_mm.visualization.sample_pictures import (
    PREDICTION,
    TRUTH,
    SamplePictures,
    data_root,
    drawn_names,
    read_flag,
    sample_pictures,
    truth_frame,
)

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
FRAMES_A_SECOND = 25  # of a video that does not say


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "input", nargs="?", metavar="INPUT", help="picture, folder of pictures, or video"
    )
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", help="checkpoint file of this config, or a public ViG file")
    parser.add_argument(
        "--dataset", action="store_true", help="draw the test set, beside its ground truth"
    )
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "--count", type=int, help="with --dataset: so many of its first pictures (10)"
    )
    chosen.add_argument(
        "--indices", type=int, nargs="+", metavar="I", help="with --dataset: these pictures"
    )
    parser.add_argument(
        "--out-dir", help="folder of the pictures drawn (default: work_dirs/visualize/CONFIG)"
    )
    parser.add_argument(
        "--score-thr", type=float, help="leave out detections with a lower score (0.3)"
    )
    parser.add_argument("--amp", action="store_true", help="compute in bfloat16")
    parser.add_argument("--device", help="e.g. cpu or cuda:1 (default: the GPU, if there is one)")
    add_config_options(parser)
    args = parser.parse_args()
    if args.dataset == (args.input is not None):
        parser.error("give either INPUT, before the config, or --dataset")
    if not args.dataset and (args.count is not None or args.indices is not None):
        parser.error("--count and --indices choose pictures of --dataset")
    if args.count is not None and args.count < 1:
        parser.error("--count must be 1 or more")
    return args


# Names -----------------------------------------------------------------------------------------


def find_images(path: Path) -> list[Path]:
    """The picture itself, or all pictures in a folder.

    Raises:
        UsageError: there is none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UsageError(
            f"there is no file or folder {str(path)!r} (seen from {str(Path.cwd())!r})"
        )
    found = sorted(one for one in path.rglob("*") if one.suffix.lower() in IMAGES)
    if not found:
        raise UsageError(f"no picture ({', '.join(IMAGES)}) in the folder {str(path)!r}")
    return found


def check_targets(sources: list[Path], chosen: list[Path]) -> list[Path]:
    """The files to write.

    Raises:
        UsageError: A source would be overwritten.
    """
    inputs = {path.resolve() for path in sources}
    for path in chosen:
        if path.resolve() in inputs:
            raise UsageError(f"{str(path)!r} would be overwritten: choose another --out-dir")
    return chosen


# Drawing ---------------------------------------------------------------------------------------


def draw_files(
    sources: list[Path],
    chosen: list[Path],
    predictor: Predictor,
    drawer: SamplePictures,
    flag: int,
) -> list[str]:
    """Draw picture files, read with OpenCV's `flag`; returns what is wrong with the others."""
    skipped = []
    for source, target in progress(zip(sources, chosen, strict=True), len(sources)):
        try:
            image = read_image(source, flag)
        except UsageError as error:
            skipped.append(str(error))
            continue
        # the inferencer of mmpretrain reads files in a way of its own
        asked = image if predictor.scope == "mmpretrain" else str(source)
        save(drawer.draw(image[..., ::-1], predictor.predict(asked)), target)
    return skipped


def draw_video(source: Path, target: Path, predictor: Predictor, drawer: SamplePictures) -> int:
    """Draw every frame; returns how many there were."""
    video = cv2.VideoCapture(str(source))
    if not video.isOpened():
        raise UsageError(f"{str(source)!r} is not a video that OpenCV can read")
    rate = video.get(cv2.CAP_PROP_FPS) or FRAMES_A_SECOND
    length = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    target.parent.mkdir(parents=True, exist_ok=True)
    writer, count = None, 0
    for frame in progress(frames(video), length if length > 0 else None):
        picture = np.asarray(drawer.draw(frame[..., ::-1], predictor.predict(frame)))
        picture = picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2]
        if writer is None:
            code = cv2.VideoWriter.fourcc(*"mp4v")
            writer = cv2.VideoWriter(str(target), code, rate, picture.shape[1::-1])
            if not writer.isOpened():
                raise UsageError(f"OpenCV cannot write {str(target)!r}: it has no MPEG-4 encoder")
        writer.write(np.ascontiguousarray(picture[..., ::-1]))
        count += 1
    video.release()
    if writer is None:
        raise UsageError(f"{str(source)!r} holds no frame that OpenCV can read")
    writer.release()
    return count


def frames(video: cv2.VideoCapture) -> Iterator[np.ndarray]:
    while True:
        there, frame = video.read()
        if not there:
            return
        yield frame


def draw_dataset(
    cfg: Config,
    args: argparse.Namespace,
    out_dir: Path,
    predictor: Predictor,
    drawer: SamplePictures,
) -> tuple[int, list[str]]:
    """Draw pictures of the test set beside their ground truth, as far as it has one.

    Returns:
        How many, and what is wrong with those that cannot be read.
    """
    init_default_scope(cfg.default_scope)
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    guard(dataset)
    indices = args.indices or range(min(args.count or 10, len(dataset)))
    beyond = [i for i in indices if not 0 <= i < len(dataset)]
    if beyond:
        raise UsageError(f"--indices {beyond[0]}: the test set has 0 to {len(dataset) - 1}")
    sources = [Path(dataset.get_data_info(i)["img_path"]) for i in indices]
    names = drawn_names(sources, data_root(cfg.test_dataloader.dataset))
    chosen = check_targets(sources, [out_dir / name for name in names])
    pipeline = pipeline_of(cfg, "test")
    skipped = []
    for i, source, target in progress(zip(indices, sources, chosen, strict=True), len(sources)):
        try:
            item, image = dataset[i], read_image(source, read_flag(pipeline))[..., ::-1]
        except (SampleError, UsageError) as error:
            skipped.append(str(error))
            continue
        sample = predictor.predict_item(item)
        sides = (TRUTH, PREDICTION) if drawer.has_truth(sample) else (PREDICTION,)
        frame = truth_frame(pipeline, sample)
        save(drawer.draw(image, sample, sides, frame), target)
    return len(sources) - len(skipped), skipped


def progress(items: Iterable, total: int | None) -> Iterator:
    return track(items, "drawing", total, console=Console(stderr=True))


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    if args.score_thr is not None and cfg.default_scope != "mmdet":
        raise UsageError(
            f"--score-thr is for detectors, and this is a config of {cfg.default_scope}"
        )
    out_dir = Path(args.out_dir or Path("work_dirs/visualize", Path(args.config).stem))
    video = args.input is not None and Path(args.input).suffix.lower() in VIDEOS
    # everything that can be wrong with the pictures, before the model is built
    if args.dataset:
        for line in prepare_data(cfg, ("test",)):
            print(line, file=sys.stderr)
    else:
        sources = find_images(Path(args.input))
        if video:
            chosen = check_targets(sources, [out_dir / f"{sources[0].stem}.mp4"])
        else:
            root = Path(args.input) if Path(args.input).is_dir() else sources[0].parent
            names = drawn_names(sources, root.absolute())
            chosen = check_targets(sources, [out_dir / name for name in names])

    checkpoint = prepare_checkpoint(args.checkpoint, cfg.work_dir)
    predictor = Predictor(cfg, checkpoint, args.device, args.amp)
    score_thr = 0.3 if args.score_thr is None else args.score_thr
    drawer = sample_pictures(cfg.default_scope, predictor.meta, score_thr)
    drawer.write_legend(out_dir)
    if video:
        count = draw_video(sources[0], chosen[0], predictor, drawer)
        print(f"{chosen[0]}: {count} frames")
        return
    if args.dataset:
        count, skipped = draw_dataset(cfg, args, out_dir, predictor, drawer)
        print(f"{count} pictures of the test set, ground truth and prediction, in {out_dir}")
    else:
        flag = read_flag(pipeline_of(cfg, "test"))
        skipped = draw_files(sources, chosen, predictor, drawer, flag)
        count = len(sources) - len(skipped)
        print(chosen[0] if count == len(sources) == 1 else f"{count} pictures in {out_dir}")
    for problem in skipped:
        print(f"skipped: {problem}", file=sys.stderr)
    if not count:
        raise UsageError("no picture can be read")


if __name__ == "__main__":
    run(main)
