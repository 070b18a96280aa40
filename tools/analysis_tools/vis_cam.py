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
  python tools/analysis_tools/vis_cam.py photo.jpg CONFIG CHECKPOINT --class dog --out cam.png
  python tools/analysis_tools/vis_cam.py photo.jpg CONFIG CHECKPOINT --layers 0 -1 backbone.layers.2
"""

# ruff: noqa: E402
import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vig_mm.checks.environment import exit_without_mmengine

exit_without_mmengine()

import cv2
import numpy as np
import torch
from PIL import Image
from pytorch_grad_cam import EigenCAM, GradCAM, HiResCAM
from pytorch_grad_cam.base_cam import BaseCAM
from pytorch_grad_cam.utils.image import show_cam_on_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vig_mm.apis.inference import Predictor, read_image
from vig_mm.apis.launch import add_config_options, load_config, run
from vig_mm.checkpoints.conversion import prepare_checkpoint
from vig_mm.errors import UsageError
from vig_mm.visualization.pictures import beside, fitted

GRAD, HIRES, EIGEN = "Grad-CAM", "HiResCAM", "Eigen-CAM"
METHODS = {"gradcam": GRAD, "hirescam": HIRES, "eigencam": EIGEN}
OF_A_CLASS = {GRAD, HIRES}
UNITS = {"mmpretrain": "%", "mmdet": "% at best", "mmseg": "% of the pixels"}


# Model and image --------------------------------------------------------------------------------


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


def make_parser(doc: str | None, out: str) -> argparse.ArgumentParser:
    """With the arguments that say which image, model and picture."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", metavar="IMAGE", help="picture file")
    parser.add_argument("config", metavar="CONFIG", help="config file")
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT",
        help="checkpoint file of this config, or for a classifier a public ViG file",
    )  # fmt: skip
    parser.add_argument("--device", help="e.g. cpu or cuda:1 (default: the GPU, if there is one)")
    parser.add_argument(
        "--out", type=Path, default=out, metavar="FILE.png", help=f"picture ({out})"
    )
    add_config_options(parser)
    return parser


def parse_png(parser: argparse.ArgumentParser) -> argparse.Namespace:
    args = parser.parse_args()
    if args.out.suffix.lower() != ".png":
        parser.error(f"--out must end in .png, not {args.out.name!r}")
    return args


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
    (sample,) = fed["data_samples"]
    picture, classes = np.ascontiguousarray(picture), list(predictor.meta["classes"])
    return Subject(model, predictor.scope, picture, fed["inputs"], sample, classes)


# Scores of classes, with a gradient -------------------------------------------------------------


class _Attached(TorchFunctionMode):
    """In it, `Tensor.detach` detaches nothing: one-stage heads detach what they predict from."""

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        return args[0] if function is Tensor.detach else function(*args, **(kwargs or {}))


def class_scores(subject: Subject, image: Tensor, score_thr: float) -> tuple[Tensor, Tensor]:
    """What a model says of each class in one image ``[1, 3, H, W]``.

    Args:
        score_thr: detections with a lower score do not count.

    Returns:
        scores ``[classes]``, with a gradient, and how much there is of each class ``[classes]``,
        0 to 1, in `UNITS`.

    Raises:
        UsageError: the model does not give such scores.
    """
    model = subject.model
    none, eigen = image.new_zeros(len(subject.classes)), "use --methods eigencam"
    if subject.scope == "mmpretrain":
        scores = model(image, mode="tensor")[0]
        return scores, scores.detach().softmax(dim=0)
    if subject.scope == "mmseg":
        # padding does not count; the image is taken whole, also where the config slides a window
        height, width = subject.picture.shape[:2]
        logits = model.encode_decode(image, [subject.sample.metainfo])[0, :, :height, :width]
        if len(logits) != len(subject.classes):
            raise UsageError(
                f"{type(model).__name__} gives {len(logits)} map(s) of scores for "
                f"{len(subject.classes)} classes, not one a class: {eigen}"
            )
        best, labels = (x.flatten() for x in logits.max(dim=0))
        return none.index_add(0, labels, best), labels.bincount(minlength=len(none)) / len(labels)
    from mmdet.models import SingleStageDetector

    sample = subject.sample.clone()
    if isinstance(model, SingleStageDetector):
        features = model.extract_feat(image)
        with _Attached():
            (found,) = model.bbox_head.predict(features, [sample])
    else:
        (sample,) = model.predict(image, [sample])
        found = sample.pred_instances
    if torch.is_grad_enabled() and not found.scores.requires_grad:
        raise UsageError(
            f"{type(model).__name__} cuts its scores off from the image, so that a map of a class "
            f"has nothing to go by: {eigen}"
        )
    found = found[found.scores >= score_thr]
    amounts = none.scatter_reduce(0, found.labels, found.scores.detach(), "amax")
    return none.index_add(0, found.labels, found.scores), amounts


