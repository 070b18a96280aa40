"""Where mmcv's operators come from: a compiled mmcv, or vig_mm.ops in front of none."""

import json
import os
import subprocess
import sys
import venv
from importlib.util import find_spec
from pathlib import Path

import pytest

from vig_mm.datasets import make_digits
from vig_mm.ops import STAND_IN, provider

ROOT = Path(__file__).resolve().parents[2]


def fake_mmcv(folder: Path, compiled: str | None = None) -> Path:
    """An `mmcv` in `folder`, with a module in the place of compiled operators or without one."""
    package = folder / "mmcv"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("__version__ = '2.1.0'\n")
    if compiled is not None:
        (package / "_ext.py").write_text(compiled)
    return folder


def run(code: str, *paths: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (*paths, ROOT)))}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )


def output(code: str, *paths: Path) -> str:
    result = run(code, *paths)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_it_loads_nothing() -> None:
    output(
        "import sys; before = set(sys.modules); import vig_mm.ops\n"
        "heavy = {'torch', 'torchvision', 'mmcv', 'mmengine', 'numpy'}\n"
        "assert not heavy & (set(sys.modules) - before)"
    )


def test_compiled_operators_win(tmp_path: Path) -> None:
    path = fake_mmcv(tmp_path, compiled="own = True\n")
    code = (
        "import vig_mm.ops; print(vig_mm.ops.provider())\nimport mmcv._ext as e; print(e.own)\n"
        "assert not hasattr(e, 'softnms')"
    )
    assert output(code, path) == "compiled\nTrue\n"


def test_operators_that_do_not_load_are_not_hidden(tmp_path: Path) -> None:
    """A broken mmcv stays an error: its operators are not changed for others in silence."""
    path = fake_mmcv(tmp_path, compiled="raise ImportError('undefined symbol: x')\n")
    result = run("import vig_mm.ops, mmcv._ext", path)
    assert result.returncode == 1 and "undefined symbol: x" in result.stderr


def test_torchvision_serves_an_mmcv_without_operators(tmp_path: Path) -> None:
    code = "import vig_mm.ops, mmcv._ext as e; print(e.__file__, e.__name__, callable(e.nms))"
    said, found = output(code, fake_mmcv(tmp_path)).splitlines()
    assert "mmcv 2.1.0 has no compiled operators: vig_mm.ops serves them" in said
    assert found == f"{STAND_IN} mmcv._ext True"


@pytest.mark.parametrize("first", ["vig_mm.ops", "vig_mm.registry", "vig_mm.checks.environment"])
def test_it_is_put_in_place_once(first: str) -> None:
    pytest.importorskip("mmengine")
    code = (
        f"import sys, {first}, vig_mm.ops; vig_mm.ops.install()\n"
        "print(sum(isinstance(f, vig_mm.ops.OperatorFinder) for f in sys.meta_path))"
    )
    assert output(code) == "1\n"


def test_without_mmcv() -> None:
    code = "import sys; sys.modules['mmcv'] = None\nimport vig_mm.ops; print(vig_mm.ops.provider())"
    assert output(code) == "None\n"


def test_every_function_that_mmcv_asks_for() -> None:
    """All names of the installed mmcv.ops are there, the same set wherever they come from, and the
    page has a row for each file of mmcv.ops whose functions `ext.py` has."""
    pytest.importorskip("mmcv")
    code = (
        "import json, pathlib, re, mmcv.utils.ext_loader as loader, vig_mm.ops\n"
        "from importlib.util import module_from_spec\n"
        "spec = vig_mm.ops.OperatorFinder().find_spec(vig_mm.ops.MODULE)\n"
        "ext = module_from_spec(spec); spec.loader.exec_module(ext)\n"
        "asked = []\n"
        "loader.load_ext = lambda name, functions: asked.extend(functions) or ext\n"
        "import mmcv.ops\n"
        "missing = [name for name in asked if not callable(getattr(ext, name))]\n"
        "files = pathlib.Path(mmcv.ops.__file__).parent.glob('*.py')\n"
        "called = re.compile(rf'ext_module\\.({\"|\".join(ext.__all__)})\\b')\n"
        "files = [f.stem for f in files if called.search(f.read_text())]\n"
        "print(json.dumps([asked, ext.__all__, missing, files]))"
    )
    asked, served, missing, files = json.loads(output(code).splitlines()[-1])
    assert len(asked) > 100 and not missing
    assert set(served) <= set(asked)  # nothing is served that nobody calls
    sys.path.insert(0, str(ROOT / "tools" / "dev"))
    try:
        from mmcv_operators import OPERATORS, PAGE, RECORD, table
    finally:
        sys.path.pop(0)
    assert set(files) - {"info"} <= OPERATORS.keys()
    assert table(json.loads(RECORD.read_text())) in PAGE.read_text(encoding="utf-8")


