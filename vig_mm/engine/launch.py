"""What the tools share: arguments, config, device, checks, and the Runner."""

import argparse
import difflib
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.model.weight_init import PretrainedInit
from mmengine.registry import OPTIMIZERS, RUNNERS
from mmengine.runner import Runner
from mmengine.utils import import_modules_from_strings
from torch import nn

from .checkpoint import CheckpointError, check_numbers, read_checkpoint, weights
from .data_check import DataError
from .distributed import LaunchError, prepare_distributed
from .environment import SCOPES, RequirementError, require, tell_mmengine_of_forks
from .layer_decay import LayerDecayError
from .model_check import ModelError
from .user_input import ConfigOptions, UsageError, check_folder, read_config

UNPROTECTED = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
"""Environment variable by which torch.load runs what a checkpoint asks for."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that train and test have in common."""
    parser.add_argument("config", help="config file")
    parser.add_argument("--work-dir", help="folder of logs and results (default: work_dirs/CONFIG)")
    _add_cfg_options(parser)
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

    torch's protection against code in checkpoints stays on, also where mmengine reads them.
    """
    if os.environ.pop(UNPROTECTED, None) is not None:
        print(f"{sys.argv[0]}: {UNPROTECTED} is ignored: checkpoints are input", file=sys.stderr)
    mistakes = (
        UsageError, RequirementError, LaunchError, DataError, ModelError, LayerDecayError,
        CheckpointError,
    )  # fmt: skip
    try:
        main()
    except mistakes as error:
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


def build_runner(cfg: Config) -> Runner:
    """The Runner of a config. Without `--launcher` it also turns SyncBN into BN (mmengine)."""
    if "runner_type" not in cfg:
        return Runner.from_cfg(cfg)
    runner = RUNNERS.build(cfg)
    if isinstance(runner.model, dict):
        # FlexibleRunner would build it in the first line of train() or test()
        runner.model = runner.strategy.build_model(runner.model)
    return runner


def bare_model(model: nn.Module) -> nn.Module:
    """The model inside what distributed training and test-time augmentation put around it."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def check_optimizer(cfg: Config) -> None:
    """See that the optimizer's type is known; what mmengine says otherwise does not name it.

    Raises:
        UsageError: it is not; names one that comes close.
    """
    kind = cfg.get("optim_wrapper", {}).get("optimizer", {}).get("type")
    with OPTIMIZERS.switch_scope_and_registry(cfg.default_scope) as registry:
        if not isinstance(kind, str) or registry.get(kind) is not None:
            return
        known = {x.lower(): x for x in (*registry.module_dict, *OPTIMIZERS.module_dict)}
    close = difflib.get_close_matches(kind.lower(), known, 1)
    raise UsageError(
        f"optim_wrapper.optimizer.type: there is no optimizer {kind!r}"
        + (f", did you mean {known[close[0]]!r}?" if close else "; correct it or import its module")
    )


def check_initial_weights(cfg: Any) -> None:
    """Read the files that parts of a model take their first weights from, at any depth.

    Before anything is built, and because other backbones than ours leave that to mmengine, whose
    errors do not name the file.

    Args:
        cfg: A model's config, or an entry of it. Addresses in it are left to the loader.

    Raises:
        CheckpointError: a file is missing or is no checkpoint that can be loaded safely.
    """
    if isinstance(cfg, dict):
        path = cfg.get("checkpoint") if cfg.get("type") in ("Pretrained", PretrainedInit) else None
        if path and "://" not in path:
            read_checkpoint(path)
        cfg = list(cfg.values())
    if isinstance(cfg, list | tuple):
        for value in cfg:
            check_initial_weights(value)


def check_weights(model: nn.Module, path: str, partly: bool = False) -> None:
    """See that a checkpoint fits a model; mmengine only logs what does not and goes on without.

    Args:
        model: A Runner's model, wrapped or not.
        path: An mm checkpoint.
        partly: Whether it is enough that something fits, as when fine-tuning.

    Raises:
        CheckpointError: names what is missing, of another shape, or no finite number.
    """
    model = bare_model(model)
    state, _ = weights(read_checkpoint(path), path=path)
    own = {k: x for k, x in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    missing = [name for name in own if name not in state]
    reshaped = {
        name: f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    }
    unfit = len(missing) + len(reshaped)
    if unfit == len(own) if partly else unfit:
        details = "; ".join(
            f"{len(names)} {what}, e.g. {', '.join(names[:4])}"
            for what, names in (("missing", missing), ("of another shape", [*reshaped.values()]))
            if names
        )
        raise CheckpointError(
            f"{path!r} does not fit this config's model: of its {len(own)} weights {details}. "
            "Give the checkpoint that was trained with this config, or the config it was "
            "trained with."
        )
    fitting = {name: state[name] for name in own if name in state and name not in reshaped}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    check_numbers(fitting, parameters, path)
