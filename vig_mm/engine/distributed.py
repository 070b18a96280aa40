"""Distributed runs: checks of the launcher's variables, and training on CPUs through gloo."""

import os
from datetime import timedelta
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_distributed, is_main_process
from mmengine.logging import print_log

from vig_mm.errors import LaunchError
from vig_mm.registry import type_name

# torch's name of a process's place -> where the launcher says it
_PLACES = {
    "pytorch": {"RANK": "RANK", "WORLD_SIZE": "WORLD_SIZE", "LOCAL_RANK": "LOCAL_RANK"},
    "slurm": {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"},
    "mpi": {
        "RANK": "OMPI_COMM_WORLD_RANK",
        "WORLD_SIZE": "OMPI_COMM_WORLD_SIZE",
        "LOCAL_RANK": "OMPI_COMM_WORLD_LOCAL_RANK",
    },
}
_STARTED_BY = {
    "pytorch": "torchrun (tools/dist_train.sh, tools/dist_test.sh)",
    "slurm": "srun (tools/slurm_train.sh, tools/slurm_test.sh)",
    "mpi": "mpirun of Open MPI",
}
_PORT = "29500"  # torch's and mmengine's own default
_SYNC_BN = ("SyncBN", "MMSyncBN", "SyncBatchNorm")


def prepare_distributed(cfg: Config) -> None:
    """Check how this process was started, and fit the config to one process or to CPUs.

    One process: a config for FSDP runs unsharded. Several processes without a GPU: they join
    through gloo, DDP gets no device ids, and SyncBN, which torch has on GPUs only, becomes BN.
    mmengine 0.10.7 does none of these; it asks for a GPU even where gloo is the backend.

    Args:
        cfg: A whole config with `launcher`.

    Raises:
        LaunchError: the launcher's variables are missing or contradict `launcher`, a process has
            no GPU of its own, or the config has what FSDP cannot do.
    """
    if cfg.launcher == "none":
        if "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise LaunchError(
                f"torchrun started {os.environ['WORLD_SIZE']} processes, which would train apart "
                "and write to the same files: add --launcher pytorch"
            )
        _unshard(cfg)
        return
    place = _place(cfg.launcher)
    hooks = [type_name(hook) for hook in cfg.get("custom_hooks") or ()]
    if _sharded(cfg) and any("EMAHook" in name for name in hooks):
        raise LaunchError(
            "custom_hooks has an EMAHook, which copies the model, and the shards of FSDP cannot be "
            "copied: leave it out (custom_hooks=[]), or train without FSDP"
        )
    if get_device() != "cpu":
        gpus = torch.cuda.device_count()
        if torch.cuda.is_available() and place["LOCAL_RANK"] >= gpus:
            raise LaunchError(
                f"{place['LOCAL_RANK'] + 1} or more processes on a machine where torch sees {gpus} "
                "GPU(s): start one process a GPU, or see CUDA_VISIBLE_DEVICES"
            )
        return
    _join(cfg, place)
    _fit_to_cpu(cfg)


def _place(launcher: str) -> dict[str, int]:
    """Rank, number of processes and rank on this machine, by torch's names."""
    names = _PLACES[launcher]
    missing = [name for name in names.values() if name not in os.environ]
    if missing:
        raise LaunchError(
            f"--launcher {launcher}: {', '.join(missing)} not set, so this was not started by "
            f"{_STARTED_BY[launcher]}: start it so, or leave out --launcher for one process"
        )
    return {ours: int(os.environ[theirs]) for ours, theirs in names.items()}


def _sharded(cfg: Config) -> bool:
    return type_name(cfg.get("strategy")) == "FSDPStrategy"


def _unshard(cfg: Config) -> None:
    if _sharded(cfg):
        print_log("one process: training or testing without FSDP, which needs --launcher")
        cfg.pop("strategy")
        cfg.pop("runner_type")


def _join(cfg: Config, place: dict[str, int]) -> None:
    """Let this process join the others through gloo, as `Runner` does on GPUs."""
    os.environ.update({name: str(value) for name, value in place.items()})
    if "MASTER_ADDR" not in os.environ:
        if cfg.launcher == "slurm" and os.environ.get("SLURM_NNODES", "1") != "1":
            raise LaunchError("set MASTER_ADDR to the name of the first node of this Slurm job")
        os.environ["MASTER_ADDR"] = "127.0.0.1"
    os.environ.setdefault("MASTER_PORT", _PORT)
    cfg.merge_from_dict({"env_cfg.dist_cfg": dict(backend="gloo")})
    if not is_distributed():
        seconds = cfg.env_cfg.dist_cfg.get("timeout")
        timeout = timedelta(seconds=seconds) if seconds else None
        torch.distributed.init_process_group("gloo", timeout=timeout)


def _fit_to_cpu(cfg: Config) -> None:
    if "runner_type" not in cfg:
        wrapper = dict(
            type="MMDistributedDataParallel",
            broadcast_buffers=False,
            find_unused_parameters=cfg.get("find_unused_parameters", False),
        )
        wrapper.update(cfg.get("model_wrapper_cfg") or {}, device_ids=None)
        cfg.model_wrapper_cfg = wrapper
    reverted = _revert_sync_bn(cfg.model) + (cfg.pop("sync_bn", None) is not None)
    if reverted and is_main_process():
        print_log(
            "no GPU: SyncBN works on GPUs only and is replaced by BN: each process normalises by "
            "its own images, and the checkpoint has the running statistics of the first process"
        )


def _revert_sync_bn(entry: Any) -> int:
    """Turn SyncBN into BN at any depth of a model's config; how many times."""
    if isinstance(entry, list | tuple):
        return sum(_revert_sync_bn(one) for one in entry)
    if not isinstance(entry, dict):
        return 0
    found = type_name(entry) in _SYNC_BN
    if found:
        entry["type"] = "BN"
    return found + sum(_revert_sync_bn(one) for one in entry.values())
