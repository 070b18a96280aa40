"""Effective receptive field of a backbone: what of the image its centre outputs depend on.

The gradient of an output's centre unit with respect to the input, in absolute value, summed over
colours and averaged over images (Luo et al., arXiv 1701.04128), as a picture, and in a JSON the
area that holds 30, 50 and 99 % of it: `side` in pixels of the square around its median, `area` of
that square and `share` of the smallest set of pixels, both as shares of the image.

Examples:
  python tools/analysis_tools/vis_receptive_field.py CONFIG --out erf.png
  python tools/analysis_tools/vis_receptive_field.py CONFIG CHECKPOINT --images photos --size 96 96
"""

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import torch
from common import at_least, make_parser, new_figure, save_figure, write_json
from get_flops import build
from mmengine.config import Config
from mmengine.runner import load_checkpoint
from torch import Tensor, nn

from vig_mm.apis.inference import read_image
from vig_mm.apis.launch import add_config_options, load_config, resolve_device, run
from vig_mm.checkpoints.conversion import prepare_checkpoint
from vig_mm.checks.weights import check_weights
from vig_mm.datasets.files import IMAGES, files
from vig_mm.errors import UsageError

QUANTILES = (0.3, 0.5, 0.99)
PANEL = 3.6  # inches
DARKEST = 1e-4  # of the highest value: the colour scale's other end


def receptive_fields(
    backbone: nn.Module, images: Iterable[Tensor], seed: int = 0
) -> tuple[list[np.ndarray], list[tuple[int, int]]]:
    """Gradient of each output's centre unit, averaged over images.

    The unit's channels are added with random signs, drawn anew for each image: added as they are,
    the channels of a LayerNorm give a constant, whose gradient is zero.

    Args:
        backbone: in eval mode; ``[1, 3, H, W]`` -> maps ``[1, C, h, w]``.
        images: ``[1, 3, H, W]`` each, all of one size.
        seed: of the channels' signs.

    Returns:
        for each output the mean absolute gradient ``[H, W]`` (float64) and the grid (h, w).

    Raises:
        UsageError: an output is not a map.
    """
    generator = torch.Generator().manual_seed(seed)
    fields: list[list[np.ndarray]] = []  # of each image those of the outputs
    for image in images:
        image, found = image.detach().requires_grad_(), []
        outputs = backbone(image)
        if any(output.dim() != 4 for output in outputs):
            raise UsageError(
                f"outputs of this backbone have shapes {[tuple(x.shape) for x in outputs]}: maps "
                "[B, C, h, w] are needed, see its out_type or out_indices"
            )
        for output in outputs:
            unit = output[0, :, output.shape[2] // 2, output.shape[3] // 2]
            signs = torch.randint(2, unit.shape, generator=generator).to(unit) * 2 - 1
            (gradient,) = torch.autograd.grad(unit @ signs, image, retain_graph=True)
            found.append(gradient[0].double().abs().sum(dim=0).cpu().numpy())
        fields.append(found)
    grids = [tuple(output.shape[2:]) for output in outputs]
    return [np.mean(field, axis=0) for field in zip(*fields, strict=True)], grids


def extents(field: np.ndarray, centre: tuple[int, int]) -> dict[str, dict[str, float]]:
    """How far a field reaches, for each of `QUANTILES`.

    Args:
        field: ``[H, W]``, not negative, not all zero.
        centre: row and column of the pixel that the squares are centred on; they are cut at the
            image's border.

    Returns:
        per quantile ``side`` (pixels, at most the image's longer one), ``area`` and ``share`` (of
        the image).
    """
    total = field.sum()
    ordered = np.cumsum(np.sort(field, axis=None)[::-1])
    rows, columns = (np.abs(np.arange(n) - c) for n, c in zip(field.shape, centre, strict=True))
    ring = np.maximum(rows[:, None], columns[None, :])  # distance to the centre, as squares grow
    inside = np.cumsum(np.bincount(ring.ravel(), weights=field.ravel()))
    cells = np.cumsum(np.bincount(ring.ravel()))
    result = {}
    for quantile in QUANTILES:
        # rounding must not push the last pixel over the whole
        wanted = quantile * total * (1 - 1e-12)
        radius = int(np.searchsorted(inside, wanted))
        result[f"{quantile:.0%}"] = dict(
            side=min(2 * radius + 1, max(field.shape)),
            area=float(cells[radius] / field.size),
            share=float((np.searchsorted(ordered, wanted) + 1) / field.size),
        )
    return result


def middle(field: np.ndarray) -> tuple[int, int]:
    """Row and column of the median of a field ``[H, W]``.

    Not the centre of the unit's cell: what a strided convolution reads lies up to half a cell
    beside it.
    """
    halves = (np.cumsum(field.sum(axis=axis)) for axis in (1, 0))
    return tuple(int(np.searchsorted(sums, sums[-1] / 2)) for sums in halves)


def plot(fields: list[np.ndarray], outputs: list[dict], path: Path, title: str) -> None:
    """A panel for each output: its field on a logarithmic scale, squares of 50 and 99 %."""
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle

    figure, panels = new_figure(1, len(fields), (PANEL * len(fields) + 1, PANEL + 1))
    for panel, field, output in zip(panels.flat, fields, outputs, strict=True):
        shown = np.maximum(field / field.max(), DARKEST)
        drawn = panel.imshow(shown, cmap="magma", norm=LogNorm(DARKEST, 1))
        row, column = output["centre"]
        sides = []
        for quantile, colour in (("50%", "blue"), ("99%", "lime")):
            side = output["holds"][quantile]["side"]
            corner = (column - side / 2, row - side / 2)
            panel.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=colour, lw=1.5))
            sides.append(f"{quantile[:-1]} % in {side} px")
        grid = "{}x{}".format(*output["grid"])
        panel.set_title(f"output {output['index']} ({grid})\n{', '.join(sides)}", fontsize=11)
        panel.set_xlabel("x (px)", fontsize=11)
    panels.flat[0].set_ylabel("y (px)", fontsize=11)
    bar = figure.colorbar(drawn, ax=panels, shrink=0.8)
    bar.set_label("mean |gradient| / its maximum", fontsize=11)
    figure.suptitle(f"{title}; blue square: 50 %, green: 99 %", fontsize=12)
    save_figure(figure, path)


