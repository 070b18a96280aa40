"""A GPU machine where Triton cannot work: plain PyTorch and one warning, or an error if asked.

Triton itself runs, with its compiler and C's, in processes whose driver is a stand-in.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
import stand_in_gpu  # noqa: E402

from vig_mm.kernels import readiness  # noqa: E402

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU and its own driver"),
    pytest.mark.skipif(not readiness.compiler(), reason="needs a C compiler"),
]

WORKS = dict(said=[], launches=4, plain=False, explicit=None)
# imports once, and forks for each line: a change of the environment, and code to run
SERVER = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import stand_in_gpu, torch, vig_mm.kernels
for line in sys.stdin:
    if (child := os.fork()) == 0:
        environment, change = json.loads(line)
        os.environ.update(environment)
        driver = stand_in_gpu.pretend(Path({folder!r}))
        exec(change)
        stand_in_gpu.report(driver)
        sys.stdout.flush()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print("status", status, flush=True)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("driver")
    stand_in_gpu.build_driver(folder)
    code = SERVER.format(tests=str(Path(__file__).parent), folder=str(folder))
    env = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "CC", "CPATH")}
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen([sys.executable, "-c", code], env=env, **pipes) as process:
        yield process
        process.stdin.close()


@pytest.fixture(scope="module")
def report(server):
    """What an operator does in a process of its own, see `stand_in_gpu.report`."""

    def run(cache, change="", **environment):
        environment = {"TRITON_CACHE_DIR": str(cache), **environment}
        server.stdin.write(json.dumps([environment, change]) + "\n")
        server.stdin.flush()
        said = [server.stdout.readline()]  # Triton may print as well
        while not said[-1].startswith("status"):
            said.append(server.stdout.readline())
        assert said[-1] == "status 0\n"
        return json.loads(said[-2])

    return run


@pytest.fixture(scope="module")
def filled_cache(report, tmp_path_factory):
    """Where a process has compiled all that `report` launches."""
    cache = tmp_path_factory.mktemp("cache")
    assert report(cache) == WORKS
    return cache


@pytest.fixture
def only(tmp_path):
    """A function that makes a PATH on which a compiler is the only program, under that name."""

    def make(name):
        folder = tmp_path / f"only {name}"
        folder.mkdir()
        if program := shutil.which("file"):  # Triton's cache asks it about the platform
            (folder / "file").symlink_to(program)
        if name:
            # the compiler finds its parts beside the file that is called
            script = f'#!/bin/sh\nPATH={os.environ["PATH"]} exec {readiness.compiler()} "$@"\n'
            (folder / name).write_text(script)
            (folder / name).chmod(0o755)
        return str(folder)

    return make


@pytest.mark.parametrize("name", ["clang", "my-cc"])
def test_any_compiler_that_triton_takes(report, tmp_path, only, name):
    environment = dict(PATH=only(name)) | ({"CC": name} if name == "my-cc" else {})
    assert report(tmp_path / "cache", **environment) == WORKS


def test_no_compiler_is_needed_where_all_is_compiled(report, filled_cache, only):
    assert report(filled_cache, PATH=only("")) == WORKS


NO_HEADER = """
import sysconfig
paths = dict(sysconfig.get_paths(), include="/nowhere")
sysconfig.get_paths = lambda *args, **settings: paths
"""
OLD_TRITON = """
import triton
triton.__version__ = "3.3.1"
del triton.knobs
"""


@pytest.mark.parametrize(
    "change, environment, words",
    [
        ("", dict(PATH="/nowhere"), ["C compiler", "gcc", "apt-get install gcc python3-dev"]),
        ("", dict(CC="/no/compiler"), ["CC", "/no/compiler", "unset it"]),
        (NO_HEADER, {}, ["/nowhere has no Python.h", "apt-get install python3-dev"]),
        ("", dict(TRITON_CACHE_DIR=__file__ + "/cache"), [__file__, "TRITON_CACHE_DIR", "written"]),
        (OLD_TRITON, {}, ["Triton 3.3.1", "3.4 or later"]),
        ("sys.modules['triton'] = None", {}, ["ModuleNotFoundError", "triton"]),
    ],
    ids=["compiler", "CC", "header", "cache", "old", "broken"],
)
def test_nothing_can_run(report, tmp_path, change, environment, words):
    found = report(tmp_path / "cache", change, **environment)
    assert found["plain"] and found["launches"] == 0
    (text,) = found["said"]
    assert all(word in text for word in (*words, "slower", "backend='torch'")), text
    assert found["explicit"].startswith("RuntimeError: backend='triton': ")
    assert all(word in found["explicit"] for word in words)


PTXAS = """#!/bin/sh
[ "$1" = --version ] && exec echo "Cuda compilation tools, release 12.8, V12.8.93"
echo "a test" >&2
exit 1
"""


@pytest.mark.parametrize("what", ["launch", "compilation", "launcher"])
def test_a_kernel_fails(report, filled_cache, tmp_path, only, what):
    cache = tmp_path / "cache"
    if what == "launch":
        cache, environment = filled_cache, dict(STAND_IN_FAULT="701")
        words = explicit = ["RuntimeError", "stand-in error"]
    elif what == "compilation":
        (tmp_path / "ptxas").write_text(PTXAS)
        (tmp_path / "ptxas").chmod(0o755)
        # Triton 3.9 takes another one for sm_90
        names = ("TRITON_PTXAS_PATH", "TRITON_PTXAS_BLACKWELL_PATH")
        environment = dict.fromkeys(names, str(tmp_path / "ptxas"))
        words = explicit = ["PTXASError", "a test"]
    else:  # what loads the kernels is compiled, their launchers are not, and no compiler is left
        shutil.copytree(filled_cache, cache)
        launchers = list(cache.glob("*/__triton_launcher*.so"))
        if not launchers:
            pytest.skip("this Triton compiles no launchers")
        for launcher in launchers:
            launcher.unlink()
        environment, words, explicit = dict(PATH=only("")), ["neither gcc nor clang"], ["compiler"]
    found = report(cache, **environment)
    assert found["plain"] and found["launches"] == 0
    (text,) = found["said"]  # one for forward and backward
    assert all(word in text for word in (*words, "locality_gate", "slower", "vig_mm.kernels")), text
    assert all(word in found["explicit"] for word in explicit)
    assert not found["explicit"].startswith("RuntimeError: backend")  # Triton's own


def test_without_a_driver_nothing_is_asked(monkeypatch):
    """Fake tensors have a device on a machine without a driver."""
    from vig_mm.kernels import trace_time

    monkeypatch.setattr(readiness, "obstacle", lambda: pytest.fail("asked"))
    assert trace_time.triton_obstacle() is None
