"""Class activation maps: where in an image a classifier finds its class, and what a layer sees.

Grad-CAM (arXiv 1610.02391) weights a layer's channels by the gradient of the class score and is
drawn for classifiers. Eigen-CAM (arXiv 2008.00299), the first principal component of a layer's
output, needs no class and is drawn for detectors and segmentors as well. Red is high.

A layer is a number, an output of the backbone (0 the first, -1 the last), or a dotted name such as
backbone.layers.2.blocks.1. Default: the last output for classifiers, all outputs for the others.

Examples:
  python tools/analysis/cam.py photo.jpg CONFIG CHECKPOINT --class dog --out cam.png
  python tools/analysis/cam.py photo.jpg CONFIG CHECKPOINT --layers 0 -1 backbone.layers.2.blocks.1
"""

# ruff: noqa: E402
import argparse
from pathlib import Path

from vig_mm.engine.environment import exit_without_mmengine

exit_without_mmengine()

import cv2
import numpy as np
import torch
from inside import Subject, add_image_arguments, as_map, check_png, layer, load_subject
from PIL import Image
from pytorch_grad_cam import EigenCAM, GradCAM
from pytorch_grad_cam.base_cam import BaseCAM
from pytorch_grad_cam.utils.image import show_cam_on_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from vig_mm.engine.launch import UsageError, run
from vig_mm.engine.pictures import beside, fitted

GRAD, EIGEN = "Grad-CAM", "Eigen-CAM"
METHODS = {"gradcam": GRAD, "eigencam": EIGEN}


class EigenMap(EigenCAM):
    """Eigen-CAM by the covariance of the channels, of a defined sign.

    The package decomposes an N x N matrix, 16 GB in float32 for a detector's first stage of
    64 000 cells, and leaves to chance whether what stands out is high or low.
    """

    def get_cam_image(
        self,
        input_tensor: Tensor,
        target_layer: nn.Module,
        targets: list,
        activations: np.ndarray,
        grads: np.ndarray | None,
        eigen_smooth: bool = False,
    ) -> np.ndarray:
        """``[B, C, h, w]`` -> ``[B, h, w]``; the side that reaches farther from 0 is positive."""
        x = activations.reshape(*activations.shape[:2], -1).astype(np.float64)
        x -= x.mean(axis=2, keepdims=True)
        _, vectors = np.linalg.eigh(x @ x.transpose(0, 2, 1))
        cam = np.einsum("bc,bcn->bn", vectors[:, :, -1], x)
        cam *= np.where(-cam.min(axis=1) > cam.max(axis=1), -1, 1)[:, None]
        return cam.reshape(len(x), *activations.shape[2:]).astype(np.float32)


