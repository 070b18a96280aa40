"""Two processes on the CPU, started by torchrun as tools/dist_train.sh does."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import vig_mm.ops  # noqa: F401 (before mmcv.ops, also in processes that are started)

ROOT = Path(__file__).resolve().parents[3]
DRIVER = Path(__file__).with_name("run_tools.py")


def free_port() -> str:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return str(opened.getsockname()[1])


def environment(**more: str) -> dict[str, str]:
    """Of a process without GPU that finds the modules in tests/."""
    path = os.pathsep.join((str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")))
    fixed = dict(PYTHONPATH=path, PYTHONWARNINGS="ignore", CUDA_VISIBLE_DEVICES="")
    return os.environ | fixed | dict(OMP_NUM_THREADS="1") | more


def run(command: Sequence, cwd: Path, ok: bool = True, **env: str) -> str:
    """Run a command; its output, of all processes together."""
    with subprocess.Popen(
        [str(x) for x in command], cwd=cwd, env=environment(**env), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    ) as started:  # fmt: skip
        try:
            output, _ = started.communicate(timeout=600)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)  # what it started, too
            raise
    assert (started.returncode == 0) is ok, output[-6000:]
    return output


def run_tools(cwd: Path, *commands: Sequence, processes: int = 2) -> str:
    """Run tools with their arguments after one another, each in so many processes."""
    launcher = ["--launcher", "pytorch"] if processes > 1 else []
    listed = [[str(x) for x in (*command, *launcher)] for command in commands]
    path = cwd / "commands.json"
    path.write_text(json.dumps(listed))
    torchrun = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
    start = [*torchrun, f"--master_port={free_port()}"] if processes > 1 else []
    return run([sys.executable, *start, DRIVER, path], cwd)