# Layers and maps --------------------------------------------------------------------------------


def as_map(x: Tensor, size: tuple[int, int]) -> Tensor:
    """A layer's output as a map ``[B, C, h, w]``, whatever its layout.

    Args:
        x: ``[B, C, h, w]``, channels last ``[B, h, w, C]``, or tokens ``[B, N, C]`` in row-major
            order; a class token before them is left out.
        size: height and width of the network's input, by which the grid is recognised, of strides
            1 to 64 (powers of 2, and 14), rounded up or down.

    Raises:
        UsageError: there is no such grid in it.
    """
    strides = (1, 2, 4, 8, 14, 16, 32, 64)
    grids = [tuple(-(-side // stride) for side in size) for stride in strides]
    grids += [tuple(side // stride for side in size) for stride in strides]
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


class Probe(nn.Module):
    """A model as the package wants it: an image in, class scores ``[1, classes]`` out.

    Its backbone's outputs pass through `taps`, modules that the package can hook.

    Args:
        score_thr: see `class_scores`; None: run the backbone only and give no scores.

    Attributes:
        amounts: how much there is of each class in the last image.
    """

    def __init__(self, subject: Subject, score_thr: float | None) -> None:
        super().__init__()
        self.model, self.subject, self.score_thr = subject.model, subject, score_thr
        self.amounts: Tensor | None = None
        with torch.no_grad():
            outputs = self.model.backbone(subject.inputs)
        self.taps = nn.ModuleList(nn.Identity() for _ in outputs)
        self.model.backbone.register_forward_hook(
            lambda module, args, out: tuple(t(x) for t, x in zip(self.taps, out, strict=True))
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.score_thr is None:
            self.model.backbone(x)
            return x.new_zeros(1, 1)
        scores, self.amounts = class_scores(self.subject, x, self.score_thr)
        return scores[None]

    def find(self, name: str) -> tuple[str, nn.Module]:
        """Caption and module of a layer, see the module's docstring.

        Raises:
            UsageError: there is none; names some that come close.
        """
        modules, count = dict(self.model.named_modules()), len(self.taps)
        try:
            index = int(name)
        except ValueError:
            if name in modules and name:
                return name.removeprefix("backbone."), modules[name]
            parent = name
            while parent and parent not in modules:
                parent = parent.rpartition(".")[0]
            known = (f"{parent}.{k}".lstrip(".") for k, _ in modules[parent].named_children())
            raise UsageError(
                f"the model has no layer {name!r}; there are {', '.join(known)}"
            ) from None
        if not -count <= index < count:
            raise UsageError(
                f"--layers {index}: this backbone has {count} outputs, 0 to {count - 1} "
                f"(or -{count} to -1)"
            )
        return f"output {index % count}", self.taps[index]


def check_layers(probe: Probe, found: dict[str, nn.Module], inputs: Tensor) -> None:
    """Run the probe once and see that the layers, by name, run and give maps.

    Raises:
        UsageError: one does not.
    """
    outputs: dict[str, list] = {name: [] for name in found}
    handles = [
        module.register_forward_hook(lambda m, args, out, name=name: outputs[name].append(out))
        for name, module in found.items()
    ]
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


class EigenMap(EigenCAM):
    """Eigen-CAM by the covariance of the channels, of a defined sign.

    The package decomposes an N x N matrix, 16 GB in float32 for a detector's first stage of
    64 000 cells, and leaves to chance whether what stands out is high or low.
    """

    def get_cam_image(
        self, input_tensor, target_layer, targets, activations, grads, eigen_smooth=False
    ) -> np.ndarray:
        """``[B, C, h, w]`` -> ``[B, h, w]``; the side that reaches farther from 0 is positive."""
        x = activations.reshape(*activations.shape[:2], -1).astype(np.float64)
        x -= x.mean(axis=2, keepdims=True)
        _, vectors = np.linalg.eigh(x @ x.transpose(0, 2, 1))
        cam = np.einsum("bc,bcn->bn", vectors[:, :, -1], x)
        cam *= np.where(-cam.min(axis=1) > cam.max(axis=1), -1, 1)[:, None]
        return cam.reshape(len(x), *activations.shape[2:]).astype(np.float32)


def cam_map(method: str, probe: Probe, module: nn.Module, inputs: Tensor, label: int) -> np.ndarray:
    """One method's map of a layer, ``[1, 3, H, W]`` -> ``[H, W]``, 0 to 1, of the class `label`."""
    kind: type[BaseCAM] = {GRAD: GradMap, HIRES: HiResMap, EIGEN: EigenMap}[method]
    size = tuple(inputs.shape[2:])
    cam = kind(probe, [module], reshape_transform=lambda x: as_map(x, size))
    try:
        # the input's gradient makes every layer's, also where all before it is frozen
        return cam(inputs.detach().requires_grad_(), [ClassifierOutputTarget(label)])[0]
    finally:  # not by its own context manager, which swallows IndexErrors
        cam.activations_and_grads.release()


# Pictures ---------------------------------------------------------------------------------------


def choose_class(subject: Subject, amounts: Tensor, wanted: str | None) -> tuple[int, str]:
    """Label of the class that is wanted, else of the one that there is most of, and a caption.

    Args:
        amounts: see `class_scores`.
        wanted: name or label.

    Raises:
        UsageError: there is no such class, or nothing of it in the image.
    """
    names = subject.classes

    def some(chosen: list[str]) -> str:
        return ", ".join(chosen[:10]) + (" ..." if len(chosen) > 10 else "")

    present = [names[i] for i in amounts.argsort(descending=True).tolist() if amounts[i] > 0]
    if wanted is None:
        label = int(amounts.argmax())
    elif wanted in names:
        label = names.index(wanted)
    elif wanted.isdecimal() and int(wanted) < len(names):
        label = int(wanted)
    else:
        raise UsageError(
            f"--class {wanted}: no such class; give one of {some(names)}, or a label "
            f"0 to {len(names) - 1}"
        )
    if subject.scope != "mmpretrain" and not amounts[label]:
        raise UsageError(
            f"the model finds {'nothing' if wanted is None else f'no {names[label]}'} in "
            f"this image{f', but {some(present)}' if present else ''}; "
            + ("lower --score-thr, or " if subject.scope == "mmdet" else "")
            + ("choose another class, or " if present else "")
            + "use --methods eigencam, which needs none"
        )
    return label, f"{names[label]} {100 * amounts[label]:.0f} {UNITS[subject.scope]}"


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
            over = show_cam_on_image(
                subject.picture.astype(np.float32) / 255, cam[:height, :width], use_rgb=True,
                colormap=cv2.COLORMAP_TURBO,
            )  # fmt: skip
            panels.append(fitted(over))
            captions.append(f"{method}, {title}")
            if method in OF_A_CLASS and not cam.any():
                print(f"{captions[-1]}: nothing in this layer speaks for the class")
        rows.append(beside(panels, captions))
    picture = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)))
    for i, row in enumerate(rows):
        picture.paste(row, (0, i * row.height))
    return picture


def main() -> None:
    parser = make_parser(__doc__, "cam.png")
    parser.add_argument("--layers", nargs="+", metavar="LAYER", help="numbers or dotted names")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(METHODS), help="default: all"
    )
    parser.add_argument(
        "--class", dest="wanted", metavar="NAME",
        help="class name or label for Grad-CAM and HiResCAM (default: that of the highest score, "
        "for a segmentor of the largest area)",
    )  # fmt: skip
    parser.add_argument("--score-thr", type=float, help="leave out detections below it (0.3)")
    args = parse_png(parser)
    subject = load_subject(args)
    if args.score_thr is not None and subject.scope != "mmdet":
        raise UsageError(f"--score-thr is for detectors, and this is a config of {subject.scope}")
    score_thr = 0.3 if args.score_thr is None else args.score_thr
    methods = [METHODS[name] for name in args.methods]
    picture = draw(subject, args.layers, methods, args.wanted, score_thr)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(args.out)
    print(f"written: {args.out}")


if __name__ == "__main__":
    run(main)