class Probe(nn.Module):
    """A model as the package wants it: images in, class scores ``[B, classes]`` out.

    Its backbone's outputs pass through `taps`, modules that the package can hook. Detectors and
    segmentors run their backbone only and give what no method looks at.
    """

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self.model = subject.model
        self.scores = subject.scope == "mmpretrain"
        with torch.no_grad():
            outputs = self.model.backbone(subject.inputs)
        self.taps = nn.ModuleList(nn.Identity() for _ in outputs)
        self.model.backbone.register_forward_hook(self._tap)

    def _tap(self, module: nn.Module, inputs: tuple, outputs: tuple) -> tuple:
        return tuple(tap(x) for tap, x in zip(self.taps, outputs, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        if self.scores:
            return self.model(x, mode="tensor")
        self.model.backbone(x)
        return x.new_zeros(len(x), 1)

    def find(self, name: str) -> tuple[str, nn.Module]:
        """Caption and module of a layer, see the module's docstring.

        Raises:
            UsageError: there is none.
        """
        try:
            index = int(name)
        except ValueError:
            return name.removeprefix("backbone."), layer(self.model, name)
        count = len(self.taps)
        if not -count <= index < count:
            raise UsageError(
                f"--layers {index}: this backbone has {count} outputs, 0 to {count - 1} "
                f"(or -{count} to -1)"
            )
        return f"output {index % count}", self.taps[index]


def check_layer(probe: Probe, module: nn.Module, name: str, inputs: Tensor) -> None:
    """See that a layer runs and gives a map.

    Raises:
        UsageError: it does not.
    """
    outputs = []
    handle = module.register_forward_hook(lambda module, args, out: outputs.append(out))
    with torch.no_grad():
        probe(inputs)
    handle.remove()
    if not outputs:
        raise UsageError(f"--layers {name}: the model does not call this layer; choose one in it")
    if not isinstance(outputs[0], Tensor):
        raise UsageError(f"--layers {name}: its output is a {type(outputs[0]).__name__}, no tensor")
    try:
        as_map(outputs[0], tuple(inputs.shape[2:]))
    except UsageError as error:
        raise UsageError(f"--layers {name}: {error}") from error


def cam_map(method: str, probe: Probe, module: nn.Module, inputs: Tensor, label: int) -> np.ndarray:
    """One method's map of one layer.

    Args:
        method: `GRAD` or `EIGEN`.
        inputs: ``[1, 3, H, W]``.
        label: the class that `GRAD` asks for.

    Returns:
        ``[H, W]``, 0 to 1.
    """
    kind: type[BaseCAM] = {GRAD: GradCAM, EIGEN: EigenMap}[method]
    size = tuple(inputs.shape[2:])
    cam = kind(probe, [module], reshape_transform=lambda x: as_map(x, size))
    try:
        # the input's gradient makes every layer's, also where all before it is frozen
        return cam(inputs.detach().requires_grad_(), [ClassifierOutputTarget(label)])[0]
    finally:  # not by its own context manager, which swallows IndexErrors
        cam.activations_and_grads.release()


def overlay(picture: np.ndarray, cam: np.ndarray) -> np.ndarray:
    """A map over a picture, both in the picture's size ``[h, w]``, as RGB (uint8)."""
    return show_cam_on_image(
        picture.astype(np.float32) / 255, cam, use_rgb=True, colormap=cv2.COLORMAP_TURBO
    )


def choose_class(probe: Probe, subject: Subject, wanted: str | None) -> tuple[int, str]:
    """Label of the class that is wanted, else of the highest score, and a caption.

    Raises:
        UsageError: there is no such class.
    """
    with torch.no_grad():
        scores = probe(subject.inputs)[0].softmax(dim=0)
    label = int(scores.argmax())
    if wanted is not None:
        names = subject.classes
        if wanted in names:
            label = names.index(wanted)
        elif wanted.isdecimal() and int(wanted) < len(names):
            label = int(wanted)
        else:
            some = ", ".join(names[:10]) + (" ..." if len(names) > 10 else "")
            raise UsageError(
                f"--class {wanted}: no such class; give one of {some}, or a label "
                f"0 to {len(names) - 1}"
            )
    return label, f"{subject.classes[label]} {100 * scores[label]:.0f} %"


def draw(
    subject: Subject, layers: list[str] | None, methods: list[str], wanted: str | None
) -> Image.Image:
    """The image, and beside it each method's map of each layer.

    Args:
        layers: see the module's docstring; None: the default.
        methods: of `GRAD` and `EIGEN`.
        wanted: name or label of the class for `GRAD`; None: that of the highest score.

    Raises:
        UsageError: a layer or class that the model does not have, or `GRAD` without a classifier.
    """
    probe = Probe(subject)
    if not probe.scores and (GRAD in methods or wanted is not None):
        raise UsageError(
            "Grad-CAM and --class need a classifier: a detector or segmentor has no one class "
            "score of an image; use --methods eigencam"
        )
    default = ["-1"] if probe.scores else [str(i) for i in range(len(probe.taps))]
    found = [(name, *probe.find(name)) for name in layers or default]
    for name, _, module in found:
        check_layer(probe, module, name, subject.inputs)
    label, caption = choose_class(probe, subject, wanted) if probe.scores else (0, "input")
    panels, captions = [fitted(subject.picture)], [caption]
    height, width = subject.picture.shape[:2]
    for method in methods:
        for _, title, module in found:
            cam = cam_map(method, probe, module, subject.inputs, label)
            panels.append(fitted(overlay(subject.picture, cam[:height, :width])))
            captions.append(f"{method}, {title}")
            if not cam.any():
                print(f"{captions[-1]}: nothing in this layer speaks for the class")
    return beside(panels, captions)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_image_arguments(parser)
    parser.add_argument("--layers", nargs="+", metavar="LAYER", help="numbers or dotted names")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        help="default: both for classifiers, eigencam for the others",
    )
    parser.add_argument(
        "--class",
        dest="wanted",
        metavar="NAME",
        help="class name or label for Grad-CAM (default: that of the highest score)",
    )
    parser.add_argument(
        "--out", type=Path, default="cam.png", metavar="FILE.png", help="picture (cam.png)"
    )
    args = parser.parse_args()
    check_png(parser, args.out)
    return args


def main() -> None:
    args = parse_args()
    subject = load_subject(args)
    default = METHODS if subject.scope == "mmpretrain" else ["eigencam"]
    methods = [METHODS[name] for name in args.methods or default]
    picture = draw(subject, args.layers, methods, args.wanted)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(args.out)
    print(args.out)


if __name__ == "__main__":
    run(main)
