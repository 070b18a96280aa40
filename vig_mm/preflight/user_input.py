"""Checks of command-line values, config files and output folders."""

import argparse
import inspect
import os
import traceback
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config, DictAction

from vig_mm.errors import UsageError

from .environment import SCOPES

_SEEDS = 2**31  # numpy takes 2**32, and mmengine adds the numbers of processes and workers


class ConfigOptions(DictAction):
    """mmengine's action for ``KEY=VALUE``, except that a mistake is argparse's kind of error."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Sequence[str],
        option_string: str | None = None,
    ) -> None:
        for value in values:
            key, sign, _ = value.partition("=")
            if not key or not sign:
                raise argparse.ArgumentError(self, f"{value!r} is not of the form KEY=VALUE")
            try:
                super().__call__(parser, namespace, [value], option_string)
            except (AssertionError, RecursionError) as error:
                raise argparse.ArgumentError(self, f"brackets in {value!r} do not match") from error


def seed(text: str) -> int:
    """The value of ``--seed``, for argparse.

    Raises:
        ArgumentTypeError: it is no number that all generators take.
    """
    if not (text.isascii() and text.isdigit() and int(text) < _SEEDS):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {_SEEDS - 1}")
    return int(text)


def read_config(path: str) -> Config:
    """Read a config file and those in its ``_base_``, without its custom imports.

    What the code in a config raises stays as it is: the traceback shows the line.

    Raises:
        UsageError: a file is missing, cannot be parsed, or is no config.
    """
    if not os.path.isfile(path):
        raise UsageError(f"config {path!r} is not a file (seen from {os.getcwd()!r})")
    try:
        return Config.fromfile(path, import_custom_modules=False)
    except SyntaxError as error:
        line = f", line {error.lineno}: {(error.text or '').strip()!r}" if error.lineno else ""
        raise UsageError(
            f"config {path!r}, or a file in its _base_, is no valid Python: {error.msg}{line}"
        ) from error
    except Exception as error:  # mmengine raises all kinds for files that it cannot take
        if any(frame.name == "<module>" for frame in traceback.extract_tb(error.__traceback__)):
            raise  # from a config's own code
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(f"config {path!r}, or a file in its _base_, cannot be read: {why}") from (
            error
        )


def scope_of(cfg: Config) -> str | None:
    """The library of a config: `default_scope`, or that of the model's or a data set's type."""
    entries = [cfg.get("model")]
    entries += [(cfg.get(f"{x}_dataloader") or {}).get("dataset") for x in ("train", "val", "test")]
    for entry in entries if cfg.get("default_scope") is None else ():
        kind = entry.get("type") if isinstance(entry, dict) else None
        # a user's own class: the library of its bases
        names = (
            [kind]
            if isinstance(kind, str)
            else [x.__module__ for x in inspect.getmro(kind)]
            if inspect.isclass(kind)
            else []
        )
        for name in names:
            if name.partition(".")[0] in SCOPES and "." in name:
                return name.partition(".")[0]
    return cfg.get("default_scope")


def check_folder(path: str, option: str) -> None:
    """See that there is a folder, or room for one.

    Args:
        option: where the path can be changed, for the message.

    Raises:
        UsageError: the path, or a part of it, is something else, such as a file.
    """
    absolute = Path(path).absolute()
    for part in (absolute, *absolute.parents):
        if os.path.lexists(part) and not os.path.isdir(part):
            raise UsageError(
                f"{option} {path!r} cannot be used: {str(part)!r} is no folder; choose another"
            )
