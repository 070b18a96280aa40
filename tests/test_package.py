"""The package as it is installed: what it needs, what it carries, and what its index files say."""

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
CONFIG_FOLDERS = ("mmdet", "mmseg", "mmpretrain")

BLOCK_ALL_BUT_TORCH = """
import sys

BLOCKED = {"mmengine", "mmcv", "mmdet", "mmseg", "mmpretrain", "triton", "timm", "sklearn"}

class Hide:
    '''Finds what `finder` finds, except `BLOCKED`: as if those were not installed.'''

    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in BLOCKED:
            return self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Hide(finder) for finder in sys.meta_path]
"""


def run_python(code: str) -> str:
    """The standard output of `code` run where torch is the only package installed."""
    return subprocess.run(
        [sys.executable, "-c", BLOCK_ALL_BUT_TORCH + code],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def test_import_is_light() -> None:
    run_python("import vig_mm; assert vig_mm.__version__; assert 'torch' not in sys.modules")


def test_operator_needs_torch_alone() -> None:
    out = run_python(
        "import torch\n"
        "from vig_mm.kernels import bidirectional_gla\n"
        "q = torch.ones(1, 5, 2, 4)\n"
        "print(tuple(bidirectional_gla(q, q, q[..., :3], q, q).shape))\n"
    )
    assert out.strip() == "(1, 5, 2, 3)"


def test_networks_need_torch_alone() -> None:
    """Forward and backward of both families."""
    out = run_python(
        "import torch\n"
        "from vig_mm.nets import HierViG, ViG\n"
        "for net in HierViG(depths=(1, 1, 1, 1), num_heads=(3, 6, 12, 24)), ViG(depth=1):\n"
        "    maps = net(torch.randn(1, 3, 64, 96))\n"
        "    sum(x.square().mean() for x in maps).backward()\n"
        "    assert all(p.grad is not None for p in net.parameters())\n"
        "    print([tuple(x.shape[1:]) for x in maps])\n"
    )
    expected = "[(96, 16, 24), (192, 8, 12), (384, 4, 6), (768, 2, 3)]\n[(192, 4, 6)]"
    assert out.strip() == expected


def test_what_runs_here_is_said_with_torch_alone() -> None:
    out = run_python("import runpy; runpy.run_module('vig_mm.kernels', run_name='__main__')")
    assert "triton        not installed" in out
    assert "bidirectional_gla" in out


def test_backbone_without_mmengine_is_one_clear_error() -> None:
    out = run_python(
        "import vig_mm\n"
        "assert {'ViG', 'HierViG'} <= set(dir(vig_mm))\n"
        "try:\n"
        "    vig_mm.HierViG\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    assert re.match(r"vig_mm\.HierViG needs mm\w+, .*pip install 'vig-mm\[mm\]'", out), out


def test_backbones_are_attributes() -> None:
    import vig_mm
    from vig_mm.models import HierViG, ViG

    assert vig_mm.ViG is ViG
    assert vig_mm.HierViG is HierViG
    with pytest.raises(AttributeError, match="no attribute 'Vig'"):
        vig_mm.Vig  # noqa: B018


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that is built from the source distribution of a copy of this tree."""
    tmp = tmp_path_factory.mktemp("wheel")
    outside = {".git", ".venv", ".venv-onedl", "data", "work_dirs", "build", "dist"}
    shutil.copytree(
        ROOT,
        tmp / "tree",
        ignore=lambda folder, names: {
            name
            for name in names
            if (Path(folder) == ROOT and name in outside)
            or name == "__pycache__"
            or name.endswith(".egg-info")
        },
    )
    build = "from setuptools import build_meta; build_meta.build_sdist('sdist')"
    subprocess.run([sys.executable, "-c", build], cwd=tmp / "tree", check=True, capture_output=True)
    (sdist,) = (tmp / "tree" / "sdist").iterdir()
    pip = "pip wheel --quiet --no-deps --no-build-isolation --no-index --wheel-dir".split()
    subprocess.run([sys.executable, "-m", *pip, str(tmp), str(sdist)], check=True)
    (wheel,) = tmp.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel_names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_wheel_runs_a_model_with_torch_alone(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    out = run_python(
        "import torch\n"
        # the set-up has this checkout's vig_mm loaded at every start
        "for name in [n for n in sys.modules if n.partition('.')[0] == 'vig_mm']:\n"
        "    del sys.modules[name]\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "import vig_mm, vig_mm.nets as nets\n"
        f"assert vig_mm.__file__.startswith({str(tmp_path)!r}), vig_mm.__file__\n"
        "print([tuple(y.shape) for y in nets.HierViG()(torch.zeros(1, 3, 64, 64))])\n"
        "try:\n"
        "    import vig_mm.timm\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    assert "(1, 768, 2, 2)" in out
    assert "vig_mm.timm needs timm, which is not installed: run `pip install 'vig-mm[timm]'`" in out


def test_version_is_one() -> None:
    version = re.search(r'__version__ = "(.+)"', (ROOT / "vig_mm" / "version.py").read_text())[1]
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.search(
        rf"^## {re.escape(version)} - \d{{4}}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.M
    )


def test_workflows_run_what_is_here() -> None:
    jobs = {}
    for file in (ROOT / ".github" / "workflows").glob("*.yml"):
        (job,) = yaml.safe_load(file.read_text())["jobs"].values()
        jobs[file.stem] = [step["run"] for step in job["steps"] if "run" in step]
    assert jobs["ci"] == [".ci/run"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert any("twine check" in command for command in jobs["release"])


def files_under(folder: str, pattern: str = "*") -> set[str]:
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / folder).rglob(pattern)
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_wheel_maps_kernels(wheel_names: set[str]) -> None:
    assert {name.split("/")[0].split("-")[0] for name in wheel_names} == {"vig_mm"}
    for name in files_under("kernels", "*.py"):
        assert f"vig_mm/{name}" in wheel_names
    for name in files_under("vig_mm", "*.py"):
        assert name in wheel_names


def test_wheel_carries_what_mim_reads(wheel_names: set[str]) -> None:
    source = files_under("configs") | files_under("tools")
    source |= {"model-index.yml", "dataset-index.yml"}
    prefix = "vig_mm/.mim/"
    carried = {name.removeprefix(prefix) for name in wheel_names if name.startswith(prefix)}
    assert carried == source


def index_models() -> list[dict]:
    imported = yaml.safe_load((ROOT / "model-index.yml").read_text())["Import"]
    return [
        model
        for metafile in imported
        for model in yaml.safe_load((ROOT / metafile).read_text())["Models"]
    ]


def test_index_loads_as_mim_loads_it() -> None:
    from modelindex.load_model_index import load

    index = load(str(ROOT / "model-index.yml"))
    index.build_models_with_collections()
    assert {model.name for model in index.models} == {model["Name"] for model in index_models()}
    for name, entry in yaml.safe_load((ROOT / "dataset-index.yml").read_text()).items():
        assert {"dataset", "download_root", "data_root"} <= entry.keys(), name


def test_index_lists_every_config_once() -> None:
    configs = [
        path.relative_to(ROOT).as_posix()
        for folder in CONFIG_FOLDERS
        for path in (ROOT / "configs" / folder).rglob("*.py")
    ]
    # mim finds a config by its base name alone.
    assert len({Path(config).name for config in configs}) == len(configs)
    models = index_models()
    # neither the small examples on built-in and own data nor others' models are ours to publish
    real = sorted(c for c in configs if "-mini_" not in c and "/peers/" not in c)
    assert sorted(model["Config"] for model in models) == real
    assert all(model["Name"] == Path(model["Config"]).stem for model in models)


@pytest.mark.parametrize(
    ("line", "packages", "constraints"),
    [("upstream", "mm.txt", "constraints.txt"), ("onedl", "onedl.txt", "constraints-onedl.txt")],
)
def test_every_requirement_is_pinned(line: str, packages: str, constraints: str) -> None:
    def names(file: str) -> set[str]:
        lines = (ROOT / "requirements" / file).read_text().splitlines()
        found = (re.match(r"[\w.-]+", line) for line in lines)
        return {match[0].lower().replace("_", "-") for match in found if match}

    shared = {"build.txt", "core.txt", "cpu.txt", "docs.txt", "mim.txt", "tests.txt", "tools.txt"}
    shared |= {"timm.txt"} | ({"hosts.txt"} if line == "upstream" else set())
    pinned = names(constraints)
    assert set().union(*map(names, shared | {packages})) <= pinned
    assert ("onedl-mmcv" in pinned, "mmcv" in pinned) == (line == "onedl", line == "upstream")


def test_hooks_have_the_pinned_ruff() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    needed = {
        package
        for hook in config["repos"][0]["hooks"]
        for package in hook["additional_dependencies"]
        if package.startswith("ruff")
    }
    for constraints in ("constraints.txt", "constraints-onedl.txt"):
        assert needed <= set((ROOT / "requirements" / constraints).read_text().splitlines())
    assert len(needed) == 1


def test_contributing_shows_the_recorded_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools" / "dev"))
    from tested_versions import PAGE, page_with_table

    assert PAGE.read_text() == page_with_table(), "python tools/dev/tested_versions.py writes it"


def run_setup(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(ROOT / "tools" / "setup_env.sh"), *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_setup_names_what_is_missing(tmp_path: Path) -> None:
    new = str(tmp_path / "new")
    result = run_setup("--venv", new, VIG_MM_PYTHON="no-such-python")
    assert result.returncode == 1
    assert "'no-such-python' is Python 3.10" in result.stderr

    (tmp_path / "note.txt").touch()
    result = run_setup("--venv", str(tmp_path))
    assert result.returncode == 1
    assert "something else than a virtual environment" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]

    for wrong, named in (
        (("--vnev", new), "'--vnev'"),
        (("--line", "onedel"), "'onedel'"),
        (("--mmcv", "light"), "'light'"),
        (("--line", "onedl", "--mmcv", "lite"), "the forks have no mmcv-lite"),
    ):
        result = run_setup(*wrong)
        assert result.returncode == 2
        assert named in result.stderr


@pytest.mark.parametrize(("line", "other"), [("upstream", "onedl-mmcv"), ("onedl", "mmcv")])
def test_setup_does_not_mix_the_lines(tmp_path: Path, line: str, other: str) -> None:
    venv = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    info = site / f"{other.replace('-', '_')}-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {other}\nVersion: 2.0\n")
    result = run_setup("--line", line, "--venv", str(venv))
    assert result.returncode == 1
    assert f"holds packages of the other line: {other}\n" in result.stderr
    assert not (venv / "setup.log").exists()


def environment_with(folder: Path, *distributions: str, pip: bool = False) -> Path:
    """A virtual environment that seems to hold these distributions of mmcv 2.1.0."""
    venv.create(folder, with_pip=pip)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "mmcv").mkdir()
    (site / "mmcv" / "__init__.py").touch()
    for name in distributions:
        info = site / f"{name.replace('-', '_')}-2.1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.1.0\n")
        files = ("mmcv/__init__.py", f"{info.name}/METADATA", f"{info.name}/RECORD")
        (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))
    return site


upstream_python = pytest.mark.skipif(
    sys.version_info >= (3, 13), reason="upstream takes Python 3.10 to 3.12"
)


@upstream_python
def test_setup_without_a_compiler(tmp_path: Path) -> None:
    """Only a compiled mmcv needs one; without pip either ends at its first step at the latest."""
    if shutil.disk_usage(tmp_path).free < 9 * 2**30:
        pytest.skip("the set-up wants 8 GB of disk before anything else")
    environment_with(tmp_path / "env")
    shutil.rmtree(next((tmp_path / "env").glob("lib/python*/site-packages/mmcv")))
    arguments = ("--venv", str(tmp_path / "env"))
    result = run_setup(*arguments, CXX="no-such-compiler")
    assert result.returncode == 1
    assert "mmcv lite" in result.stdout and "[1/7] build tools" in result.stderr

    result = run_setup(*arguments, "--mmcv", "compiled", CXX="no-such-compiler")
    assert result.returncode == 1
    assert "no C++ compiler (no-such-compiler)" in result.stderr
    assert "bash tools/setup_env.sh --mmcv lite" in result.stderr


@upstream_python
def test_setup_keeps_a_compiled_mmcv(tmp_path: Path) -> None:
    environment_with(tmp_path / "env", "mmcv")
    result = run_setup("--venv", str(tmp_path / "env"))
    assert "mmcv compiled" in result.stdout and "removing" not in result.stdout


@upstream_python
@pytest.mark.parametrize(
    ("there", "asked", "named"),
    [
        (("mmcv", "mmcv-lite"), (), "has both mmcv and mmcv-lite, which overwrite each other"),
        (("mmcv",), ("--mmcv", "lite"), "removing mmcv: this environment takes mmcv-lite"),
        (("mmcv-lite",), ("--mmcv", "compiled"), "removing mmcv-lite: this environment takes mmcv"),
    ],
)
def test_setup_never_mixes_mmcv_and_mmcv_lite(
    tmp_path: Path, there: tuple[str, ...], asked: tuple[str, ...], named: str
) -> None:
    site = environment_with(tmp_path / "env", *there, pip=True)
    result = run_setup("--venv", str(tmp_path / "env"), *asked, PIP_NO_INDEX="1", PIP_FIND_LINKS="")
    assert named in result.stdout
    assert not list(site.glob("mmcv*"))


def test_no_machine_path_and_no_registry_host_is_committed() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    unwanted = re.compile(r"(?<![\w./-])/(?:work|root|home)/|pypi\.org|python[h]osted")
    found = []
    for name in filter(None, names.split("\0")):
        path = ROOT / name
        if path.suffix in (".npz", ".png", ".jpg") or not path.is_file():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if unwanted.search(line):
                found.append(f"{name}:{number}: {line.strip()}")
    assert not found, "\n".join(found)