def test_enable_and_disable(tmp_path: Path) -> None:
    """In an environment of its own: with the hook, a plain Python finds the operators."""
    folder = tmp_path / "env"
    venv.create(folder, with_pip=False, system_site_packages=False)
    python = str(folder / "bin" / "python")
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "vig_mm").symlink_to(ROOT / "vig_mm")
    fake_mmcv(site)

    def in_env(*arguments: str) -> subprocess.CompletedProcess:
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(
            [python, *arguments], env=clean, cwd=tmp_path, capture_output=True, text=True
        )

    find = "from importlib.util import find_spec; print(find_spec('mmcv._ext') is not None)"
    assert in_env("-c", find).stdout == "False\n"
    said = in_env("-m", "vig_mm.ops", "enable").stdout
    assert "vig_mm.ops, through torchvision" in said and f"enabled ({site}" in said
    assert in_env("-c", find).stdout == "True\n"
    said = in_env("-m", "vig_mm.ops").stdout
    assert "enabled" in said

    (site / "vig_mm").unlink()  # uninstalled: the hook must not disturb a start of Python
    result = in_env("-c", find)
    assert (result.stdout, result.stderr) == ("False\n", "")

    (site / "vig_mm").symlink_to(ROOT / "vig_mm")
    assert "disabled" in in_env("-m", "vig_mm.ops", "disable").stdout
    assert in_env("-c", find).stdout == "False\n"
    assert not list(site.glob("*.pth"))
    assert in_env("-m", "vig_mm.ops", "enbale").returncode == 2


# of the libraries whose models need operators: config; the shortest training; the inferencer
STOCK = {
    "mmdet": (
        "mmdet/mask-rcnn_vig-h-mini_fpn_digits.py",
        "train_cfg.max_epochs=1",
        "from mmdet.apis import DetInferencer as Inferencer",
    ),
    "mmseg": (
        "mmseg/vig-h-mini_upernet_digits.py",
        "train_cfg.max_iters=1",
        "from mmseg.apis import MMSegInferencer as Inferencer",
    ),
}


@pytest.fixture(scope="module")
def enabled(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Python of an environment like that of tools/setup_env.sh, and a folder with digits."""
    for library in STOCK:
        pytest.importorskip(library)
    if provider() != "torchvision":
        pytest.skip("mmcv has operators of its own here")
    folder = tmp_path_factory.mktemp("enabled")
    venv.create(folder / "env", with_pip=False)
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    # this Python's packages, without what its own .pth files do
    there = [path for path in sys.path if path.endswith("-packages")]
    (site / "libraries.pth").write_text("\n".join(there) + "\n")
    (site / "vig_mm").mkdir()
    for path in [*(ROOT / "vig_mm").iterdir(), ROOT / "kernels"]:
        (site / "vig_mm" / path.name).symlink_to(path)
    (site / "vig_mm" / ".mim").symlink_to(ROOT)  # where a regular install has the configs
    python = str(folder / "env" / "bin" / "python")
    subprocess.run([python, "-m", "vig_mm.ops", "enable"], check=True, cwd=folder)
    make_digits(folder / "data/digits", coco=(2, 1), ade=(2, 1), imagenet=(1, 1))
    return python, folder


# as in a notebook: the checkpoint is read before anything of vig_mm is imported by a config
INFER = """
import sys; assert not {{'torch', 'mmcv', 'mmengine', 'numpy'}} & set(sys.modules)
{imports}
import numpy
Inferencer(*sys.argv[1:], device='cpu')(numpy.zeros((64, 80, 3), 'uint8'))
"""


@pytest.mark.parametrize("library", STOCK)
def test_stock_train_tools(enabled: tuple[str, Path], library: str) -> None:
    """The libraries' own tools/train.py, mmdet's as `mim train mmdet` starts it; inferencers."""
    python, folder = enabled
    config, length, imports = STOCK[library]

    def run_in_env(*arguments: str) -> None:
        done = subprocess.run(
            [python, *arguments], cwd=folder, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    command = [find_spec(library).submodule_search_locations[0] + "/.mim/tools/train.py"]
    if library == "mmdet" and find_spec("mim"):
        command = ["-m", "mim", "train", "mmdet"]
    mine = folder / f"{library}_mine.py"
    mine.write_text(f"_base_ = 'vig_mm::{config}'\n")
    options = ["--work-dir", library, "--cfg-options", length, "train_dataloader.batch_size=2"]
    run_in_env(*command, str(mine), *options)
    (checkpoint,) = (folder / library).glob("*_1.pth")
    run_in_env("-c", INFER.format(imports=imports), str(mine), str(checkpoint))
