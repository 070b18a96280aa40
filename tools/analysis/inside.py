"""Model, image and arguments for the tools that show the inside of a trained model."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from vig_mm.apis.inference import Predictor, read_image
from vig_mm.apis.launch import add_config_options, load_config
from vig_mm.checkpoints.conversion import prepare_checkpoint
from vig_mm.errors import UsageError


@dataclass
class Subject:
    """A model in eval mode and one image as the test pipeline and preprocessor give it.

    Attributes:
        scope: mmdet, mmseg or mmpretrain.
        picture: RGB ``[h, w, 3]`` (uint8): after the pipeline, before normalisation and padding.
        inputs: ``[1, 3, H, W]``, what the model takes; H >= h and W >= w.
        sample: the image's data sample, which detectors and segmentors take besides.
    """

    model: nn.Module
    scope: str
    picture: np.ndarray
    inputs: Tensor
    sample: Any
    classes: list[str]


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE", help="picture file")
    parser.add_argument("config", metavar="CONFIG", help="config file")
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="checkpoint file of this config, or for a classifier a public ViG file",
    )
    add_common_arguments(parser)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="e.g. cpu or cuda:1 (default: the GPU, if there is one)")
    add_config_options(parser)


def check_png(parser: argparse.ArgumentParser, path: Path) -> None:
    if path.suffix.lower() != ".png":
        parser.error(f"--out must end in .png, not {path.name!r}")


def load_subject(args: argparse.Namespace) -> Subject:
    """Build the model of the arguments and put their image through its test pipeline.

    Raises:
        UsageError: the image, the config or the device cannot be used.
        CheckpointError: the checkpoint does not fit the config.
    """
    image = read_image(Path(args.image))
    cfg = load_config(args)
    predictor = Predictor(cfg, prepare_checkpoint(args.checkpoint, cfg.work_dir), args.device)
    model = predictor.inferencer.model.eval()
    (batch,) = predictor.inferencer.preprocess([image])
    if predictor.scope == "mmdet":
        _, batch = batch  # mmdet keeps the image beside it
    picture = batch["inputs"][0].permute(1, 2, 0).cpu().numpy()[..., ::-1]
    fed = model.data_preprocessor(batch, False)
    classes = list(predictor.meta["classes"])
    picture = np.ascontiguousarray(picture)
    (sample,) = fed["data_samples"]
    return Subject(model, predictor.scope, picture, fed["inputs"], sample, classes)


def as_map(x: Tensor, size: tuple[int, int]) -> Tensor:
    """A layer's output as a map ``[B, C, h, w]``, whatever its layout.

    Args:
        x: ``[B, C, h, w]``, channels last ``[B, h, w, C]``, or tokens ``[B, N, C]`` in row-major
            order; a class token before them is left out.
        size: height and width of the network's input, by which the grid is recognised.

    Raises:
        UsageError: there is no such grid in it.
    """
    grids = token_grids(size)
    if x.dim() == 4:
        if tuple(x.shape[2:]) in grids or tuple(x.shape[1:3]) not in grids:
            return x
        return x.permute(0, 3, 1, 2)
    if x.dim() == 3:
        for extra in (0, 1):
            for grid in grids:
                if grid[0] * grid[1] == x.shape[1] - extra:
                    return x[:, extra:].unflatten(1, grid).permute(0, 3, 1, 2)
    raise UsageError(
        f"its output {tuple(x.shape)} is neither a map nor tokens of a grid over an input of "
        f"{size[0]}x{size[1]} (HxW)"
    )


def token_grids(size: tuple[int, int]) -> list[tuple[int, int]]:
    """Grids of strides 1 to 64 (powers of 2, and 14), rounded up or down."""
    strides = (1, 2, 4, 8, 14, 16, 32, 64)
    up = [tuple(-(-side // stride) for side in size) for stride in strides]
    down = [tuple(side // stride for side in size) for stride in strides]
    return list(dict.fromkeys(up + down))


def layer(model: nn.Module, name: str) -> nn.Module:
    """The module of a dotted name.

    Raises:
        UsageError: there is none; names some that come close.
    """
    modules = dict(model.named_modules())
    if name in modules and name:
        return modules[name]
    parent = name
    while parent and parent not in modules:
        parent = parent.rpartition(".")[0]
    children = [f"{parent}.{key}".lstrip(".") for key, _ in modules[parent].named_children()]
    raise UsageError(f"the model has no layer {name!r}; there are {', '.join(children)}")
