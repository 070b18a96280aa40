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
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from vig_mm.preflight.environment import exit_without_mmengine

exit_without_mmengine()

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image
from rich.console import Console
from rich.progress import track

from vig_mm.apis.inference import Predictor, read_image
from vig_mm.apis.launch import add_config_options, load_config, run
from vig_mm.checkpoints.conversion import prepare_checkpoint
from vig_mm.inspection.quick import check_data, leaves
from vig_mm.preflight.user_input import UsageError
from vig_mm.visualization.sample_pictures import (
    PREDICTION,
    TRUTH,
    SamplePictures,
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


def targets(sources: list[Path], names: list[Path], out_dir: Path) -> list[Path]:
    """A file to write for each source.

    Args:
        sources: picture files.
        names: the name of each in the folder of results, with subfolders.

    Raises:
        UsageError: a source would be overwritten.
    """
    stems = Counter(name.with_suffix("") for name in names)
    chosen = []
    for name in names:
        same = stems[name.with_suffix("")] > 1  # a.jpg and a.png
        stem = name.name.replace(".", "_") if same else name.stem
        chosen.append(out_dir / name.with_name(f"{stem}.jpg"))
    check_targets(sources, chosen)
    return chosen


def check_targets(sources: list[Path], chosen: list[Path]) -> None:
    inputs = {path.resolve() for path in sources}
    for path in chosen:
        if path.resolve() in inputs:
            raise UsageError(f"{str(path)!r} would be overwritten: choose another --out-dir")


# Drawing ---------------------------------------------------------------------------------------


def write(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, quality=95, subsampling=0)  # sharp text


def draw_files(
    sources: list[Path], chosen: list[Path], predictor: Predictor, drawer: SamplePictures
) -> None:
    for source, target in progress(zip(sources, chosen, strict=True), len(sources)):
        image = read_image(source)
        sample = predictor.predict(str(source))
        write(drawer.draw(image[..., ::-1], sample), target)


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
) -> int:
    """Draw pictures of the test set beside their ground truth; returns how many."""
    init_default_scope(cfg.default_scope)
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    indices = args.indices or range(min(args.count or 10, len(dataset)))
    beyond = [i for i in indices if not 0 <= i < len(dataset)]
    if beyond:
        raise UsageError(f"--indices {beyond[0]}: the test set has 0 to {len(dataset) - 1}")
    sources = [Path(dataset.get_data_info(i)["img_path"]) for i in indices]
    chosen = targets(sources, [Path(path.parent.name, path.name) for path in sources], out_dir)
    (_, leaf), *_ = leaves("test_dataloader.dataset", cfg.test_dataloader.dataset)
    for i, source, target in progress(zip(indices, sources, chosen, strict=True), len(sources)):
        sample = predictor.predict_item(dataset[i])
        if not drawer.has_truth(sample):
            raise UsageError(
                "the test set has no ground truth: its pipeline or annotation file gives no labels "
                "(give the pictures' folder as INPUT instead of --dataset)"
            )
        frame = truth_frame(leaf.get("pipeline", []), sample)
        image = read_image(source)[..., ::-1]
        write(drawer.draw(image, sample, (TRUTH, PREDICTION), frame), target)
    return len(sources)


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
        check_data(cfg, ("test",))
    else:
        sources = find_images(Path(args.input))
        if video:
            chosen = [out_dir / f"{sources[0].stem}.mp4"]
            check_targets(sources, chosen)
        else:
            root = Path(args.input) if Path(args.input).is_dir() else sources[0].parent
            chosen = targets(sources, [path.relative_to(root) for path in sources], out_dir)

    checkpoint = prepare_checkpoint(args.checkpoint, cfg.work_dir)
    predictor = Predictor(cfg, checkpoint, args.device)
    score_thr = 0.3 if args.score_thr is None else args.score_thr
    drawer = sample_pictures(cfg.default_scope, predictor.meta, score_thr)
    if args.dataset:
        count = draw_dataset(cfg, args, out_dir, predictor, drawer)
        print(f"{count} pictures of the test set, ground truth and prediction, in {out_dir}")
    elif video:
        count = draw_video(sources[0], chosen[0], predictor, drawer)
        print(f"{chosen[0]}: {count} frames")
    else:
        draw_files(sources, chosen, predictor, drawer)
        print(f"{len(sources)} pictures in {out_dir}" if len(sources) > 1 else chosen[0])


if __name__ == "__main__":
    run(main)
