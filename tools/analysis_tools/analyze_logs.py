"""Plot loss and metric curves of one or several runs, one panel for each key.

RUN is the work dir of a training, or a file that it wrote (`<time>/vis_data/scalars.json`). The
parts of a resumed training are put together: what was trained again replaces what it was.
Training keys run over iterations, validation keys over epochs where the run counts in epochs.

Example: python tools/analysis_tools/analyze_logs.py work_dirs/run1 work_dirs/run2 --keys loss '*mAP_50'
"""  # noqa: E501

import json
import math
import os
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from common import make_parser, new_figure, run, save_figure

from vig_mm.errors import UsageError

ITERATION, EPOCH = "iteration", "epoch"
UNITS = {"memory": "MB", "time": "s", "data_time": "s", "accuracy/top1": "%", "accuracy/top5": "%"}
UNITS |= dict.fromkeys(("aAcc", "mIoU", "mAcc", "mDice", "mFscore", "mPrecision", "mRecall"), "%")
NOT_CURVES = ("step", "iter", "epoch")  # what says where on the axis a line belongs
SPEED = ("time", "data_time")  # logged by validations, too
STARTED = re.compile(r"\d{8}_\d{6}")  # name of the folder of one start
BREAKDOWN = re.compile(r"_mAP_(50|75|s|m|l)$|_mAP_copypaste$")
COLUMNS, PANEL_SIZE = 3, (4.6, 3.4)  # inches


class Line(NamedTuple):
    values: dict[str, float]
    training: bool
    step: int  # of a validation in iterations or epochs
    after: int  # iterations


class Run(NamedTuple):
    name: str
    lines: list[Line]

    def unit(self, training: bool) -> str:
        """What lines count in; validations as the training lines' own counting says."""
        epochs = any("epoch" in line.values for line in self.lines if line.training)
        return EPOCH if epochs and not training else ITERATION

    def keys(self, training: bool) -> list[str]:
        """Keys with numbers, in order of appearance."""
        lines = (line for line in self.lines if line.training is training)
        return list(dict.fromkeys(key for line in lines for key in line.values))

    def curve(self, key: str, training: bool) -> tuple[list[int], list[float]]:
        lines = [x for x in self.lines if x.training is training and key in x.values]
        return [line.step for line in lines], [line.values[key] for line in lines]


def read_log(path: Path, after: int = 0) -> list[Line]:
    """The lines of a `scalars.json` that follows so many iterations.

    Raises:
        UsageError: it is no such file, or there is nothing in it.
    """
    lines, texts = [], path.read_text(errors="replace").splitlines()
    for number, text in enumerate(texts, 1):
        try:
            values = json.loads(text)
            step = int(values["step"])
        except (ValueError, TypeError, KeyError) as error:
            if number == len(texts) > 1 and not text.endswith("}"):
                break  # a run is writing it just now
            raise UsageError(
                f"{path}:{number} is no line of a training's scalars.json "
                f"({type(error).__name__}: {error})"
            ) from error
        numbers = {k: v for k, v in values.items() if isinstance(v, int | float)}
        after = step if "iter" in values else after
        lines.append(Line(numbers, "iter" in values, step, after))
    if not lines:
        raise UsageError(f"{path} is empty: has the run logged anything yet?")
    return lines


def read_run(path: Path, name: str) -> Run:
    """A run from its work dir, one of its timestamped folders, or one file.

    Raises:
        UsageError: there is no log.
    """
    if not path.exists():
        raise UsageError(f"there is no {str(path)!r} (seen from {str(Path.cwd())!r})")
    # named by the time that they were started at
    files = [path] if path.is_file() else sorted(path.glob("**/vis_data/scalars.json"))
    if not (files := files or sorted(path.glob("scalars.json"))):
        raise UsageError(
            f"no vis_data/scalars.json under {str(path)!r}: give the work dir of a training"
        )
    lines: list[Line] = []
    for file in files:
        part = read_log(file, lines[-1].after if lines else 0)
        # what is trained again replaces what it was
        start = next((line.step for line in part if line.training), math.inf)
        lines = [line for line in lines if line.after < start] + part
    return Run(name, lines)


