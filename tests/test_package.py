"""The package as it is installed: what it needs, what it carries, and what its index files say."""

import os
import re
import shutil
import subprocess
import sys
import venv
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


TRY_ALL = """
import vig_mm
assert vig_mm.__version__ and "torch" not in sys.modules
assert vig_mm.__file__.startswith(sys.argv[1]), vig_mm.__file__

import torch
if hasattr(torch.compiler, "is_exporting"):  # torch 2.6 has it not
    del torch.compiler.is_exporting
from vig_mm.kernels import bidirectional_gla
q = torch.ones(1, 5, 2, 4)
print("operator", tuple(bidirectional_gla(q, q, q[..., :3], q, q).shape))

from vig_mm.nets import HierViG, ViG
for net in HierViG(depths=(1, 1, 1, 1), num_heads=(3, 6, 12, 24)), ViG(depth=1):
    maps = net(torch.randn(1, 3, 64, 96))
    sum(x.square().mean() for x in maps).backward()
    assert all(p.grad is not None for p in net.parameters())
    print([tuple(x.shape[1:]) for x in maps])

assert {"ViG", "HierViG"} <= set(dir(vig_mm))
for lacking in "vig_mm.HierViG", "__import__('vig_mm.timm')":
    try:
        eval(lacking)
    except ImportError as error:
        print(error)

import runpy
runpy.run_module("vig_mm.kernels", run_name="__main__")
"""


