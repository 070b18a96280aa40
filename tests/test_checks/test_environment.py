"""One message says what is missing or does not fit, what was found, and what to run."""

import gc
import shutil
import subprocess
import sys
import weakref
from importlib import metadata
from importlib.util import module_from_spec, spec_from_file_location

import pytest

from vig_mm.checks import environment
from vig_mm.checks.environment import (
    RequirementError,
    exit_without_mmengine,
    import_quickly,
    require,
)

UPSTREAM = {
    "mmengine": "0.10.7",
    "mmcv": "2.1.0",
    "mmdet": "3.3.0",
    "mmsegmentation": "1.2.2",
    "mmpretrain": "1.2.0",
}
FORKS = {
    "onedl-mmengine": "0.10.12",
    "onedl-mmcv": "2.3.6",
    "onedl-mmdetection": "3.5.1",
    "onedl-mmsegmentation": "1.4.2",
    "onedl-mmpretrain": "1.3.6",
}


@pytest.fixture
def installed(monkeypatch):
    """Make the environment look as if these distributions were installed, and import."""

    def pretend(versions, operators=True, import_error=None):
        def version(name):
            if name not in versions:
                raise metadata.PackageNotFoundError(name)
            return versions[name]

        def import_module(name):
            if import_error is not None:
                raise import_error

        monkeypatch.setattr(environment.metadata, "version", version)
        provider = "compiled" if operators else "torchvision"
        monkeypatch.setattr(environment.ops, "provider", lambda: provider)
        monkeypatch.setattr(environment, "import_module", import_module)

    return pretend


@pytest.mark.parametrize("scope", environment.SCOPES)
def test_this_environment_passes(scope):
    pytest.importorskip("mmcv")
    pytest.importorskip(scope)
    require(scope)


def without(versions, *names):
    return {name: version for name, version in versions.items() if name not in names}


LITE = without(UPSTREAM, "mmcv") | {"mmcv-lite": "2.1.0"}
GONE = ModuleNotFoundError("No module named 'ftfy'", name="ftfy")
# distributions, scope, whether mmcv's operators are compiled, words; None: it passes
FITS = {
    "no mmdet": (without(UPSTREAM, "mmdet"), "mmdet", True,
                 r"mmdet is not installed: pip install 'vig-mm\[mm\]'"),
    "nothing": ({}, "mmdet", True, "mmengine is not .*\n.*mmcv is not installed: pip install mmcv-"
                "lite==2.1.0\n.*mmdet is not"),
    "forks without mmdet": (without(FORKS, "onedl-mmdetection"), "mmdet", True,
                            r"installed: pip install 'vig-mm\[onedl\]'$"),
    "forks without operators": (FORKS, "mmseg", False, "onedl-mmcv 2.3.6 has no compiled operators "
                                ".*'onedl-mmcv==2.3.6'"),
    "mixed": (FORKS | {"mmcv": "2.1.0"}, "mmpretrain", True, r"upstream's packages \(mmcv\) and "
              r"the forks \(onedl-mmengine onedl-mmcv onedl-mmpretrain\)"),
    "new mmcv, mmdet": (UPSTREAM | {"mmcv": "2.2.0"}, "mmdet", True,
                        r"mmcv 2\.2\.0 is too new.*mmcv-lite==2\.1\.0"),
    "new mmcv, mmpretrain": (UPSTREAM | {"mmcv": "2.2.0"}, "mmpretrain", True, None),
    "old mmdet": (UPSTREAM | {"mmdet": "2.28.2"}, "mmdet", True, "mmdet 2.28.2 is too old, 3.3.0"),
    **{f"upstream, {scope}": (UPSTREAM, scope, True, None) for scope in environment.SCOPES},
    **{f"forks, {scope}": (FORKS, scope, True, None) for scope in environment.SCOPES},
    # operators come from torchvision
    **{f"mmcv-lite, {scope}": (LITE, scope, False, None) for scope in environment.SCOPES},
}  # fmt: skip


@pytest.mark.parametrize("what", FITS)
def test_what_fits(installed, what):
    versions, scope, operators, words = FITS[what]
    installed(versions, operators)
    if words is None:
        require(scope)
        return
    with pytest.raises(RequirementError, match=words) as error:
        require(scope)
    assert what != "forks without mmdet" or "vig-mm[mm]" not in str(error.value)


