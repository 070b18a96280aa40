"""Checks that mmengine, mmcv and the library of a config are installed and fit together."""

import atexit
import gc
import re
import sys
import warnings
from collections.abc import Iterable
from contextlib import suppress
from importlib import import_module, metadata
from importlib.util import find_spec

from .. import ops
from ..errors import RequirementError

SCOPES = ("mmdet", "mmseg", "mmpretrain")

# Import name -> the oldest release that is taken, and the distributions that provide it: upstream's
# first, the maintained forks' last. These keep the import names: nothing else tells the two apart.
_MODULES = {
    "mmengine": ("0.10.0", ("mmengine", "mmengine-lite", "onedl-mmengine")),
    "mmcv": ("2.0.0", ("mmcv", "mmcv-lite", "mmcv-full", "onedl-mmcv")),
    "mmdet": ("3.3.0", ("mmdet", "onedl-mmdetection")),
    "mmseg": ("1.2.0", ("mmsegmentation", "onedl-mmsegmentation")),
    "mmpretrain": ("1.2.0", ("mmpretrain", "onedl-mmpretrain")),
}
_FORK = "onedl-"
# First mmcv that a distribution refuses to be imported with. The forks have no such limit.
_MMCV_LIMIT = {"mmdet": "2.2.0", "mmsegmentation": "2.2.0"}
_INSTALL = {"upstream": "pip install 'vig-mm[mm]'", "onedl": "pip install 'vig-mm[onedl]'"}
# The forks have no mmcv-lite: theirs is compiled.
_GET_MMCV = {
    "upstream": "pip install mmcv-lite==2.1.0",
    "onedl": (
        "MMCV_WITH_OPS=1 pip install --no-build-isolation --no-cache-dir 'onedl-mmcv==2.3.6' "
        "(after torch, 'setuptools<80', wheel, ninja and psutil; about 10 minutes)"
    ),
}
Provider = tuple[str, str]  # a distribution and its version


def _release(version: str) -> tuple[int, ...]:
    """`'2.2.0rc1'` -> `(2, 2, 0)`; by hand, as `packaging` comes with mmengine, if at all."""
    return tuple(int(part) for part in re.match(r"\d+(\.\d+)*", version)[0].split("."))


def _providers(module: str) -> list[Provider]:
    """The installed distributions that provide `module`, with their versions."""
    found = []
    for name in _MODULES[module][1]:
        with suppress(metadata.PackageNotFoundError):
            found.append((name, metadata.version(name)))
    return found


def _line(providers: Iterable[Provider]) -> str:
    """`onedl` where one of these distributions is a maintained fork, else `upstream`."""
    return "onedl" if any(name.startswith(_FORK) for name, _ in providers) else "upstream"


def import_quickly(name: str) -> None:
    """Import a module without garbage collection, which would go through all modules repeatedly.

    What is imported is kept from later collections, too. Of a short run both are half the time.
    """
    new, collects = name not in sys.modules, gc.isenabled()
    if new:
        gc.collect()  # what is garbage now would be kept as well
    gc.disable()
    try:
        import_module(name)
    finally:
        if new:
            gc.freeze()
            atexit.register(collect_nanobind)
        if collects:
            gc.enable()


def collect_nanobind() -> None:
    """At exit: nanobind, which newer Triton is bound by, reports what is frozen as leaked."""
    ir = getattr(sys.modules.get("triton._C.libtriton"), "ir", None)
    if type(getattr(ir, "builder", None)).__module__ == "nanobind":
        gc.unfreeze()


def exit_without_mmengine() -> None:
    """For the top of a tool: import mmengine, or end in one message instead of a traceback."""
    if find_spec("mmengine") is None:
        sys.exit(f"{sys.argv[0]}: error: mmengine is not installed: {_INSTALL['upstream']}")
    import_quickly("mmengine.runner")  # with torch


def tell_mmengine_of_forks() -> None:
    """Make mmengine take the fork of mmseg for mmseg.

    It asks for the distribution `mmsegmentation`: beside `onedl-mmsegmentation` a `_base_` of
    `mmseg::...` fails, and `mmengine.hub.get_config` installs upstream's package over the fork.
    """
    for name, _ in _providers("mmseg"):
        if name.startswith(_FORK):
            from mmengine.config.utils import MODULE2PACKAGE

            MODULE2PACKAGE["mmseg"] = name


