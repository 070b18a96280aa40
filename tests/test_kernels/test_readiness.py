"""A GPU machine where Triton cannot work: plain PyTorch and one warning, or an error if asked.

Triton itself runs, with its compiler and C's, in a process whose driver is a stand-in.
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

CALL = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import stand_in_gpu
driver = stand_in_gpu.pretend(Path({folder!r}))
{change}
stand_in_gpu.report(driver)
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    folder = tmp_path_factory.mktemp("driver")
    stand_in_gpu.build_driver(folder)
    return folder


@pytest.fixture(scope="module")
def filled_cache(driver, tmp_path_factory):
    """Where a process has compiled all that `report` launches."""
    cache = tmp_path_factory.mktemp("cache")
    found = report(driver, cache)
    assert found == dict(said=[], launches=4, plain=False, explicit=None)
    return cache


def report(driver, cache, change="", **environment):
    code = CALL.format(tests=str(Path(__file__).parent), folder=str(driver), change=change)
    env = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "CC", "CPATH")}
    env |= {"TRITON_CACHE_DIR": str(cache), **environment}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


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
def test_any_compiler_that_triton_takes(driver, tmp_path, only, name):
    environment = dict(PATH=only(name)) | ({"CC": name} if name == "my-cc" else {})
    found = report(driver, tmp_path / "cache", **environment)
    assert found == dict(said=[], launches=4, plain=False, explicit=None)


def test_no_compiler_is_needed_where_all_is_compiled(driver, filled_cache, only):
    found = report(driver, filled_cache, PATH=only(""))
    assert found == dict(said=[], launches=4, plain=False, explicit=None)


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
def test_nothing_can_run(driver, tmp_path, change, environment, words):
    found = report(driver, tmp_path / "cache", change, **environment)
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


@pytest.mark.parametrize(
    "variable, value, words",
    [
        ("STAND_IN_FAULT", "701", ["RuntimeError", "stand-in error"]),
        ("TRITON_PTXAS_PATH", "ptxas", ["PTXASError", "a test"]),
    ],
    ids=["launch", "compilation"],
)
def test_a_kernel_fails(driver, filled_cache, tmp_path, variable, value, words):
    if variable == "TRITON_PTXAS_PATH":
        value = tmp_path / value
        value.write_text(PTXAS)
        value.chmod(0o755)
        filled_cache = tmp_path / "cache"  # another, where all is to be compiled
    environment = {variable: str(value)}
    if variable == "TRITON_PTXAS_PATH":  # Triton 3.9 takes another one for sm_90
        environment["TRITON_PTXAS_BLACKWELL_PATH"] = str(value)
    found = report(driver, filled_cache, **environment)
    assert found["plain"] and found["launches"] == 0
    (text,) = found["said"]
    assert all(word in text for word in (*words, "locality_gate", "slower", "vig_mm.kernels")), text
    assert all(word in found["explicit"] for word in words)
    assert not found["explicit"].startswith("RuntimeError: backend")  # Triton's own


def test_a_compiler_that_is_gone_later(driver, filled_cache, tmp_path, only):
    """What loads the kernels is compiled, their launchers are not."""
    cache = tmp_path / "cache"
    shutil.copytree(filled_cache, cache)
    launchers = list(cache.glob("*/__triton_launcher*.so"))
    if not launchers:
        pytest.skip("this Triton compiles no launchers")
    for launcher in launchers:
        launcher.unlink()
    found = report(driver, cache, PATH=only(""))
    assert found["plain"] and found["launches"] == 0
    (text,) = found["said"]  # one for forward and backward
    assert "neither gcc nor clang" in text
    assert "C compiler" in found["explicit"]


def test_without_a_driver_nothing_is_asked(monkeypatch):
    """Fake tensors have a device on a machine without a driver."""
    from vig_mm.kernels import trace_time

    monkeypatch.setattr(readiness, "obstacle", lambda: pytest.fail("asked"))
    assert trace_time.triton_obstacle() is None
