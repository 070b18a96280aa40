"""How far the gates of each layer remember: the decay that a token meets with distance.

Token s reaches a later token t with the product of the forward gates after s up to t, and an
earlier one with that of the backward gates from t up to before s (ViG, section 3.2). Drawn, for one
image: that weight against distance in tokens over all key channels of all heads (median, the middle
80 %, all; of each channel the mean over the image), for both directions, and the weight that the
token at one place gives to each other one, the mean over channels. Tokens are in row-major order.

The numbers go to a JSON beside the picture, with the half-life of each channel: the tokens over
which its weight halves, by its mean decay a token; null where its gates are fully open.

Examples:
  python tools/analysis_tools/vis_gates.py photo.jpg CONFIG CHECKPOINT --out gates.png
  python tools/analysis_tools/vis_gates.py photo.jpg CONFIG CHECKPOINT --at 40 200 \\
    --layers backbone.layers.0.blocks.0.op backbone.layers.2.blocks.4.op
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import new_figure, save_figure, write_json
from torch import Tensor, nn
from vis_cam import Subject, load_subject, subject_parser

from vig_mm.apis.launch import run
from vig_mm.errors import UsageError
from vig_mm.kernels import GATE_LOGIT_NORMALIZER
from vig_mm.nets import GatedLinearAttention2d

FORWARD, BACKWARD = "forward", "backward"
PERCENTILES = (0, 10, 50, 90, 100)
POINTS = 60  # distances at most, evenly spaced on a logarithmic scale
ROW_HEIGHT, WIDTH = 2.6, 12.0  # inches
FAINTEST = 1e-3  # the lower end of the scale


@dataclass
class Gates:
    """log alpha of one layer for one image.

    Attributes:
        name: of the layer in the model.
        hw: grid of tokens.
        heads: H.
        forward, backward: ``[N, H * K]`` (float64), not positive.
    """

    name: str
    hw: tuple[int, int]
    heads: int
    forward: Tensor
    backward: Tensor

    def reach(self, direction: str, distance: int) -> Tensor:
        """Weights of all tokens ``distance`` before (forward) or after (backward): ``[n, H*K]``."""
        sums = self._sums(direction)
        return (sums[distance:] - sums[: len(sums) - distance]).exp()

    def seen_from(self, token: int) -> Tensor:
        """The weight that each token arrives with at one: ``[N, H * K]``, 1 for the token itself.

        Those before it come through its forward gates, those after it through the backward ones.
        """
        forward, backward = self._sums(FORWARD), self._sums(BACKWARD)
        before = forward[token] - forward[:token]
        return torch.cat((before, backward[token:] - backward[token])).exp()

    def _sums(self, direction: str) -> Tensor:
        """Running sums whose differences are the logarithms of weights.

        Inclusive for the forward gates (s < j <= t), exclusive for the backward ones (t <= j < s).
        """
        sums = getattr(self, direction).cumsum(dim=0)
        return sums if direction == FORWARD else sums - self.backward

    def report(self) -> dict:
        """What is plotted of both directions, and the half-life in tokens of each channel."""
        tokens = len(self.forward)
        spaced = np.geomspace(1, max(1, tokens - 1), POINTS).round().astype(int)
        at, found = np.unique([0, *spaced[spaced < tokens]]), {}
        for direction in (FORWARD, BACKWARD):
            weights = np.stack([self.reach(direction, int(d)).mean(dim=0).numpy() for d in at])
            lives = math.log(2) / getattr(self, direction).mean(dim=0).abs()
            found[direction] = dict(
                distance=at.tolist(),
                weight={f"p{p}": np.percentile(weights, p, axis=1).tolist() for p in PERCENTILES},
                half_life=[[_number(x) for x in h] for h in lives.unflatten(0, (self.heads, -1))],
                median_half_life=_number(lives.median()),
            )
        return dict(layer=self.name, grid=self.hw, **found)


def _number(value: Tensor) -> float | None:
    return round(float(value), 2) if math.isfinite(value) else None


def log_alpha(logits: Tensor) -> Tensor:
    """Gate logits -> log alpha (float64)."""
    return F.logsigmoid(logits.double()) / GATE_LOGIT_NORMALIZER


def gates_of(model: nn.Module, inputs: Tensor, names: list[str] | None = None) -> list[Gates]:
    """The gates of a model's layers for one image.

    Args:
        model: with a `GatedLinearAttention2d` in it, and mm's ``extract_feat``.
        inputs: ``[1, 3, H, W]``.
        names: layers, by their names in the model; None: all.

    Raises:
        UsageError: there are no such layers.
    """
    modules = model.named_modules()
    layers = {name: part for name, part in modules if isinstance(part, GatedLinearAttention2d)}
    if not layers:
        raise UsageError("the model has no gated linear attention: this needs a ViG backbone")
    if unknown := [name for name in names or () if name not in layers]:
        raise UsageError(
            f"--layers {unknown[0]}: no such gated layer; there are {', '.join(layers)}"
        )
    seen: dict[nn.Module, Any] = {}  # by attention its arguments, by projection its output
    handles = []
    for part in (layers[name] for name in names or layers):
        handles += [
            part.register_forward_pre_hook(lambda module, args: seen.update({module: args})),
            part.gk_proj.register_forward_hook(lambda module, _, out: seen.update({module: out})),
        ]
    with torch.no_grad():
        model.extract_feat(inputs)
    for handle in handles:
        handle.remove()
    found = []
    for name in names or layers:
        part = layers[name]
        halves = (log_alpha(half[0]).cpu() for half in seen[part.gk_proj].chunk(2, dim=-1))
        found.append(Gates(name, seen[part][1], part.num_heads, *halves))
    return found


def token_at(pixel: tuple[int, int], size: tuple[int, int], hw: tuple[int, int]) -> tuple[int, int]:
    """Row and column of the token whose cell a pixel (x, y) of the input ``size`` (H, W) is in."""
    row, column = pixel[1] * hw[0] // size[0], pixel[0] * hw[1] // size[1]
    return min(hw[0] - 1, row), min(hw[1] - 1, column)


def plot(
    subject: Subject, layers: list[Gates], reports: list[dict], pixel: tuple[int, int], path: Path
) -> None:
    """A row for each layer: the decay of both directions, and what the token at a pixel sees."""
    size = (WIDTH, ROW_HEIGHT * len(layers) + 0.6)
    figure, panels = new_figure(len(layers), 3, size)
    for row, gates, content in zip(panels, layers, reports, strict=True):
        for panel, direction in zip(row, (FORWARD, BACKWARD), strict=False):
            curves, at = content[direction]["weight"], content[direction]["distance"]
            for low, high, alpha, label in (
                ("p0", "p100", 0.15, "all channels"),
                ("p10", "p90", 0.3, "middle 80 % of channels"),
            ):
                panel.fill_between(
                    at, curves[low], curves[high], color="C0", alpha=alpha, label=label
                )
            panel.plot(at, curves["p50"], color="C0", label="median channel")
            panel.axvline(gates.hw[1], color="grey", linestyle=":", label="one row of tokens")
            panel.set(xscale="log", ylim=(0, 1.03), xlim=(1, max(2, at[-1])))
            panel.set_title(f"{direction}: median {_life(content[direction])}", fontsize=11)
            panel.grid(alpha=0.3)
        row[0].set_ylabel(f"{gates.name.removeprefix('backbone.')}\nweight", fontsize=11)
        _plot_map(row[2], subject, gates, pixel)
    for panel, label in zip(panels[-1], ["distance (tokens)"] * 2 + ["x (px)"], strict=True):
        panel.set_xlabel(label, fontsize=11)
    handles, names = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=4, fontsize=11)
    save_figure(figure, path, 90)


def _life(content: dict) -> str:
    life = content["median_half_life"]
    return "never halves" if life is None else f"half-life {life:.3g} tokens"


def _plot_map(panel: Any, subject: Subject, gates: Gates, pixel: tuple[int, int]) -> None:
    """The weights seen from the token at a pixel, under the picture's outlines."""
    from matplotlib.colors import LogNorm

    height, width = subject.inputs.shape[2:]
    row, column = token_at(pixel, (height, width), gates.hw)
    seen = gates.seen_from(row * gates.hw[1] + column).mean(dim=1).reshape(gates.hw).numpy()
    scale = dict(cmap="magma", norm=LogNorm(FAINTEST, 1), extent=(0, width, height, 0))
    drawn = panel.imshow(np.maximum(seen, FAINTEST), **scale)
    grey = np.zeros((height, width))
    shown = subject.picture.mean(axis=2)
    grey[: shown.shape[0], : shown.shape[1]] = shown
    if grey.min() < grey.max():
        panel.contour(grey, levels=[grey.mean()], colors="white", linewidths=0.4, alpha=0.6)
    centre = (column + 0.5) * width / gates.hw[1], (row + 0.5) * height / gates.hw[0]
    panel.plot(*centre, marker="+", color="lime", markersize=9)
    panel.set_title(f"seen from + (grid {gates.hw[0]}x{gates.hw[1]})", fontsize=11)
    panel.set_ylabel("y (px)", fontsize=10)
    panel.figure.colorbar(drawn, ax=panel).set_label("mean weight", fontsize=10)


