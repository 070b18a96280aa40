"""Count how often the gradients' kernels reach for shared memory, in an emulator of their PTX.

    python tools/benchmark/shared_wavefronts.py --emulator FOLDER [--before FILE] [--out FILE]

FOLDER holds `ptx_emulator.py`. A wavefront is one pass over the 32 banks; more of them than an
access needs at least are bank conflicts. A sector is 32 bytes of global memory. Both for a token,
in bfloat16 beside a float32 residual stream, of the programs that the emulator samples.
``--before``: the JSON file of an earlier commit's run, whose figures stand beside.
"""

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path
from unittest import mock

os.environ["TRITON_INTERPRET"] = "0"
import torch
from common import report

CHANNELS = (96, 192, 256, 384, 768)
HW = (8, 8)
KERNELS = ("norm_gradient_kernel", "conv_gradient_kernel")


def run(channels: int) -> None:
    """Both kernels once."""
    from vig_mm.kernels.feed_forward.triton_norm import norm_backward
    from vig_mm.kernels.norm_conv.triton import conv_backward, statistics

    tokens = HW[0] * HW[1]
    x, residual = torch.randn(2, 1, tokens, channels)
    weight, bias, taps = torch.randn(11, channels).split([1, 1, 9])
    grad = torch.randn(1, tokens, channels).bfloat16()
    norm_backward(grad, x, weight[0], bias[0], residual, 1e-6)
    stats = statistics(x, True, 1e-6)
    weights = (weight[0], bias[0], taps.mT.reshape(channels, 1, 3, 3))
    conv_backward(grad, x, stats, *weights, residual, *HW, False)


def counts(emulator_class: type, channels: int) -> dict[str, dict[str, int]]:
    from vig_mm.kernels.feed_forward import triton_norm
    from vig_mm.kernels.norm_conv import triton as norm_conv

    emulator = emulator_class(90, keep_launches=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(emulator.installed())
        for module in (norm_conv, triton_norm):
            no_device = mock.patch.object(module, "device_of", lambda x: contextlib.nullcontext())
            stack.enter_context(no_device)
        run(channels)
    found = {}
    for launch in emulator.launches:
        if launch.code.name in KERNELS:
            shared, sectors = (
                [sum(int(x[i]) for x in counted.values()) for i in (0, 1)]
                for counted in (launch.wavefronts, launch.sectors)
            )
            found[launch.code.name] = {
                "wavefronts": shared[0],
                "least_wavefronts": shared[1],
                "sectors": sectors[0],
                "least_sectors": sectors[1],
            }
    return found


def ratio(found: dict[str, int], what: str) -> str:
    least = found[f"least_{what}"]
    return f"{found[what] / least:.2f}" if least else "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--emulator", required=True, help="folder of ptx_emulator.py")
    parser.add_argument("--before", help="JSON file of an earlier run")
    parser.add_argument("--out", default="docs/benchmark/shared_wavefronts.json")
    args = parser.parse_args()
    sys.path.insert(0, args.emulator)
    from ptx_emulator import Emulator

    results = {str(channels): counts(Emulator, channels) for channels in CHANNELS}
    before = json.loads(Path(args.before).read_text())["results"] if args.before else {}
    rows = []
    for kernel in KERNELS:
        for channels, found in results.items():
            old = before.get(channels, {}).get(kernel)
            rows.append([f"{kernel} C {channels}"])
            for what in ("wavefronts", "sectors"):
                rows[-1] += [ratio(old, what) if old else "", ratio(found[kernel], what)]
    columns = ["", "wavefronts before", "wavefronts", "sectors before", "sectors"]
    title = "Shared wavefronts and sectors for each that is needed at least, sm_90, emulated"
    report(title, columns, rows, {"results": results, "before": before}, args.out)


if __name__ == "__main__":
    main()