def check_with_torch_alone(root: Path) -> None:
    """Where torch is the only package installed: operator, networks, and what is said of more."""
    # the set-up has this checkout's vig_mm loaded at every start
    forget = "for name in [n for n in sys.modules if n.partition('.')[0] == 'vig_mm']:\n"
    forget += "    del sys.modules[name]\nsys.path.insert(0, sys.argv[1])\n"
    code = BLOCK_ALL_BUT_TORCH + forget + TRY_ALL
    done = subprocess.run(
        [sys.executable, "-c", code, str(root)], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    out = done.stdout
    assert "operator (1, 5, 2, 3)" in out
    assert "[(96, 16, 24), (192, 8, 12), (384, 4, 6), (768, 2, 3)]\n[(192, 4, 6)]" in out
    assert re.search(r"vig_mm\.HierViG needs mm\w+, .*pip install 'vig-mm\[mm\]'", out), out
    assert "vig_mm.timm needs timm, which is not installed: run `pip install 'vig-mm[timm]'`" in out
    assert "triton        not installed" in out and "bidirectional_gla" in out


def test_checkout_with_torch_alone() -> None:
    check_with_torch_alone(ROOT)


def test_backbones_are_attributes() -> None:
    import vig_mm
    from vig_mm.models import HierViG, ViG

    assert vig_mm.ViG is ViG
    assert vig_mm.HierViG is HierViG
    with pytest.raises(AttributeError, match="no attribute 'Vig'"):
        vig_mm.Vig  # noqa: B018


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is in the wheel that the source distribution of a copy of this tree gives."""
    tmp = tmp_path_factory.mktemp("wheel")
    outside = {".git", ".venv", ".venv-onedl", "data", "work_dirs", "build", "dist"}

    def ignore(folder: str, names: list[str]) -> set[str]:
        at_the_top = outside if Path(folder) == ROOT else set()
        built = {name for name in names if name == "__pycache__" or name.endswith(".egg-info")}
        return built | at_the_top

    def build(what: str, folder: Path) -> None:
        code = f"from setuptools import build_meta; build_meta.build_{what}({str(tmp)!r})"
        subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True)

    shutil.copytree(ROOT, tmp / "tree", ignore=ignore)
    build("sdist", tmp / "tree")
    (sdist,) = tmp.glob("*.tar.gz")
    shutil.unpack_archive(sdist, tmp, filter="data")
    build("wheel", tmp / sdist.name.removesuffix(".tar.gz"))
    (wheel,) = tmp.glob("*.whl")
    shutil.unpack_archive(wheel, tmp / "unpacked", "zip")
    return tmp / "unpacked"


@pytest.fixture(scope="module")
def wheel_names(wheel: Path) -> set[str]:
    return {path.relative_to(wheel).as_posix() for path in wheel.rglob("*") if path.is_file()}


def test_wheel_with_torch_alone(wheel: Path) -> None:
    check_with_torch_alone(wheel)


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
    found = (path for path in (ROOT / folder).rglob(pattern) if "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in found if path.is_file()}


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
    metafiles = [yaml.safe_load((ROOT / metafile).read_text()) for metafile in imported]
    return [model for metafile in metafiles for model in metafile["Models"]]


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
    packages = [hook["additional_dependencies"] for hook in config["repos"][0]["hooks"]]
    needed = {package for package in sum(packages, []) if package.startswith("ruff")}
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


def new_environment(folder: Path, pip: bool = False) -> Path:
    """Its folder of packages."""
    venv.create(folder, with_pip=pip)
    (site,) = folder.glob("lib/python*/site-packages")
    return site


def seem_to_install(site: Path, name: str) -> None:
    """A distribution of mmcv 2.1.0."""
    (site / "mmcv").mkdir(exist_ok=True)
    (site / "mmcv" / "__init__.py").touch()
    info = site / f"{name.replace('-', '_')}-2.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.1.0\n")
    files = ("mmcv/__init__.py", f"{info.name}/METADATA", f"{info.name}/RECORD")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))


@pytest.mark.parametrize(("line", "other"), [("upstream", "onedl-mmcv"), ("onedl", "mmcv")])
def test_setup_does_not_mix_the_lines(tmp_path: Path, line: str, other: str) -> None:
    seem_to_install(new_environment(tmp_path / "env"), other)
    result = run_setup("--line", line, "--venv", str(tmp_path / "env"))
    assert result.returncode == 1
    assert f"holds packages of the other line: {other}\n" in result.stderr
    assert not (tmp_path / "env" / "setup.log").exists()


upstream_python = pytest.mark.skipif(
    sys.version_info >= (3, 13), reason="upstream takes Python 3.10 to 3.12"
)


@upstream_python
def test_setup_without_a_compiler(tmp_path: Path) -> None:
    """Only a compiled mmcv needs one; without pip either ends at its first step at the latest."""
    if shutil.disk_usage(tmp_path).free < 9 * 2**30:
        pytest.skip("the set-up wants 8 GB of disk before anything else")
    site = new_environment(tmp_path / "env")
    arguments = ("--venv", str(tmp_path / "env"))
    result = run_setup(*arguments, CXX="no-such-compiler")
    assert result.returncode == 1
    assert "mmcv lite" in result.stdout and "[1/7] build tools" in result.stderr

    result = run_setup(*arguments, "--mmcv", "compiled", CXX="no-such-compiler")
    assert result.returncode == 1
    assert "no C++ compiler (no-such-compiler)" in result.stderr
    assert "bash tools/setup_env.sh --mmcv lite" in result.stderr

    seem_to_install(site, "mmcv")  # a compiled one is kept
    result = run_setup(*arguments)
    assert "mmcv compiled" in result.stdout and "removing" not in result.stdout


@upstream_python
def test_setup_never_mixes_mmcv_and_mmcv_lite(tmp_path: Path) -> None:
    site = new_environment(tmp_path / "env", pip=True)
    for there, asked, named in (
        ("mmcv mmcv-lite", "", "has both mmcv and mmcv-lite, which overwrite each other"),
        ("mmcv", "--mmcv lite", "removing mmcv: this environment takes mmcv-lite"),
        ("mmcv-lite", "--mmcv compiled", "removing mmcv-lite: this environment takes mmcv"),
    ):
        for name in there.split():
            seem_to_install(site, name)
        offline = dict(PIP_NO_INDEX="1", PIP_FIND_LINKS="")
        result = run_setup("--venv", str(tmp_path / "env"), *asked.split(), **offline)
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
