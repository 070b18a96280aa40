"""Host time of a block's training step: what the CPU does until all is launched.

    python tools/benchmark/host_time.py [OTHER CHECKOUT] [--rounds 5]

Triton launches into a driver that does nothing (tests/test_kernels/stand_in_gpu.py), and torch's
own operators run on the CPU, on few tokens: they cost about what a launch does, or more. This
checkout and another one, such as ``git worktree add FOLDER COMMIT`` gives, take turns in processes
of their own. The least CPU time of all rounds counts. Needs a C compiler.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BATCH, HW, CHANNELS, HEADS = 1, (5, 14), 32, 2  # two chunks
STEPS = 100
MODES = ("float32", "bfloat16 autocast")


def time_steps(driver: Path) -> dict[str, list[float]]:
    """Milliseconds of both passes by mode."""
    import torch
    from stand_in_gpu import install_driver

    import vig_mm

    install_driver(driver)
    torch.manual_seed(0)
    settings = dict(depth=2, mixer_act=True, drop_path_rate=0.1, backend="triton")
    block = vig_mm.ViG(embed_dims=CHANNELS, num_heads=HEADS, **settings).train().blocks[1]
    x = torch.randn(BATCH, HW[0] * HW[1], CHANNELS, requires_grad=True)
    grad = torch.randn_like(x)

    def step(dtype: torch.dtype | None) -> tuple[float, float]:
        start = time.process_time()
        with torch.autocast("cpu", dtype=dtype) if dtype else contextlib.nullcontext():
            out = block(x, HW)
        middle = time.process_time()
        out.backward(grad)
        return middle - start, time.process_time() - middle

    found = {}
    for mode, dtype in zip(MODES, (None, torch.bfloat16), strict=True):
        accept_cpu_tensors(lambda dtype=dtype: step(dtype))
        passes = [step(dtype) for _ in range(STEPS)]
        found[mode] = [1e3 * min(times) for times in zip(*passes, strict=True)]
    return found


def accept_cpu_tensors(step: Callable[[], Any]) -> None:
    """Run a step, with all modules that it imports told that there is a GPU."""
    while True:
        for name, module in list(sys.modules.items()):
            if name.startswith("vig_mm.kernels") and hasattr(module, "device_of"):
                module.device_of = lambda x: contextlib.nullcontext()  # type: ignore[attr-defined]
        before = len(sys.modules)
        try:
            step()
            return
        except ValueError:  # of a module that was not here before
            if len(sys.modules) == before:
                raise


def time_checkout(checkout: Path, folder: Path) -> dict[str, list[float]]:
    """`time_steps` in a process with the package of a checkout."""
    tree = folder / "-".join(checkout.parts[1:]) / "vig_mm"
    if not tree.exists():
        tree.mkdir(parents=True)
        for source in (*(checkout / "vig_mm").iterdir(), checkout / "kernels"):
            (tree / source.name).symlink_to(source)
    environment = {**os.environ, "PYTHONPATH": str(tree.parent)}
    environment |= {"TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--driver", str(folder)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", nargs="?", type=Path, help="another checkout to compare with")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--driver", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests/test_kernels"))
    if args.driver:
        print(json.dumps(time_steps(args.driver)))
        return
    from stand_in_gpu import build_driver

    checkouts = [ROOT, *([args.other.resolve()] if args.other else [])]
    with tempfile.TemporaryDirectory() as folder:
        build_driver(Path(folder))
        rounds = [[time_checkout(x, Path(folder)) for x in checkouts] for _ in range(args.rounds)]
    for mode in MODES:
        least = [
            [min(r[i][mode][k] for r in rounds) for k in (0, 1)] for i in range(len(checkouts))
        ]
        for path, (forward, backward) in zip(checkouts, least, strict=True):
            print(f"{mode:18} {forward:.3f} + {backward:.3f} ms  {path.name}")
        if args.other:
            print(f"{mode:18} {sum(least[0]) / sum(least[1]):.2f} of the other's")


if __name__ == "__main__":
    main()
