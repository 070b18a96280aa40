"""Plot loss and metric curves of one or several runs, one panel for each key.

RUN is the work dir of a training, or a file that it wrote (`<time>/vis_data/scalars.json`). The
parts of a resumed training are put together: what was trained again replaces what it was.

Without --keys the loss and the validation metrics are plotted (of COCO's the two averages).
Training keys run over iterations, validation keys over epochs where the run counts in epochs.

Example: python tools/analysis_tools/analyze_logs.py work_dirs/run1 work_dirs/run2 --keys loss '*mAP_50'
"""  # noqa: E501

import argparse
import json
import math
import re
import sys
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


class Run:
    """A training's lines in order, over all its parts: (values, whether of training, step)."""

    def __init__(self, name: str, files: list[Path]) -> None:
        self.name, self.lines = name, []
        for path in files:
            part = read_log(path)
            starts = [step for _, training, step in part if training][:1]
            for start in starts:  # what is trained again replaces what it was
                last, kept = 0, []
                for line in self.lines:
                    last = line[2] if line[1] else last
                    if last < start:
                        kept.append(line)
                self.lines = kept
            self.lines += part

    def validates_in(self) -> str:
        """The unit of validation lines: that of the training lines' own counting."""
        epochs = any("epoch" in values for values, training, _ in self.lines if training)
        return EPOCH if epochs else ITERATION

    def keys(self, training: bool) -> list[str]:
        """Keys with numbers, in order of appearance."""
        return list(dict.fromkeys(k for x, kind, _ in self.lines if kind is training for k in x))

    def curve(self, key: str, training: bool) -> tuple[list[int], list[float]]:
        points = [(at, x[key]) for x, kind, at in self.lines if kind is training and key in x]
        return [x for x, _ in points], [y for _, y in points]


def read_log(path: Path) -> list[tuple[dict[str, float], bool, int]]:
    """The lines of a `scalars.json`.

    Raises:
        LogError: it is no such file, or there is nothing in it.
    """
    lines, texts = [], path.read_text(errors="replace").splitlines()
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
        numbers = {k: v for k, v in values.items() if isinstance(v, int | float)}
        lines.append((numbers, "iter" in values, step))
    if not lines:
        raise LogError(f"{path} is empty: has the run logged anything yet?")
    return lines


def read_run(path: Path, name: str) -> Run:
    """A run from its work dir, one of its timestamped folders, or one file.

    Raises:
        LogError: there is no log.
    """
    if not path.exists():
        raise LogError(f"there is no {str(path)!r} (seen from {str(Path.cwd())!r})")
    # named by the time that they were started at
    files = [path] if path.is_file() else sorted(path.glob("**/vis_data/scalars.json"))
    if not (files := files or sorted(path.glob("scalars.json"))):
        raise LogError(
            f"no vis_data/scalars.json under {str(path)!r}: give the work dir of a training"
        )
    return Run(name, files)


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
    pairs = ((k, kind) for kind in (True, False) for run in runs for k in run.keys(kind))
    known = [(key, kind) for key, kind in dict.fromkeys(pairs) if key not in NOT_CURVES]
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
            marker, colour = "o" if len(x) <= 30 else None, f"C{runs.index(run) % 10}"
            panel.plot(x, y, marker=marker, markersize=4, color=colour, label=run.name)
        unit = f" ({UNITS[key]})" if key in UNITS else ""
        panel.set_title(key, fontsize=12)
        panel.set_xlabel(units.pop(), fontsize=11)
        panel.set_ylabel(f"{key.rpartition('/')[2]}{unit}", fontsize=11)
        panel.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=(1, 2, 5, 10)))
        panel.grid(alpha=0.3)
    for panel in list(panels.flat)[len(keys) :]:
        panel.set_axis_off()
    drawn = {line.get_label(): line for panel in panels.flat for line in panel.get_lines()}
    names = [run.name for run in runs if run.name in drawn]
    side_by_side = len(runs) <= columns and max(map(len, names)) <= 25
    figure.legend(
        [drawn[name] for name in names], names, loc="outside lower center", fontsize=11,
        ncols=len(runs) if side_by_side else 1,
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
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
    names = run_names(args.runs)
    runs = [read_run(path, name) for path, name in zip(args.runs, names, strict=True)]
    keys = choose(runs, args.keys)
    if not keys:
        raise LogError(
            "no run has logged a loss or a validation metric yet; choose others by --keys"
        )
    plot(runs, keys, args.out)
    print(f"written: {args.out}: {', '.join(key for key, _ in keys)} of {len(runs)} run(s)")


if __name__ == "__main__":
    try:
        main()
    except LogError as error:
        sys.exit(f"{sys.argv[0]}: error: {error}")
