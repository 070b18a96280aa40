"""Class activation maps: where in an image a model finds a class, and what a layer sees.

Grad-CAM (arXiv 1610.02391) and HiResCAM (arXiv 2011.08891) weight a layer's output by the gradient
of a class's score, the first with one weight a channel, the second cell by cell, which suits scores
that are about a part of the image. The score of a class is a classifier's logit, the sum of the
scores of a detector's detections of it, or the sum of a segmentor's logits over the pixels given to
it. Eigen-CAM (arXiv 2008.00299), the first principal component of a layer's output, needs no class.
Red is high.

A layer is a number, an output of the backbone (0 the first, -1 the last), or a dotted name such as
backbone.layers.2.blocks.1. Default: the last output for classifiers, all outputs for the others.

Examples:
  python tools/analysis/cam.py photo.jpg CONFIG CHECKPOINT --class dog --out cam.png
  python tools/analysis/cam.py photo.jpg CONFIG CHECKPOINT --layers 0 -1 backbone.layers.2.blocks.1
"""

# ruff: noqa: E402
import argparse
from collections.abc import Callable
from pathlib import Path

from vig_mm.checks.environment import exit_without_mmengine

exit_without_mmengine()

import cv2
import numpy as np
import torch
from class_scores import UNITS, class_scores
from inside import Subject, add_image_arguments, as_map, check_png, layer, load_subject
from PIL import Image
from pytorch_grad_cam import EigenCAM, GradCAM, HiResCAM
from pytorch_grad_cam.base_cam import BaseCAM
from pytorch_grad_cam.utils.image import show_cam_on_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from vig_mm.apis.launch import run
from vig_mm.errors import UsageError
from vig_mm.visualization.pictures import beside, fitted

GRAD, HIRES, EIGEN = "Grad-CAM", "HiResCAM", "Eigen-CAM"
METHODS = {"gradcam": GRAD, "hirescam": HIRES, "eigencam": EIGEN}
OF_A_CLASS = {GRAD, HIRES}


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


class Reached(BaseCAM):
    """Before a method that needs gradients: where the score does not depend on the layer, 0."""

    def get_cam_image(self, *args) -> np.ndarray:
        """``[B, C, h, w]`` -> ``[B, h, w]``; the arguments are those of `EigenMap`."""
        *_, activations, grads, _ = args
        if grads is None:
            return np.zeros((len(activations), *activations.shape[2:]), np.float32)
        return super().get_cam_image(*args)


class GradMap(Reached, GradCAM):
    """Grad-CAM."""


class HiResMap(Reached, HiResCAM):
    """HiResCAM."""