def load_model(cfg: Config, checkpoint: str | None, seed: int) -> nn.Module:
    """The config's model in eval mode, with a checkpoint's weights or random ones."""
    torch.manual_seed(seed)
    if "backbone" not in cfg.model:
        raise UsageError("the config's model has no backbone")
    cfg.model.backbone.pop("init_cfg", None)  # no file of another machine
    model = build(cfg)
    if checkpoint is None:
        model.backbone.init_weights()
    else:
        path = prepare_checkpoint(checkpoint, cfg.work_dir)
        load_checkpoint(model, path, map_location="cpu", logger="silent")
        check_weights(model, path)
    return model.eval()


def inputs(
    folder: Path | None, size: tuple[int, int], count: int, seed: int, preprocessor: nn.Module
) -> list[Tensor]:
    """At most ``count`` pictures of a folder in the network's size, or as many of normal noise.

    Raises:
        UsageError: there is no picture.
    """
    if folder is None:  # as a normalised image is distributed
        generator = torch.Generator().manual_seed(seed)
        return [torch.randn(1, 3, *size, generator=generator) for _ in range(count)]
    found = files(folder, IMAGES, any_case=True)
    if not found:
        raise UsageError(f"--images: no picture ({', '.join(IMAGES)}) in {str(folder)!r}")
    images = []
    # from all over the folder, not the first class alone
    for name in found[:: -(-len(found) // count)]:
        image = cv2.resize(read_image(folder / name), size[::-1], interpolation=cv2.INTER_AREA)
        batch = preprocessor(dict(inputs=[torch.from_numpy(image).permute(2, 0, 1)]), False)
        images.append(batch["inputs"][:, :, : size[0], : size[1]])
    return images


def main() -> None:
    parser, number = make_parser(__doc__, "receptive_field.png"), at_least(1)
    parser.add_argument("config", metavar="CONFIG", help="of any backbone")
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", nargs="?",
        help="its checkpoint, or a public ViG file (default: random weights)",
    )  # fmt: skip
    sides = dict(type=number, nargs=2, default=(224, 224), metavar=("H", "W"))
    parser.add_argument("--size", **sides, help="of the input in pixels (224 224)")
    parser.add_argument("--images", type=Path, metavar="DIR", help="pictures (default: noise)")
    parser.add_argument("--count", type=number, default=20, help="images at most (20)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, noise and signs (0)")
    parser.add_argument("--device", help="e.g. cpu or cuda:1 (default: the GPU, if there is one)")
    add_config_options(parser)
    args = parser.parse_args()
    cfg = load_config(args)
    device, size = resolve_device(args.device), tuple(args.size)
    model = load_model(cfg, args.checkpoint, args.seed)
    images = inputs(args.images, size, args.count, args.seed, model.data_preprocessor)
    model.to(device)
    try:
        batches = (image.to(device) for image in images)
        fields, grids = receptive_fields(model.backbone, batches, args.seed)
    except (ValueError, AssertionError) as error:
        raise UsageError(f"the backbone refuses images of {size[0]}x{size[1]}: {error}") from error
    outputs = []
    for i, (field, grid) in enumerate(zip(fields, grids, strict=True)):
        if not field.any():
            raise UsageError(f"output {i} does not depend on the image: are its weights all zero?")
        centre = middle(field)
        outputs.append(dict(index=i, grid=grid, centre=centre, holds=extents(field, centre)))
        held = ", ".join(f"{k}: {v['side']} px" for k, v in outputs[-1]["holds"].items())
        print(f"output {i}: {held}")
    name, numbers = Path(args.config).stem, args.out.with_suffix(".json")
    weights = Path(args.checkpoint).name if args.checkpoint else "random weights"
    plot(fields, outputs, args.out, f"{name}, {weights}")
    report = dict(config=name, weights=weights, size=size, images=len(images), outputs=outputs)
    write_json(numbers, **report, inputs="pictures" if args.images else "normal noise")
    print(f"written: {args.out}, {numbers}")


if __name__ == "__main__":
    run(main)
