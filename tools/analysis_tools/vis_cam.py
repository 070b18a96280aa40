"""Class activation maps: where in an image a model finds a class, and what a layer sees.

Grad-CAM and HiResCAM weight a layer's output by the gradient of a class's score, the first with one
weight a channel, the second cell by cell. The score of a class is a classifier's logit, the sum of
the scores of a detector's detections of it, or the sum of a segmentor's logits over its pixels.
Eigen-CAM, the first principal component of a layer's output, needs no class. Red is high.

A layer is a number, an output of the backbone (0 the first, -1 the last), or a dotted name such as
backbone.layers.2.blocks.1. Default: the last output for classifiers, all outputs for the others.

Examples:
  python tools/analysis_tools/vis_cam.py photo.jpg CONFIG CHECKPOINT --class dog --out cam.png
  python tools/analysis_tools/vis_cam.py photo.jpg CONFIG CHECKPOINT --layers 0 -1 backbone.layers.2
"""

# ruff: noqa: E402
import argparse
import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vig_mm.checks.environment import exit_without_mmengine

exit_without_mmengine()

import cv2
import numpy as np
import torch
from common import Parser, make_parser
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
from vig_mm.visualization.pictures import beside, fitted, save

GRAD, HIRES, EIGEN = "Grad-CAM", "HiResCAM", "Eigen-CAM"
UNITS = {"mmpretrain": "%", "mmdet": "% at best", "mmseg": "% of the pixels"}
STRIDES = (1, 2, 4, 8, 14, 16, 32, 64)  # of the grids that a layer's tokens are taken for


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


def subject_parser(doc: str | None, out: str) -> Parser:
    """With the arguments that say which image, model and picture."""
    parser = make_parser(doc, out)
    parser.add_argument("image", type=Path, metavar="IMAGE")
    parser.add_argument("config", metavar="CONFIG")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="of it, or a public ViG file")
    parser.add_argument("--device", help="e.g. cpu or cuda:1 (default: the GPU, if there is one)")
    add_config_options(parser)
    return parser


def load_subject(args: argparse.Namespace) -> Subject:
    """Build the model of the arguments and put their image through its test pipeline.

    Raises:
        UsageError: the image, the config or the device cannot be used.
        CheckpointError: the checkpoint does not fit the config.
    """
    image, cfg = read_image(args.image), load_config(args)
    predictor = Predictor(cfg, prepare_checkpoint(args.checkpoint, cfg.work_dir), args.device)
    model = predictor.inferencer.model.eval()
    (batch,) = predictor.inferencer.preprocess([image])
    if predictor.scope == "mmdet":
        _, batch = batch  # mmdet keeps the image beside it
    picture = np.ascontiguousarray(batch["inputs"][0].permute(1, 2, 0).cpu().numpy()[..., ::-1])
    fed = model.data_preprocessor(batch, False)
    (sample,), classes = fed["data_samples"], list(predictor.meta["classes"])
    return Subject(model, predictor.scope, picture, fed["inputs"], sample, classes)


# Scores of classes, with a gradient -------------------------------------------------------------


