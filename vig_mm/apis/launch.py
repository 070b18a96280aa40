"""Launch training, testing and other tools from a config: arguments, config, device, Runner."""

import argparse
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import mmengine.registry
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.registry import RUNNERS, Registry
from mmengine.runner import Runner
from mmengine.utils import import_modules_from_strings

from vig_mm.checks.config import ConfigOptions, check_folder, read_config
from vig_mm.checks.environment import SCOPES, require, tell_mmengine_of_forks
from vig_mm.engine.distributed import prepare_distributed
from vig_mm.errors import CheckpointError, DataError, ModelError, UsageError, VigError
from vig_mm.serialization import check_torch

UNPROTECTED = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
"""Environment variable by which torch.load runs what a checkpoint asks for."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that train and test have in common."""
    parser.add_argument("config", help="config file")
    parser.add_argument("--work-dir", help="folder of logs and results (default: work_dirs/CONFIG)")
    _add_cfg_options(parser)
    parser.add_argument(
        "--no-check",
        action="store_true",
        help="run without the checks of data, model and weights: what the libraries take, goes",
    )
    parser.add_argument(
        "--launcher",
        choices=("none", "pytorch", "slurm", "mpi"),
        default="none",
        help="job launcher",
    )
    # Both spellings: torch.distributed.launch and mim pass one or the other.
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0)


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Add what `load_config` needs, for a tool of one process without a work folder of its own."""
    _add_cfg_options(parser)
    parser.set_defaults(work_dir=None, launcher="none", local_rank=0)


def _add_cfg_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=ConfigOptions,
        metavar="KEY=VALUE",
        help="override entries of the config, e.g. train_dataloader.batch_size=4 "
        'model.neck.in_channels="[96,192]" (quotes needed, no blanks inside)',
    )


@contextmanager
def skippable() -> Iterator[None]:
    """Name ``--no-check`` in what the checks inside refuse."""
    try:
        yield
    except (UsageError, DataError, ModelError, CheckpointError) as error:
        raise type(error)(
            f"{error}\nIf this is meant: --no-check runs all the same, without any of these checks"
        ) from error


def resolve_device(name: str | None) -> torch.device:
    """The device of ``--device``, the GPU by default where there is one.

    Raises:
        UsageError: it is not there.
    """
    device = name or get_device()
    try:
        return torch.empty(0, device=device).device
    except (AssertionError, RuntimeError) as error:  # torch without CUDA raises the former
        raise UsageError(f"--device {device}: {str(error).splitlines()[0]}") from error


def run(main: Callable[[], None]) -> None:
    """Run a tool; a mistake of its user ends in one message on stderr and exit status 1.

    So does Ctrl-C, with exit status 130; what a KeyboardInterrupt carries is said, too.

    torch's protection against code in checkpoints stays on, also where mmengine reads them.
    """
    if os.environ.pop(UNPROTECTED, None) is not None:
        print(f"{sys.argv[0]}: {UNPROTECTED} is ignored: checkpoints are input", file=sys.stderr)
    try:
        check_torch()
        main()
    except KeyboardInterrupt as stop:
        if is_main_process():
            print(f"\n{': '.join([f'{sys.argv[0]}: stopped', *stop.args])}", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except VigError as error:
        sys.exit(f"{sys.argv[0]}: error: {error}")
    except KeyError as error:
        if " registry. Please check whether " not in str(error):  # mmengine has no class for it
            raise
        sys.exit(f"{sys.argv[0]}: error: a type in the config is unknown: {error.args[0]}")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        sys.exit(f"{sys.argv[0]}: error: {error}: make room, then start again (with --resume)")
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):  # torch has no class for it
            raise
        sys.exit(
            f"{sys.argv[0]}: error: {str(error).splitlines()[0].strip()} A worker is killed when "
            "memory runs out (dmesg tells), and ends with a bus error when /dev/shm is full (df -h "
            "/dev/shm; docker run --shm-size=8g). Use fewer workers or smaller batches, e.g. "
            "--cfg-options train_dataloader.num_workers=1, and start again (with --resume)"
        )


def load_config(args: argparse.Namespace) -> Config:
    """Read a config, apply the common options, and see that its library is installed.

    Raises:
        UsageError: there is no such config, it cannot be read or changed as asked, it names none of
            the three libraries, or its work folder is a file.
        RequirementError: the environment does not fit (see `environment.require`).
        LaunchError: the processes do not fit ``--launcher`` (see `prepare_distributed`).
    """
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    tell_mmengine_of_forks()
    # Custom modules import the library, so its check comes first.
    cfg = read_config(args.config)
    if args.cfg_options is not None:
        try:
            cfg.merge_from_dict(args.cfg_options)
        except (KeyError, TypeError) as error:  # an index that a list lacks, a key of a number
            raise UsageError(f"--cfg-options do not fit {args.config}: {error.args[0]}") from error
    scope = cfg.get("default_scope")
    if scope not in SCOPES:
        raise UsageError(
            f"{args.config}: default_scope is {scope!r}, but must be one of {', '.join(SCOPES)}"
        )
    require(scope)
    complete_registries(scope)
    if cfg.get("custom_imports"):
        import_modules_from_strings(**cfg.custom_imports)

    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get("work_dir") is None:
        cfg.work_dir = os.path.join("work_dirs", Path(args.config).stem)
    check_folder(cfg.work_dir, "--work-dir")
    prepare_distributed(cfg)
    return cfg


def complete_registries(scope: str) -> None:
    """Give a library an empty registry wherever it has none of its own.

    Where there is none, mmengine falls back to its own all the same, but warns of an "unexpected
    failure" each time.
    """
    for root in vars(mmengine.registry).values():
        if isinstance(root, Registry) and root._search_child(scope) is None:
            Registry(root.name, parent=root, scope=scope, locations=[f"{scope}.registry"])


def build_runner(cfg: Config) -> Runner:
    """The Runner of a config. Without `--launcher` it also turns SyncBN into BN (mmengine)."""
    if "runner_type" not in cfg:
        return Runner.from_cfg(cfg)
    runner = RUNNERS.build(cfg)
    if isinstance(runner.model, dict):
        # FlexibleRunner would build it in the first line of train() or test()
        runner.model = runner.strategy.build_model(runner.model)
    return runner
