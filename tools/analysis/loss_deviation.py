"""How far the training loss of runs is from that of the first one, e.g. bf16's from float32's.

Example: python tools/analysis/loss_deviation.py work_dirs/float32 work_dirs/bf16 --start 50

Compared are the logged losses, which are means of the last iterations (`log_processor.window_size`,
50 in this project's configs), at the iterations that both have logged. Give all runs the same seed.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from plot_logs import LogError, Run, read_run, run_names


def deviation(reference: Run, run: Run, key: str, start: int) -> dict[int, float]:
    """Relative difference at every common iteration from ``start`` on.

    Raises:
        LogError: there is none.
    """
    first, second = (dict(zip(*x.curve(key, True), strict=True)) for x in (reference, run))
    common = [step for step in first if step in second and step >= start]
    if not common:
        raise LogError(
            f"{reference.name} and {run.name} have logged {key} at no iteration from {start} on"
        )
    return {step: second[step] / first[step] - 1 for step in common}


def summary(differences: dict[int, float]) -> str:
    steps, values = (np.array(x) for x in zip(*differences.items(), strict=True))
    sizes = np.abs(values)
    return (
        f"{len(steps)} iterations to {steps[-1]}: mean {sizes.mean():.2%}, largest "
        f"{sizes.max():.2%} at {steps[sizes.argmax()]}, last {values[-1]:+.2%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("reference", type=Path, help="work dir of the run to compare with")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="work dirs of others")
    parser.add_argument("--key", default="loss", help="what to compare (loss)")
    parser.add_argument(
        "--start", type=int, default=0, metavar="ITERATION", help="leave out what comes before"
    )
    args = parser.parse_args()
    paths = [args.reference, *args.runs]
    runs = [read_run(path, name) for path, name in zip(paths, run_names(paths), strict=True)]
    for run in runs[1:]:
        print(f"{run.name}: {summary(deviation(runs[0], run, args.key, args.start))}")


if __name__ == "__main__":
    try:
        main()
    except LogError as error:
        sys.exit(f"{sys.argv[0]}: error: {error}")