@pytest.mark.parametrize(
    ("versions", "name"), [(UPSTREAM, "mmsegmentation"), (FORKS, "onedl-mmsegmentation")]
)
def test_mmengine_looks_for_what_is_installed(installed, monkeypatch, versions, name):
    package_of = pytest.importorskip("mmengine.config.utils").MODULE2PACKAGE
    monkeypatch.setitem(package_of, "mmseg", "mmsegmentation")
    installed(versions)
    environment.tell_mmengine_of_forks()
    assert package_of["mmseg"] == name


def test_mmcv_and_mmcv_lite(installed):
    both = UPSTREAM | {"mmcv-lite": "2.1.0"}
    named = (
        "mmcv 2.1.0 and mmcv-lite 2.1.0 are both installed.*pip uninstall mmcv mmcv-lite, then "
        "pip install mmcv-lite"
    )
    installed(both)
    with pytest.warns(UserWarning, match=named):
        require("mmdet")
    installed(both, import_error=AttributeError("module 'mmcv' has no attribute '__version__'"))
    with pytest.warns(UserWarning, match=named), pytest.raises(RequirementError, match=named):
        require("mmdet")


@pytest.mark.parametrize(
    ("versions", "advice"),
    [(UPSTREAM, "uninstall mmcv, then pip install mmcv-lite==2.1.0"), (FORKS, "MMCV_WITH_OPS=1")],
    ids=["upstream", "forks"],
)
def test_operators_compiled_for_another_torch(installed, tmp_path, versions, advice):
    """The error is the dynamic loader's own, of a library with a symbol that nobody has."""
    import torch

    (tmp_path / "ext.c").write_text("void at_gone(void); void PyInit__ext(void) { at_gone(); }")
    library = tmp_path / "_ext.so"
    compile_it = ["gcc", "-shared", "-fPIC", str(tmp_path / "ext.c"), "-o", str(library)]
    if shutil.which("gcc") is None:
        pytest.skip("no C compiler")
    subprocess.run([*compile_it, "-Wl,-z,now"], check=True)
    spec = spec_from_file_location("mmcv._ext", library)
    with pytest.raises(ImportError, match="undefined symbol") as loading:
        module_from_spec(spec)
    installed(versions, import_error=loading.value)
    with pytest.raises(RequirementError) as error:
        require("mmdet")
    message = str(error.value)
    assert "undefined symbol: at_gone" in message
    assert f"do not fit torch {torch.__version__}" in message
    assert advice in message


def test_import_failure_names_its_cause(installed):
    installed(UPSTREAM, import_error=GONE)
    with pytest.raises(RequirementError, match="mmseg is installed but .*'ftfy'.*pip") as error:
        require("mmseg")
    assert error.value.__cause__ is GONE
    with pytest.raises(ValueError, match="mmocr.*mmdet, mmseg, mmpretrain"):
        require("mmocr")


def test_tools_stop_without_mmengine(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tools/train.py"])
    monkeypatch.setattr(environment, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="train.py: error: mmengine is not installed: pip install"):
        exit_without_mmengine()


@pytest.mark.parametrize("collects", [True, False])
def test_imports_without_collection(tmp_path, monkeypatch, collects):
    """Also where an import fails, and where the user does without collection altogether."""
    monkeypatch.syspath_prepend(tmp_path)
    line = "import gc\nassert not gc.isenabled()\nkept = [[] for _ in range(1000)]\n"
    (tmp_path / f"whole_{collects}.py").write_text(line)
    (tmp_path / f"broken_{collects}.py").write_text(line + "raise ImportError('broken')\n")
    try:
        if not collects:
            gc.disable()
        before = gc.get_freeze_count()
        import_quickly(f"whole_{collects}")
        after = gc.get_freeze_count()
        assert gc.isenabled() is collects and after >= before + 1000
        import_quickly(f"whole_{collects}")  # not again: what became garbage since would be kept
        assert gc.get_freeze_count() <= after
        with pytest.raises(ImportError, match="broken"):
            import_quickly(f"broken_{collects}")
        assert gc.isenabled() is collects
    finally:
        gc.enable()


def test_garbage_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "empty_module.py").touch()

    class Model:
        def __init__(self):
            self.itself = self

    freed = weakref.ref(Model())
    import_quickly("empty_module")
    assert freed() is None
