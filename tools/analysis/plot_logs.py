"""Plot loss and metric curves of one or several runs, one panel for each key.

RUN is the work dir of a training, or a file that it wrote (`<time>/vis_data/scalars.json`). The
parts of a resumed training are put together: what was trained again replaces what it was.

Without --keys the loss and the validation metrics are plotted (of COCO's the two averages).
Training keys run over iterations, validation keys over epochs where the run counts in epochs.

Example: python tools/analysis/plot_logs.py work_dirs/run1 work_dirs/run2 --keys loss 'coco/*mAP_50'
"""

import argparse
import json
import math
import os
import re
import sys
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402

ITERATION, EPOCH = "iteration", "epoch"
UNITS = {"memory": "MB", "time": "s", "data_time": "s", "accuracy/top1": "%", "accuracy/top5": "%"}
UNITS |= dict.fromkeys(("aAcc", "mIoU", "mAcc", "mDice", "mFscore", "mPrecision", "mRecall"), "%")
NOT_CURVES = ("step", "iter", "epoch")  # what says where on the axis a line belongs
SPEED = ("time", "data_time")  # logged by validations, too
STARTED = re.compile(r"\d{8}_\d{6}")  # name of the folder of one start
BREAKDOWN = re.compile(r"_mAP_(50|75|s|m|l)$|_mAP_copypaste$")
COLUMNS, PANEL_SIZE = 3, (4.6, 3.4)  # inches


class LogError(ValueError):
    """Something that cannot be plotted; the message says what and why."""


@dataclass
class Line:
    """One line of a log.

    Attributes:
        values: key -> number.
        training: whether it was logged while training, not by a validation.
        at: the iteration, or for a validation that counts in epochs the epoch.
        after: the last training iteration logged before it in its file.
    """

    values: dict[str, float]
    training: bool
    at: int
    after: int


@dataclass
class Run:
    """A training's lines in order, over all its parts."""

    name: str
    lines: list[Line] = field(default_factory=list)

    def add(self, part: list[Line]) -> None:
        """Append what was logged after a resumption, and drop what it trains again."""
        starts = [line.at for line in part if line.training][:1]
        for start in starts:
            self.lines = [line for line in self.lines if line.after < start]
        self.lines += part

    def validates_in(self) -> str:
        """The unit of validation lines: that of the training lines' own counting."""
        epochs = any("epoch" in line.values for line in self.lines if line.training)
        return EPOCH if epochs else ITERATION

    def keys(self, training: bool) -> list[str]:
        """Keys with numbers, in order of appearance."""
        lines = (line for line in self.lines if line.training is training)
        return list(dict.fromkeys(key for line in lines for key in line.values))

    def curve(self, key: str, training: bool) -> tuple[list[int], list[float]]:
        points = [
            (line.at, line.values[key])
            for line in self.lines
            if line.training is training and key in line.values
        ]
        return [x for x, _ in points], [y for _, y in points]


def read_log(path: Path) -> list[Line]:
    """The lines of a `scalars.json`.

    Raises:
        LogError: it is no such file, or there is nothing in it.
    """
    lines, last = [], 0
    texts = path.read_text(errors="replace").splitlines()
    for number, text in enumerate(texts, 1):
        try:
            values = json.loads(text)
            step = int(values["step"])
        except (ValueError, TypeError, KeyError) as error:
            if number == len(texts) > 1 and not text.endswith("}"):
                break  # a run is writing it just now
            raise LogError(
                f"{path}:{number} is no line of a training's scalars.json "
                f"({type(error).__name__}: {error})"
            ) from error
        training = "iter" in values
        last = step if training else last
        numbers = {k: v for k, v in values.items() if isinstance(v, int | float)}
        lines.append(Line(numbers, training, step, last))
    if not lines:
        raise LogError(f"{path} is empty: has the run logged anything yet?")
    return lines


def read_run(path: Path, name: str) -> Run:
    """A run from its work dir, one of its timestamped folders, or one file.

    Raises:
        LogError: there is no log.
    """
    if path.is_file():
        files = [path]
    elif path.is_dir():
        # named by the time that they were started at
        files = sorted(path.glob("**/vis_data/scalars.json")) or sorted(path.glob("scalars.json"))
    else:
        raise LogError(f"there is no {str(path)!r} (seen from {os.getcwd()!r})")
    if not files:
        raise LogError(
            f"no vis_data/scalars.json under {str(path)!r}: give the work dir of a training"
        )
    run = Run(name)
    for file in files:
        run.add(read_log(file))
    return run