class Probe(nn.Module):
    """A model as the package wants it: an image in, class scores ``[1, classes]`` out.

    Its backbone's outputs pass through `taps`, modules that the package can hook.

    Args:
        score_thr: see `class_scores`; None: run the backbone only and give no scores.

    Attributes:
        amounts: see `ClassScores`; of the last image.
    """

    def __init__(self, subject: Subject, score_thr: float | None) -> None:
        super().__init__()
        self.model = subject.model
        self.subject, self.score_thr = subject, score_thr
        self.amounts: Tensor | None = None
        with torch.no_grad():
            outputs = self.model.backbone(subject.inputs)
        self.taps = nn.ModuleList(nn.Identity() for _ in outputs)
        self.model.backbone.register_forward_hook(self._tap)

    def _tap(self, module: nn.Module, inputs: tuple, outputs: tuple) -> tuple:
        return tuple(tap(x) for tap, x in zip(self.taps, outputs, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        if self.score_thr is None:
            self.model.backbone(x)
            return x.new_zeros(1, 1)
        scores, self.amounts = class_scores(self.subject, x, self.score_thr)
        return scores[None]

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


def check_layers(probe: Probe, found: dict[str, nn.Module], inputs: Tensor) -> None:
    """Run the probe once and see that the layers run and give maps.

    Args:
        found: module of each layer, by the name that was given.

    Raises:
        UsageError: one does not.
    """
    outputs = {name: [] for name in found}

    def keep(name: str) -> Callable:
        return lambda module, args, output: outputs[name].append(output)

    handles = [module.register_forward_hook(keep(name)) for name, module in found.items()]
    with torch.no_grad():
        probe(inputs)
    for handle in handles:
        handle.remove()
    for name, given in outputs.items():
        if len(given) != 1:
            calls = f"calls this layer {len(given)} times" if given else "does not call this layer"
            raise UsageError(f"--layers {name}: the model {calls}; choose one inside or before it")
        if not isinstance(given[0], Tensor):
            kind = type(given[0]).__name__
            raise UsageError(f"--layers {name}: its output is a {kind}, no tensor")
        try:
            as_map(given[0], tuple(inputs.shape[2:]))
        except UsageError as error:
            raise UsageError(f"--layers {name}: {error}") from error


def cam_map(method: str, probe: Probe, module: nn.Module, inputs: Tensor, label: int) -> np.ndarray:
    """One method's map of one layer.

    Args:
        method: of `METHODS`.
        inputs: ``[1, 3, H, W]``.
        label: the class that those of `OF_A_CLASS` ask for.

    Returns:
        ``[H, W]``, 0 to 1.
    """
    kind: type[BaseCAM] = {GRAD: GradMap, HIRES: HiResMap, EIGEN: EigenMap}[method]
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


def choose_class(subject: Subject, amounts: Tensor, wanted: str | None) -> tuple[int, str]:
    """Label of the class that is wanted, else of the one that there is most of, and a caption.

    Args:
        amounts: see `ClassScores`.
        wanted: name or label.

    Raises:
        UsageError: there is no such class, or nothing of it in the image.
    """
    names = subject.classes
    present = [names[i] for i in amounts.argsort(descending=True).tolist() if amounts[i] > 0]
    if wanted is None:
        label = int(amounts.argmax())
    elif wanted in names:
        label = names.index(wanted)
    elif wanted.isdecimal() and int(wanted) < len(names):
        label = int(wanted)
    else:
        raise UsageError(
            f"--class {wanted}: no such class; give one of {_some(names)}, or a label "
            f"0 to {len(names) - 1}"
        )
    if subject.scope != "mmpretrain" and not amounts[label]:
        raise UsageError(
            f"the model finds {'nothing' if wanted is None else f'no {names[label]}'} in "
            f"this image{f', but {_some(present)}' if present else ''}; "
            + ("lower --score-thr, or " if subject.scope == "mmdet" else "")
            + ("choose another class, or " if present else "")
            + "use --methods eigencam, which needs none"
        )
    return label, f"{names[label]} {100 * amounts[label]:.0f} {UNITS[subject.scope]}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:10]) + (" ..." if len(names) > 10 else "")


def draw(
    subject: Subject,
    layers: list[str] | None,
    methods: list[str],
    wanted: str | None,
    score_thr: float = 0.3,
) -> Image.Image:
    """A row for each method: the image, and beside it the method's map of each layer.

    Args:
        layers: see the module's docstring; None: the default.
        methods: of `METHODS`.
        wanted: name or label of the class; None: the one that there is most of.
        score_thr: see `class_scores`.

    Raises:
        UsageError: a layer or class that the model does not have, or no object of the class.
    """
    asking = not OF_A_CLASS.isdisjoint(methods)
    if wanted is not None and not asking:
        raise UsageError(f"--class {wanted} has no meaning for Eigen-CAM, which knows no classes")
    probe = Probe(subject, score_thr if asking else None)
    default = [-1] if subject.scope == "mmpretrain" else range(len(probe.taps))
    found = {name: probe.find(name) for name in layers or map(str, default)}
    check_layers(probe, {name: module for name, (_, module) in found.items()}, subject.inputs)
    label, asked = 0, ""
    if asking:
        label, asked = choose_class(subject, probe.amounts, wanted)
    height, width = subject.picture.shape[:2]
    rows = []
    for method in methods:
        panels, captions = [fitted(subject.picture)], [asked if method in OF_A_CLASS else "input"]
        for title, module in found.values():
            cam = cam_map(method, probe, module, subject.inputs, label)
            panels.append(fitted(overlay(subject.picture, cam[:height, :width])))
            captions.append(f"{method}, {title}")
            if method in OF_A_CLASS and not cam.any():
                print(f"{captions[-1]}: nothing in this layer speaks for the class")
        rows.append(beside(panels, captions))
    picture = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)))
    for i, row in enumerate(rows):
        picture.paste(row, (0, i * row.height))
    return picture


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_image_arguments(parser)
    parser.add_argument("--layers", nargs="+", metavar="LAYER", help="numbers or dotted names")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(METHODS), help="default: all"
    )
    parser.add_argument(
        "--class",
        dest="wanted",
        metavar="NAME",
        help="class name or label for Grad-CAM and HiResCAM (default: that of the highest "
        "score, for a segmentor of the largest area)",
    )
    parser.add_argument(
        "--score-thr",
        type=float,
        help="leave out detections with a lower score (0.3)",
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
    if args.score_thr is not None and subject.scope != "mmdet":
        raise UsageError(f"--score-thr is for detectors, and this is a config of {subject.scope}")
    score_thr = 0.3 if args.score_thr is None else args.score_thr
    methods = [METHODS[name] for name in args.methods]
    picture = draw(subject, args.layers, methods, args.wanted, score_thr)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(args.out)
    print(args.out)


if __name__ == "__main__":
    run(main)
