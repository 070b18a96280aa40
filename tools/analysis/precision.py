"""Measure how far bf16 and fp16 autocast move a backbone's outputs from those in float32.

Examples:
    python tools/analysis/precision.py
    python tools/analysis/precision.py --models ViG-T DeiT-S --size 224 --out work_dirs/p.json

Of every output map: the norm of the difference over the norm of the float32 map; the table shows
the largest of a model's maps. The float32 maps are computed on the CPU, the others on --device.

Two sets of random weights:

- initial: as training begins, except that layer scales are drawn, or an adapter's injectors, which
  begin at 0, would do nothing.
- unit gain: every layer keeps the size of its input, and no block is small beside the residual
  stream. Such a network multiplies any rounding. Its share of the blame is the error that is left
  when only the weights are rounded and everything is computed in float32; no arithmetic in that
  precision can do better.
"""

import argparse
import copy
import json
import math
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmark"))

from common import machine, markdown, write  # noqa: E402

import vig_mm  # noqa: E402

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
BOUNDS = {"bf16": 1e-2, "fp16": 2e-3}
ARCHS = {"T": "tiny", "S": "small", "B": "base"}
FAMILIES = {"ViG": "ViG", "ViG-H": "HierViG", "ViG adapter": "ViGAdapter"}
PEERS = {
    "DeiT-S": "deit_small_patch16_224",
    "Swin-T": "swin_tiny_patch4_window7_224",
    "ConvNeXt-T": "convnext_tiny",
}
NAMES = (*(f"{family}-{arch}" for family in FAMILIES for arch in ARCHS), *PEERS)
WEIGHTS = ("initial", "unit gain")
TABLE = "precision"  # name of the markers in the page


def build(name: str, size: int, **options) -> nn.Module:
    """A backbone of `NAMES` for square images, in evaluation mode, as training begins.

    Args:
        options: of ours, e.g. the depth.
    """
    if name in PEERS:
        import timm

        sized = {} if name.startswith("ConvNeXt") else {"img_size": size}
        return timm.create_model(PEERS[name], num_classes=0, **sized).eval()
    family, _, arch = name.rpartition("-")
    sized = {} if family == "ViG-H" else {"img_size": size}
    model = getattr(vig_mm, FAMILIES[family])(ARCHS[arch], drop_path_rate=0.0, **sized, **options)
    model.init_weights()
    return model.eval()


@torch.no_grad()
def draw(model: nn.Module, kind: str, seed: int = 0) -> nn.Module:
    """Give a model one of `WEIGHTS`, in place.

    Layer scales become x / 2, x standard normal; for unit gain also norm weights 1 + x / 10, biases
    and position embeddings x / 2, all other weights x / sqrt(fan-in).
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        x = torch.randn(parameter.shape, generator=generator)
        if name.endswith("gamma"):
            parameter.copy_(x / 2)
        elif kind == "unit gain":
            if parameter.dim() == 1:
                parameter.copy_(1 + x / 10 if name.endswith("weight") else x / 2)
            else:
                fan_in = 4 if "_embed" in name else math.prod(parameter.shape[1:])
                parameter.copy_(x / math.sqrt(fan_in))
    return model


def image(size: tuple[int, int], batch: int = 1, seed: int = 0) -> Tensor:
    """``[B, 3, *size]``, standard normal as after normalisation."""
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def maps(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Output maps (a classifier's feature vector is one) in float64 on the CPU."""
    found = model(x)
    return [y.cpu().double() for y in (found if isinstance(found, tuple) else (found,))]


def errors(found: list[Tensor], expected: list[Tensor]) -> list[float]:
    """Relative error of each map."""
    pairs = zip(found, expected, strict=True)
    return [((x - y).norm() / y.norm()).item() for x, y in pairs]


def autocast_errors(
    model: nn.Module, x: Tensor, dtype: torch.dtype, device: str, expected: list[Tensor]
) -> list[float]:
    """Of each map under autocast on a device, where it leaves the model."""
    model.to(device)
    with torch.autocast(device, dtype=dtype):
        return errors(maps(model, x.to(device)), expected)


def rounding_errors(
    model: nn.Module, x: Tensor, dtype: torch.dtype, expected: list[Tensor]
) -> list[float]:
    """Of each map when weights with more than one dimension are rounded, and nothing else."""
    model = copy.deepcopy(model).cpu()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data = parameter.data.to(dtype).float()
    return errors(maps(model, x), expected)


def measure(name: str, size: int, device: str) -> list[dict]:
    """Rows of the table: for each of `WEIGHTS` the errors of every map, smallest stride first."""
    rows, x = [], image((size, size))
    for kind in WEIGHTS:
        model = draw(build(name, size), kind)
        expected = maps(model, x)
        row = {"model": name, "weights": kind}
        for short, dtype in DTYPES.items():
            row[f"{short}_weights"] = rounding_errors(model, x, dtype, expected)
            row[short] = autocast_errors(model, x, dtype, device, expected)
            model.cpu()
        rows.append(row)
    return rows


def table(data: dict) -> str:
    columns = ["", "weights", "bf16", "its weights alone", "fp16", "its weights alone"]
    kinds = [key for short in DTYPES for key in (short, f"{short}_weights")]
    rows = [
        [row["model"], row["weights"], *(f"{max(row[key]):.1e}" for key in kinds)]
        for row in data["results"]
    ]
    about = ", ".join(f"{key} {value}" for key, value in data["machine"].items())
    size = data["size"]
    return f"Measured on: {about}; images {size}x{size}.\n\n{markdown(columns, rows)}"


def fill_page(page: Path, data: dict) -> None:
    """Renew what stands between the page's markers."""
    from model_table import fill

    page.write_text(fill(page.read_text(), TABLE, table(data)))
    print(f"written: {page}")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models", nargs="+", choices=NAMES, default=NAMES, metavar="NAME",
        help=f"default: all, {', '.join(NAMES)}",
    )  # fmt: skip
    parser.add_argument("--size", type=int, default=224, metavar="PIXELS", help="default: 224")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    parser.add_argument("--out", type=Path, default="work_dirs/precision.json", metavar="JSON")
    parser.add_argument("--page", type=Path, metavar="MD", help="page whose table is to be renewed")
    args = parser.parse_args()
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a CUDA GPU, and torch sees none")
    if args.size < 32:
        parser.error(f"--size: at least 32 pixels, got {args.size}")
    return args


def main() -> None:
    args = parse_args()
    results = []
    for name in args.models:
        for row in measure(name, args.size, args.device):
            results.append(row)
            worst = (f"{short} {max(row[short]):.1e}" for short in DTYPES)
            print(name, row["weights"], *worst, sep=", ", flush=True)
    data = {"machine": machine(args.device), "size": args.size, "results": results}
    write(args.out, json.dumps(data, indent=1) + "\n")
    print(f"written: {args.out}")
    if args.page:
        fill_page(args.page, data)


if __name__ == "__main__":
    main()
