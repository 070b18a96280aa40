"""How a process must have been started, and what the shell scripts hand on."""

import os
import sys
from pathlib import Path

import pytest
import torch
from launches import ROOT, free_port, run
from mmengine.config import Config

from vig_mm.engine import distributed
from vig_mm.engine.distributed import LaunchError, prepare_distributed

PLACE = dict(RANK="1", WORLD_SIZE="2", LOCAL_RANK="1")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch) -> None:
    for name in os.environ:
        if name.startswith(("SLURM_", "OMPI_", "TORCHELASTIC_", "MASTER_")) or name in PLACE:
            monkeypatch.delenv(name)


def started(monkeypatch, launcher: str, env: dict[str, str], **entries) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    prepare_distributed(Config(dict(launcher=launcher, model={}, **entries)))


@pytest.mark.parametrize(
    ("launcher", "env", "message"),
    [
        ("pytorch", {}, "RANK, WORLD_SIZE, LOCAL_RANK not set.*torchrun"),
        ("slurm", dict(SLURM_PROCID="0"), "SLURM_NTASKS, SLURM_LOCALID not set.*srun"),
        ("mpi", PLACE, "OMPI_COMM_WORLD_RANK.*mpirun"),
        ("none", PLACE | dict(TORCHELASTIC_RUN_ID="none"), "2 processes.*add --launcher pytorch"),
    ],
)
def test_not_started_by_the_launcher(monkeypatch, launcher, env, message) -> None:
    with pytest.raises(LaunchError, match=message):
        started(monkeypatch, launcher, env)


def test_more_processes_than_gpus(monkeypatch) -> None:
    monkeypatch.setattr(distributed, "get_device", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(LaunchError, match=r"2 or more processes .* sees 1 GPU\(s\)"):
        started(monkeypatch, "pytorch", PLACE)
    started(monkeypatch, "pytorch", PLACE | dict(LOCAL_RANK="0"))  # GPUs are left to mmengine


def test_slurm_on_several_cpu_nodes_needs_an_address(monkeypatch) -> None:
    monkeypatch.setattr(distributed, "get_device", lambda: "cpu")
    env = dict(SLURM_PROCID="1", SLURM_NTASKS="2", SLURM_LOCALID="0", SLURM_NNODES="2")
    with pytest.raises(LaunchError, match="set MASTER_ADDR"):
        started(monkeypatch, "slurm", env)


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A folder whose `python` and `srun` write down their arguments, one a line."""
    for name in ("python", "srun"):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\nprintf "%s\\n" {name} "$@"\n')
        program.chmod(0o755)
    return tmp_path


def script(name: str, *arguments: str, folder: Path, ok: bool = True, **env: str) -> list[str]:
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", ROOT / "tools" / name, *arguments]
    return run(command, folder, ok, PATH=path, **env).splitlines()


MACHINES = dict(NNODES="4", NODE_RANK="3", MASTER_ADDR="10.0.0.1", PORT="1234")
ALONE = dict(NNODES="1", NODE_RANK="0", MASTER_ADDR="127.0.0.1", PORT="29500")
NEEDED = {"train": ["c.py"], "test": ["c.py", "c.pth"]}


@pytest.mark.parametrize("kind", NEEDED)
def test_torchrun_scripts_hand_everything_on(kind: str, recorded: Path) -> None:
    more = ["--cfg-options", "a.b=[1, 2]"]  # one argument with a blank in it
    tool = str(ROOT / "tools" / f"{kind}.py")
    for env, place in ((MACHINES, MACHINES), ({}, ALONE)):
        options = ["--nnodes", "--node_rank", "--master_addr", "--master_port"]
        expected = ["python", "-m", "torch.distributed.run"]
        expected += map("=".join, zip(options, place.values(), strict=True))
        expected += ["--nproc_per_node=8", tool, *NEEDED[kind], "--launcher", "pytorch", *more]
        lines = script(f"dist_{kind}.sh", *NEEDED[kind], "8", *more, folder=recorded, **env)
        assert lines == expected


@pytest.mark.parametrize("kind", NEEDED)
def test_slurm_scripts_hand_everything_on(kind: str, recorded: Path) -> None:
    fourth = "work" if kind == "train" else "c.pth"
    arguments = ("part", "job", "c.py", fourth)
    tool = str(ROOT / "tools" / f"{kind}.py")
    env = dict(GPUS="16", GPUS_PER_NODE="4", CPUS_PER_TASK="7", SRUN_ARGS="--qos high --time=9:0")
    lines = script(f"slurm_{kind}.sh", *arguments, "--tta", folder=recorded, **env)
    asked = "srun -p part --job-name=job --gres=gpu:4 --ntasks=16 --ntasks-per-node=4 "
    asked += "--cpus-per-task=7 --kill-on-bad-exit=1 --qos high --time=9:0 python -u"
    placed = ["--work-dir", "work"] if kind == "train" else ["c.pth"]
    assert lines == [*asked.split(), tool, "c.py", *placed, "--launcher", "slurm", "--tta"]

    # fewer GPUs than a node has: all of them on one
    lines = script(f"slurm_{kind}.sh", *arguments, folder=recorded, GPUS="2")
    assert {"--gres=gpu:2", "--ntasks=2", "--ntasks-per-node=2"} <= set(lines)


def test_unfit_arguments_are_one_message(recorded: Path) -> None:
    for name in ("dist_train", "dist_test", "slurm_train", "slurm_test"):
        error, hint = script(f"{name}.sh", "c.py", folder=recorded, ok=False)
        assert error.startswith(f"tools/{name}.sh: error: ") and "CONFIG" in error
        assert "environment" in hint
    for kind, needed in NEEDED.items():
        error, _ = script(f"dist_{kind}.sh", *needed, "--resume", folder=recorded, ok=False)
        assert "GPUS must be a number, got '--resume'" in error
    error, _ = script("dist_train.sh", "c.py", "8", folder=recorded, ok=False, NNODES="2")
    assert "NNODES=2 needs NODE_RANK (0 to 1) and MASTER_ADDR" in error


def test_slurm_script_trains_on_two_cpus(work: Path, tmp_path: Path) -> None:
    """A `srun` that starts the tasks here, with the variables that Slurm's sets."""
    srun = tmp_path / "srun"
    srun.write_text(
        "#!/usr/bin/env bash\n"
        "export SLURM_NTASKS=2 SLURM_NNODES=1 SLURM_NODELIST=here\n"
        "while [[ $1 != python ]]; do shift; done\n"
        'for id in 0 1; do SLURM_PROCID=$id SLURM_LOCALID=$id "$@" & done\n'
        "wait -n && wait -n\n"
    )
    srun.chmod(0o755)
    programs = Path(sys.executable).parent
    log = run(
        [
            "bash", ROOT / "tools/slurm_train.sh", "part", "job",
            ROOT / "configs/mmpretrain/vig-h-mini_digits.py", work / "slurm", "--cfg-options",
            "train_dataloader.batch_size=10", "train_cfg.max_epochs=1", "train_cfg.val_interval=1",
            "train_dataloader.num_workers=0", "train_dataloader.persistent_workers=False",
            "val_dataloader.num_workers=0", "val_dataloader.persistent_workers=False",
        ],
        work, MASTER_PORT=free_port(), GPUS="2",
        PATH=os.pathsep.join((str(tmp_path), str(programs), os.environ["PATH"])),
    )  # fmt: skip
    assert "accuracy/top1" in log
    trained = torch.load(work / "slurm/epoch_1.pth", weights_only=False)
    assert trained["meta"]["iter"] == 1  # 20 images, 10 a process
