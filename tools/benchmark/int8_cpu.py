"""Dynamic int8 quantization of linear layers on a CPU: error and time against float32.

    python tools/benchmark/int8_cpu.py [--repeats 7] [--out docs/benchmark/int8_cpu.json]

Weights are drawn, images are noise: the error is the relative norm of the difference of the last
map, which trained weights and photographs change.
"""

import argparse
import copy
import warnings
from pathlib import Path

import torch
from common import machine, save, time_interleaved
from torch import nn

from vig_mm import nets

MODELS = {"ViG-T": ("ViG", "tiny"), "ViG-H-T": ("HierViG", "tiny")}
COLUMNS = ["model", "linear layers quantized", "float32 ms", "int8 ms", "speed-up", "error"]


def quantize(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear})


def measure(kind: str, arch: str, x: torch.Tensor, repeats: int) -> dict:
    torch.manual_seed(0)
    model = getattr(nets, kind)(arch).eval()
    other = quantize(model)
    linear = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    done = [name for name in linear if type(other.get_submodule(name)) is not nn.Linear]
    with torch.no_grad():
        expected, output = model(x)[-1], other(x)[-1]
        times = time_interleaved({"float32": lambda: model(x), "int8": lambda: other(x)}, repeats)
    error = ((output - expected).norm() / expected.norm()).item()
    return dict(linear=len(linear), quantized=len(done), error=error, seconds=times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmark/int8_cpu.json"))
    args = parser.parse_args()
    torch.manual_seed(0)
    x = torch.randn(args.batch, 3, args.size, args.size)
    results = {name: measure(*model, x, args.repeats) for name, model in MODELS.items()}
    rows = []
    for name, r in results.items():
        plain, int8 = (r["seconds"][kind]["min"] for kind in ("float32", "int8"))
        row = [name, f"{r['quantized']} of {r['linear']}", f"{plain * 1e3:.0f}"]
        rows.append([*row, f"{int8 * 1e3:.0f}", f"{plain / int8:.2f}", f"{r['error']:.1%}"])
    title = (
        f"Dynamic int8 of linear layers, {args.batch} images of {args.size}x{args.size}, best of "
    )
    data = dict(machine=machine(), batch=args.batch, size=args.size, results=results)
    save(f"{title}{args.repeats} runs", COLUMNS, rows, data, args.out)


if __name__ == "__main__":
    main()