def require(scope: str) -> None:
    """Check mmengine, mmcv with its operators and the library of a config (`scope`, of `SCOPES`).

    Warns of several distributions of mmcv in one environment.

    Raises:
        ValueError: `scope` is none of `SCOPES`.
        RequirementError: names everything that is missing or does not fit, the versions found, and
            the command that puts it right.
    """
    if scope not in SCOPES:
        raise ValueError(f"default_scope is {scope!r}, but must be one of {', '.join(SCOPES)}")
    providers = {module: _providers(module) for module in ("mmengine", "mmcv", scope)}
    every = [one for found in providers.values() for one in found]
    line, mmcv, problems = _line(every), providers["mmcv"], []
    # the lines overwrite each other's files in one environment, or do not know each other
    forks = " ".join(name for name, _ in every if name.startswith(_FORK))
    others = " ".join(name for name, _ in every if not name.startswith(_FORK))
    if forks and others:
        problems.append(
            f"upstream's packages ({others}) and the forks ({forks}) are mixed: make a new "
            f"environment with one of them, {_INSTALL['upstream']} or {_INSTALL['onedl']}"
        )
    for module, found in providers.items():
        fix = _GET_MMCV[line] if module == "mmcv" else _INSTALL[line]
        oldest, (name, version) = _MODULES[module][0], found[0] if found else (module, "")
        if not found:
            problems.append(f"{module} is not installed: {fix}")
        elif _release(version) < _release(oldest):
            problems.append(f"{name} {version} is too old, {oldest} or newer is needed: {fix}")
    if mmcv and (why := _unfit_mmcv(scope, mmcv[0], providers[scope], line)):
        problems.append(f"{' '.join(mmcv[0])} {why}: {_reinstall(mmcv[:1], line)}")
    what = f"this config needs {scope}, and the environment does not fit"
    if problems:
        raise RequirementError.of(what, problems)
    # several distributions of mmcv write the same files: the last one counts, if it is whole
    mixed = []
    if len(mmcv) > 1:
        both = "are both installed and overwrite each other's files"
        mixed = [f"{' and '.join(map(' '.join, mmcv))} {both}: {_reinstall(mmcv, _line(mmcv))}"]
        warnings.warn(mixed[0], stacklevel=2)
    try:
        import_quickly(f"{scope}.models")
    except Exception as error:  # whatever stops it, its user needs to know what to install
        problem = f"{scope} is installed but cannot be imported: {type(error).__name__}: {error}"
        if getattr(error, "name", None) == "_ext":  # of a library that the loader refused
            problem += f": {_misfit(mmcv[0], line)}"
        elif isinstance(error, ModuleNotFoundError):
            problem += f": {_INSTALL[line]}"
        raise RequirementError.of(what, [problem, *mixed]) from error


def _reinstall(mmcv: list[Provider], line: str) -> str:
    return f"pip uninstall {' '.join(name for name, _ in mmcv)}, then {_GET_MMCV[line]}"


def _misfit(mmcv: Provider, line: str) -> str:
    """What to do about compiled operators that do not load: another torch, or a library is gone."""
    from torch import __version__ as torch_version

    said = f"the compiled operators of {' '.join(mmcv)} do not fit torch {torch_version}"
    more = (
        ", whose operators come from torchvision and need no compiler; or compile it again: bash "
        "tools/setup_env.sh --mmcv compiled"
    )
    return f"{said}: {_reinstall([mmcv], line)}{more if line == 'upstream' else ''}"


def _unfit_mmcv(scope: str, mmcv: Provider, libraries: list[Provider], line: str) -> str:
    for library, version in libraries:
        limit = _MMCV_LIMIT.get(library)
        if limit is not None and _release(mmcv[1]) >= _release(limit):
            return f"is too new: {library} {version} refuses mmcv {limit} and newer"
    # Upstream's mmcv-lite is served by vig_mm.ops. mmpretrain runs without operators.
    if line == "onedl" and scope != "mmpretrain" and ops.provider() != "compiled":
        return "has no compiled operators (mmcv._ext)"
    return ""
