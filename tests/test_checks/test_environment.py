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
@pytest.mark.parametrize("versions", [UPSTREAM, FORKS], ids=["upstream", "forks"])
def test_what_fits_passes(installed, versions, scope):
    installed(versions)
    require(scope)


@pytest.mark.parametrize("scope", environment.SCOPES)
def test_this_environment_passes(scope):
    pytest.importorskip("mmcv")
    pytest.importorskip(scope)
    require(scope)


@pytest.mark.parametrize(
    ("scope", "gone"),
    [("mmdet", "mmdet"), ("mmseg", "mmsegmentation"), ("mmpretrain", "mmpretrain")],
)
def test_missing_library(installed, scope, gone):
    installed({name: v for name, v in UPSTREAM.items() if name != gone})
    with pytest.raises(RequirementError) as error:
        require(scope)
    assert f"{scope} is not installed" in str(error.value)
    assert "pip install 'vig-mm[mm]'" in str(error.value)


def test_everything_missing_is_one_message(installed):
    installed({})
    with pytest.raises(RequirementError) as error:
        require("mmdet")
    assert str(error.value).count("is not installed") == 3
    assert "pip install mmcv-lite==2.1.0" in str(error.value)


def test_forks_are_completed_by_forks(installed):
    installed({name: v for name, v in FORKS.items() if name != "onedl-mmdetection"})
    with pytest.raises(RequirementError) as error:
        require("mmdet")
    assert "pip install 'vig-mm[onedl]'" in str(error.value)
    assert "vig-mm[mm]" not in str(error.value)

    installed(FORKS, operators=False)
    with pytest.raises(RequirementError, match="onedl-mmcv 2.3.6 has no .*'onedl-mmcv==2.3.6'"):
        require("mmseg")


@pytest.mark.parametrize(
    ("versions", "name"), [(UPSTREAM, "mmsegmentation"), (FORKS, "onedl-mmsegmentation")]
)
def test_mmengine_looks_for_what_is_installed(installed, monkeypatch, versions, name):
    package_of = pytest.importorskip("mmengine.config.utils").MODULE2PACKAGE
    monkeypatch.setitem(package_of, "mmseg", "mmsegmentation")
    installed(versions)
    environment.tell_mmengine_of_forks()
    assert package_of["mmseg"] == name


def test_mixed_lines(installed):
    installed(FORKS | {"mmcv": "2.1.0"})
    with pytest.raises(RequirementError) as error:
        require("mmpretrain")
    assert (
        "upstream's packages (mmcv) and the forks (onedl-mmengine onedl-mmcv onedl-mmpretrain)"
        in str(error.value)
    )


@pytest.mark.parametrize("scope", ["mmdet", "mmseg"])
def test_mmcv_too_new(installed, scope):
    installed(UPSTREAM | {"mmcv": "2.2.0"})
    with pytest.raises(RequirementError, match=r"mmcv 2\.2\.0 is too new.*mmcv-lite==2\.1\.0"):
        require(scope)


def test_mmpretrain_takes_newer_mmcv(installed):
    installed(UPSTREAM | {"mmcv": "2.2.0"})
    require("mmpretrain")


@pytest.mark.parametrize("scope", environment.SCOPES)
def test_operators_come_from_torchvision(installed, scope):
    without = {name: v for name, v in UPSTREAM.items() if name != "mmcv"}
    installed(without | {"mmcv-lite": "2.1.0"}, operators=False)
    require(scope)


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


def test_too_old(installed):
    installed(UPSTREAM | {"mmdet": "2.28.2"})
    with pytest.raises(RequirementError, match=r"mmdet 2\.28\.2 is too old, 3\.3\.0"):
        require("mmdet")


def test_import_failure_names_its_cause(installed):
    cause = ModuleNotFoundError("No module named 'ftfy'", name="ftfy")
    installed(UPSTREAM, import_error=cause)
    with pytest.raises(RequirementError, match="mmseg is installed but .*'ftfy'.*pip") as error:
        require("mmseg")
    assert error.value.__cause__ is cause


def test_unknown_scope():
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