class _Attached(TorchFunctionMode):
    """In it, `Tensor.detach` detaches nothing: one-stage heads detach what they predict from."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
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
    model, count = subject.model, len(subject.classes)
    none, eigen = image.new_zeros(count), "use --methods eigencam"
    if subject.scope == "mmpretrain":
        scores = model(image, mode="tensor")[0]
        return scores, scores.detach().softmax(dim=0)
    if subject.scope == "mmseg":
        # padding does not count; the image is taken whole, also where the config slides a window
        height, width = subject.picture.shape[:2]
        logits = model.encode_decode(image, [subject.sample.metainfo])[0, :, :height, :width]
        if len(logits) != count:
            raise UsageError(
                f"{type(model).__name__} gives {len(logits)} map(s) of scores for {count} classes, "
                f"not one a class: {eigen}"
            )
        best, labels = (x.flatten() for x in logits.max(dim=0))
        return none.index_add(0, labels, best), labels.bincount(minlength=count) / len(labels)
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


def as_map(x: Any, size: tuple[int, int]) -> Tensor:
    """A layer's output as a map ``[B, C, h, w]``, whatever its layout.

    Args:
        x: ``[B, C, h, w]``, channels last ``[B, h, w, C]``, or tokens ``[B, N, C]`` in row-major
            order; a class token before them is left out.
        size: height and width of the network's input, by which the grid is recognised, of
            `STRIDES`, rounded up or down.

    Raises:
        UsageError: there is no such grid in it.
    """
    grids = [tuple(-(-side // stride) for side in size) for stride in STRIDES]
    grids += [tuple(side // stride for side in size) for stride in STRIDES]
    if not isinstance(x, Tensor):
        raise UsageError(f"its output is a {type(x).__name__}, no tensor")
    shape = tuple(x.shape)
    if len(shape) == 4:
        last = shape[2:] not in grids and shape[1:3] in grids
        return x.permute(0, 3, 1, 2) if last else x
    for extra in (0, 1) if len(shape) == 3 else ():
        for grid in grids:
            if grid[0] * grid[1] == shape[1] - extra:
                return x[:, extra:].unflatten(1, grid).permute(0, 3, 1, 2)
    raise UsageError(
        f"its output {shape} is neither a map nor tokens of a grid over an input of "
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
        if name.removeprefix("-").isdecimal():
            if not -count <= int(name) < count:
                raise UsageError(f"--layers {name}: there are {count} outputs, 0 to {count - 1}")
            return f"output {int(name) % count}", self.taps[int(name)]
        if not name or name not in modules:
            close = ", ".join(difflib.get_close_matches(name, modules, n=5, cutoff=0.3))
            raise UsageError(f"the model has no layer {name!r}; there are {close}, ...")
        return name.removeprefix("backbone."), modules[name]


class _OneMap(BaseCAM):
    """Before a method: sees that the layer ran once; 0 where the score does not depend on it."""

    def compute_cam_per_layer(self, *args) -> list[np.ndarray]:
        seen = self.activations_and_grads
        if (calls := len(seen.activations)) != 1:
            does = f"calls this layer {calls} times" if calls else "does not call this layer"
            raise UsageError(f"the model {does}; choose one inside or before it")
        if self.uses_gradients and not seen.gradients:
            seen.gradients = [torch.zeros_like(seen.activations[0])]
        return super().compute_cam_per_layer(*args)


class GradMap(_OneMap, GradCAM):
    """Grad-CAM (arXiv 1610.02391)."""


class HiResMap(_OneMap, HiResCAM):
    """HiResCAM (arXiv 2011.08891)."""


class EigenMap(_OneMap, EigenCAM):
    """Eigen-CAM (arXiv 2008.00299) by the covariance of the channels, of a defined sign.

    The package decomposes an N x N matrix, 16 GB in float32 for a detector's first stage of
    64 000 cells, and leaves to chance whether what stands out is high or low.
    """

    def get_cam_image(self, inputs, layer, targets, activations, grads, smooth=False) -> np.ndarray:
        """``[B, C, h, w]`` -> ``[B, h, w]``; the side that reaches farther from 0 is positive."""
        x = activations.reshape(*activations.shape[:2], -1).astype(np.float64)
        x -= x.mean(axis=2, keepdims=True)
        _, vectors = np.linalg.eigh(x @ x.transpose(0, 2, 1))
        cam = np.einsum("bc,bcn->bn", vectors[:, :, -1], x)
        cam *= np.where(-cam.min(axis=1) > cam.max(axis=1), -1, 1)[:, None]
        return cam.reshape(len(x), *activations.shape[2:]).astype(np.float32)


KINDS = {GRAD: GradMap, HIRES: HiResMap, EIGEN: EigenMap}
METHODS = {"gradcam": GRAD, "hirescam": HIRES, "eigencam": EIGEN}


def cam_map(method: str, probe: Probe, module: nn.Module, inputs: Tensor, label: int) -> np.ndarray:
    """One method's map of a layer, ``[1, 3, H, W]`` -> ``[H, W]``, 0 to 1, of the class `label`.

    Raises:
        UsageError: the layer gives no map, or not one a run.
    """
    size = tuple(inputs.shape[2:])
    cam = KINDS[method](probe, [module], reshape_transform=lambda x: as_map(x, size))
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
    if wanted is None:
        label = int(amounts.argmax())
    elif wanted in names:
        label = names.index(wanted)
    elif wanted.isdecimal() and int(wanted) < len(names):
        label = int(wanted)
    else:
        raise UsageError(
            f"--class {wanted}: no such class; give one of {', '.join(names[:10])}, ..., or a "
            f"label 0 to {len(names) - 1}"
        )
    if subject.scope != "mmpretrain" and not amounts[label]:
        present = [names[i] for i in amounts.argsort(descending=True)[:10] if amounts[i] > 0]
        lower = ", lower --score-thr" if subject.scope == "mmdet" else ""
        raise UsageError(
            f"the model finds {'nothing' if wanted is None else f'no {names[label]}'} in this "
            f"image, but {', '.join(present) or 'nothing else'}; choose another class{lower}, or "
            "use --methods eigencam, which needs none"
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
    asking = set(methods) != {EIGEN}
    if wanted is not None and not asking:
        raise UsageError(f"--class {wanted} has no meaning for Eigen-CAM, which knows no classes")
    probe = Probe(subject, score_thr if asking else None)
    default = [-1] if subject.scope == "mmpretrain" else range(len(probe.taps))
    found = {name: probe.find(name) for name in layers or map(str, default)}
    label, asked = 0, ""
    if asking:
        with torch.no_grad():
            probe(subject.inputs)
        label, asked = choose_class(subject, probe.amounts, wanted)
    height, width = subject.picture.shape[:2]
    shown, rows = subject.picture.astype(np.float32) / 255, []
    for method in methods:
        panels, captions = [fitted(subject.picture)], ["input" if method == EIGEN else asked]
        for name, (title, module) in found.items():
            try:
                cam = cam_map(method, probe, module, subject.inputs, label)[:height, :width]
            except UsageError as error:
                raise UsageError(f"--layers {name}: {error}") from error
            over = show_cam_on_image(shown, cam, use_rgb=True, colormap=cv2.COLORMAP_TURBO)
            panels.append(fitted(over))
            captions.append(f"{method}, {title}")
            if method != EIGEN and not cam.any():
                print(f"{captions[-1]}: nothing in this layer speaks for the class")
        rows.append(beside(panels, captions))
    picture = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)))
    for i, row in enumerate(rows):
        picture.paste(row, (0, i * row.height))
    return picture


def main() -> None:
    parser, methods = subject_parser(__doc__, "cam.png"), list(METHODS)
    parser.add_argument("--layers", nargs="+", metavar="LAYER", help="numbers or dotted names")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=methods, help="(all)")
    parser.add_argument(
        "--class", dest="wanted", metavar="NAME",
        help="class name or label for Grad-CAM and HiResCAM (default: that of the highest score, "
        "for a segmentor of the largest area)",
    )  # fmt: skip
    parser.add_argument("--score-thr", type=float, help="leave out detections below it (0.3)")
    args = parser.parse_args()
    subject = load_subject(args)
    if args.score_thr is not None and subject.scope != "mmdet":
        raise UsageError(f"--score-thr is for detectors, and this is a config of {subject.scope}")
    score_thr = 0.3 if args.score_thr is None else args.score_thr
    chosen = [METHODS[name] for name in args.methods]
    save(draw(subject, args.layers, chosen, args.wanted, score_thr), args.out)
    print(f"written: {args.out}")


if __name__ == "__main__":
    run(main)