def main() -> None:
    parser = subject_parser(__doc__, "gates.png")
    parser.add_argument("--layers", nargs="+", metavar="NAME", help="gated layers (default: all)")
    parser.add_argument(
        "--at", type=int, nargs=2, metavar=("X", "Y"),
        help="the place to look from, in pixels of the network's input (default: its centre)",
    )  # fmt: skip
    args = parser.parse_args()
    subject = load_subject(args)
    height, width = subject.inputs.shape[2:]
    x, y = args.at or (width // 2, height // 2)
    if not (0 <= x < width and 0 <= y < height):
        raise UsageError(f"--at {x} {y}: the network's input is {width} wide and {height} high")
    layers = gates_of(subject.model, subject.inputs, args.layers)
    reports, numbers = [gates.report() for gates in layers], args.out.with_suffix(".json")
    plot(subject, layers, reports, (x, y), args.out)
    about = dict(config=Path(args.config).stem, image=args.image.name)
    write_json(numbers, **about, layers=reports)
    for one in reports:
        lives = (f"{_life(one[direction])} {direction}" for direction in (FORWARD, BACKWARD))
        print(f"{one['layer']}: median {', '.join(lives)}")
    print(f"written: {args.out}, {numbers}")


if __name__ == "__main__":
    run(main)