def run_names(paths: list[Path]) -> list[str]:
    """For each run the shortest end of its path that no other run has, without `scalars.json`."""
    parts = []
    for path in paths:
        names = list(path.resolve().parts)
        if names[-2:] == ["vis_data", "scalars.json"]:
            names = names[:-2]
        if STARTED.fullmatch(names[-1]):  # says nothing without the work dir's name
            names[-2:] = ["/".join(names[-2:])]
        parts.append(names)
    for depth in range(1, max(map(len, parts)) + 1):
        ends = ["/".join(names[-depth:]) for names in parts]
        if len(set(ends)) == len(ends):
            return ends
    raise LogError("a run is given twice")


def choose(runs: list[Run], patterns: list[str] | None) -> list[tuple[str, bool]]:
    """What to plot: (key, whether it is a training key), in order.

    Raises:
        LogError: a pattern fits no key.
    """
    known = list(
        dict.fromkeys((k, kind) for kind in (True, False) for r in runs for k in r.keys(kind))
    )
    known = [(key, training) for key, training in known if key not in NOT_CURVES]
    if patterns is None:
        return [
            (key, training)
            for key, training in known
            if (key == "loss" if training else key not in SPEED and not BREAKDOWN.search(key))
        ]
    chosen = []
    for pattern in patterns:
        # time and the like are logged by both: they are meant of training
        fitting = [one for one in known if fnmatchcase(one[0], pattern)]
        own = [key for key, training in fitting if training]
        fitting = [one for one in fitting if one[1] or one[0] not in own]
        if not fitting:
            names = ", ".join(dict.fromkeys(key for key, _ in known))
            raise LogError(f"--keys {pattern}: no run has it; there are {names}")
        chosen += [one for one in fitting if one not in chosen]
    return chosen


def plot(runs: list[Run], keys: list[tuple[str, bool]], path: Path) -> None:
    """Draw one panel for each key, each run in its colour.

    Raises:
        LogError: runs that count in epochs and in iterations would share a panel.
    """
    columns = min(COLUMNS, len(keys))
    rows = math.ceil(len(keys) / columns)
    size = (columns * PANEL_SIZE[0], rows * PANEL_SIZE[1])
    figure, panels = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for panel, (key, training) in zip(panels.flat, keys, strict=False):
        having = [run for run in runs if key in run.keys(training)]
        units = {ITERATION if training else run.validates_in() for run in having}
        if len(units) > 1:
            names = ", ".join(f"{run.name} in {run.validates_in()}s" for run in having)
            raise LogError(f"{key} cannot share an axis: {names}; plot these runs one by one")
        for run in having:
            x, y = run.curve(key, training)
            marker = "o" if len(x) <= 30 else None
            colour = f"C{runs.index(run) % 10}"
            panel.plot(x, y, marker=marker, markersize=4, color=colour, label=run.name)
        panel.set_title(key, fontsize=12)
        panel.set_xlabel(units.pop(), fontsize=11)
        panel.set_ylabel(f"{key.rpartition('/')[2]}{unit(key)}", fontsize=11)
        panel.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=(1, 2, 5, 10)))
        panel.grid(alpha=0.3)
    for panel in list(panels.flat)[len(keys) :]:
        panel.set_axis_off()
    lines = {line.get_label(): line for panel in panels.flat for line in panel.get_lines()}
    figure.legend(
        [lines[run.name] for run in runs if run.name in lines],
        [run.name for run in runs if run.name in lines],
        loc="outside lower center",
        ncols=1 if len(runs) > columns or max(len(run.name) for run in runs) > 25 else len(runs),
        fontsize=11,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def unit(key: str) -> str:
    return f" ({UNITS[key]})" if key in UNITS else ""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="work dir of a training, or its log file"
    )
    parser.add_argument(
        "--keys", nargs="+", metavar="KEY", help="what to plot; * and ? stand for any characters"
    )
    parser.add_argument(
        "--out", type=Path, default="curves.png", metavar="FILE.png", help="picture (curves.png)"
    )
    args = parser.parse_args()
    if args.out.suffix.lower() != ".png":
        parser.error(f"--out must end in .png, not {args.out.name!r}")
    return args


def main() -> None:
    args = parse_args()
    names = run_names(args.runs)
    runs = [read_run(path, name) for path, name in zip(args.runs, names, strict=True)]
    keys = choose(runs, args.keys)
    if not keys:
        raise LogError(
            "no run has logged a loss or a validation metric yet; choose others by --keys"
        )
    plot(runs, keys, args.out)
    print(f"{args.out}: {', '.join(key for key, _ in keys)} of {len(runs)} run(s)")


if __name__ == "__main__":
    try:
        main()
    except LogError as error:
        sys.exit(f"{sys.argv[0]}: error: {error}")