def run_names(paths: list[Path]) -> list[str]:
    """Of each run what its path has besides those of the others, without `scalars.json`.

    Raises:
        UsageError: a run is given twice.
    """
    folders = [path.parents[1] if path.parent.name == "vis_data" else path for path in paths]
    shared = os.path.commonpath([folder.resolve().parent for folder in folders])
    # the folder of one start says nothing without the work dir's name
    while STARTED.match(os.path.relpath(folders[0].resolve(), shared)):
        shared = os.path.dirname(shared)
    names = [Path(os.path.relpath(folder.resolve(), shared)).as_posix() for folder in folders]
    if len(set(names)) < len(names):
        raise UsageError("a run is given twice")
    return names


def choose(runs: list[Run], patterns: list[str] | None) -> list[tuple[str, bool]]:
    """What to plot: (key, whether it is a training key), in order.

    Raises:
        UsageError: a pattern fits no key, or there is nothing to plot.
    """
    pairs = ((k, kind) for kind in (True, False) for run in runs for k in run.keys(kind))
    known = [(key, kind) for key, kind in dict.fromkeys(pairs) if key not in NOT_CURVES]
    chosen = []
    for pattern in patterns or ():
        # time and the like are logged by both: they are meant of training
        fitting = [one for one in known if fnmatchcase(one[0], pattern)]
        own = [key for key, training in fitting if training]
        fitting = [one for one in fitting if one[1] or one[0] not in own]
        if not fitting:
            names = ", ".join(dict.fromkeys(key for key, _ in known))
            raise UsageError(f"--keys {pattern}: no run has it; there are {names}")
        chosen += [one for one in fitting if one not in chosen]
    if patterns is None:
        left_out = [key for key, _ in known if key in SPEED or BREAKDOWN.search(key)]
        chosen = [x for x in known if (x[0] == "loss" if x[1] else x[0] not in left_out)]
    if not chosen:
        raise UsageError("no run has logged a loss or a validation metric yet: choose by --keys")
    return chosen


def plot(runs: list[Run], keys: list[tuple[str, bool]], path: Path) -> None:
    """Draw one panel for each key, each run in its colour.

    Raises:
        UsageError: runs that count in epochs and in iterations would share a panel.
    """
    from matplotlib.ticker import MaxNLocator

    columns = min(COLUMNS, len(keys))
    rows = math.ceil(len(keys) / columns)
    size = (columns * PANEL_SIZE[0], rows * PANEL_SIZE[1])
    figure, panels = new_figure(rows, columns, size)
    drawn = {}
    for panel, (key, training) in zip(panels.flat, keys, strict=False):
        having = [run for run in runs if key in run.keys(training)]
        units = {run.unit(training) for run in having}
        if len(units) > 1:
            names = ", ".join(f"{run.name} in {run.unit(training)}s" for run in having)
            raise UsageError(f"{key} cannot share an axis: {names}; plot these runs one by one")
        for one in having:
            x, y = one.curve(key, training)
            marker, colour = "o" if len(x) <= 30 else None, f"C{runs.index(one) % 10}"
            (drawn[one.name],) = panel.plot(x, y, marker=marker, markersize=4, color=colour)
        panel.set_title(key, fontsize=12)
        panel.set_xlabel(units.pop(), fontsize=11)
        unit = f" ({UNITS[key]})" if key in UNITS else ""
        panel.set_ylabel(f"{key.rpartition('/')[2]}{unit}", fontsize=11)
        panel.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=(1, 2, 5, 10)))
        panel.grid(alpha=0.3)
    for panel in list(panels.flat)[len(keys) :]:
        panel.set_axis_off()
    names = [run.name for run in runs if run.name in drawn]
    columns = columns if max(map(len, names)) <= 25 else 1
    place = dict(loc="outside lower center", ncols=columns, fontsize=11)
    figure.legend([drawn[name] for name in names], names, **place)
    save_figure(figure, path, 120)


def main() -> None:
    parser = make_parser(__doc__, "curves.png")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument(
        "--keys", nargs="+", metavar="KEY",
        help="what to plot, with * and ? for any characters (default: the loss and the validation "
        "metrics, of COCO's the two averages)",
    )  # fmt: skip
    args = parser.parse_args()
    names = run_names(args.runs)
    runs = [read_run(path, name) for path, name in zip(args.runs, names, strict=True)]
    keys = choose(runs, args.keys)
    plot(runs, keys, args.out)
    print(f"written: {args.out}: {', '.join(key for key, _ in keys)} of {len(runs)} run(s)")


if __name__ == "__main__":
    run(main)
