"""Checks that mmengine, mmcv and the library of a config are installed and fit together."""

import atexit
import gc
import re
import sys
import warnings
from collections.abc import Iterable, Mapping
from importlib import import_module, metadata
from importlib.util import find_spec
from itertools import chain

from .. import ops
from ..errors import RequirementError

SCOPES = ("mmdet", "mmseg", "mmpretrain")

# Import name -> distributions that provide it, upstream's first, the maintained forks' last.
_DISTRIBUTIONS = {
    "mmengine": ("mmengine", "mmengine-lite", "onedl-mmengine"),
    "mmcv": ("mmcv", "mmcv-lite", "mmcv-full", "onedl-mmcv"),
    "mmdet": ("mmdet", "onedl-mmdetection"),
    "mmseg": ("mmsegmentation", "onedl-mmsegmentation"),
    "mmpretrain": ("mmpretrain", "onedl-mmpretrain"),
}
_MINIMUM = {
    "mmengine": (0, 10, 0),
    "mmcv": (2, 0, 0),
    "mmdet": (3, 3, 0),
    "mmseg": (1, 2, 0),
    "mmpretrain": (1, 2, 0),
}
# First mmcv that a distribution refuses to be imported with. The forks have no such limit.
_MMCV_LIMIT = {"mmdet": (2, 2, 0), "mmsegmentation": (2, 2, 0)}

# The maintained forks keep the import names: nothing else tells the two lines apart.
_FORK = "onedl-"
_INSTALL = {"upstream": "pip install 'vig-mm[mm]'", "onedl": "pip install 'vig-mm[onedl]'"}
# The forks have no mmcv-lite: theirs is compiled.
_GET_MMCV = {
    "upstream": "pip install mmcv-lite==2.1.0",
    "onedl": (
        "MMCV_WITH_OPS=1 pip install --no-build-isolation --no-cache-dir 'onedl-mmcv==2.3.6' "
        "(after torch, 'setuptools<80', wheel, ninja and psutil; about 10 minutes)"
    ),
}


def _release(version: str) -> tuple[int, ...]:
    """`'2.2.0rc1'` -> `(2, 2, 0)`; by hand, as `packaging` comes with mmengine, if at all."""
    return tuple(int(part) for part in re.match(r"\d+(\.\d+)*", version)[0].split("."))


def _providers(module: str) -> list[tuple[str, str]]:
    """The installed distributions that provide `module`, with their versions."""
    found = []
    for name in _DISTRIBUTIONS[module]:
        try:
            found.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return found


def _line(providers: Iterable[tuple[str, str]]) -> str:
    """`onedl` where one of these distributions is a maintained fork, else `upstream`."""
    return "onedl" if any(name.startswith(_FORK) for name, _ in providers) else "upstream"


def import_quickly(name: str) -> None:
    """Import a module without garbage collection, which would go through all modules repeatedly.

    What is imported is kept from later collections, too, which then end sooner. Of a short run both
    together are nearly half the time.
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


def fork(module: str) -> str | None:
    """The maintained fork's distribution where that provides `module`, else None."""
    return next((name for name, _ in _providers(module) if name.startswith(_FORK)), None)


def tell_mmengine_of_forks() -> None:
    """Make mmengine take the fork of mmseg for mmseg.

    It asks for the distribution `mmsegmentation`, also in the fork of mmengine. Beside
    `onedl-mmsegmentation` a config's `_base_ = 'mmseg::...'` fails, and `mmengine.hub.get_config`
    installs upstream's package over the fork.
    """
    if name := fork("mmseg"):
        from mmengine.config.utils import MODULE2PACKAGE

        MODULE2PACKAGE["mmseg"] = name


def require(scope: str) -> None:
    """Check mmengine, mmcv with its operators and the library of a config.

    Warns of several distributions of mmcv in one environment.

    Args:
        scope: `default_scope` of the config, one of `SCOPES`.

    Raises:
        ValueError: `scope` is none of `SCOPES`.
        RequirementError: names everything that is missing or does not fit, the versions found,
            and the command that puts it right.
    """
    if scope not in SCOPES:
        raise ValueError(f"default_scope is {scope!r}, but must be one of {', '.join(SCOPES)}")

    providers = {module: _providers(module) for module in ("mmengine", "mmcv", scope)}
    line = _line(chain(*providers.values()))
    problems = _mixed_lines(providers)
    for module, found in providers.items():
        problems += _problems(module, found, line)
    if providers["mmcv"]:
        problems += _mmcv_problems(scope, providers["mmcv"][0], providers[scope], line)
    if problems:
        raise RequirementError(_message(scope, problems))
    if mixed := _mixed_mmcv(providers["mmcv"]):
        warnings.warn(mixed, stacklevel=2)

    try:
        import_quickly(f"{scope}.models")
    except Exception as error:  # whatever stops it, its user needs to know what to install
        problem = f"{scope} is installed but cannot be imported: {type(error).__name__}: {error}"
        if getattr(error, "name", None) == "_ext":  # of a library that the loader refused
            problem += f": {_misfit(providers['mmcv'][0], line)}"
        elif isinstance(error, ModuleNotFoundError):
            problem += f": {_INSTALL[line]}"
        raise RequirementError(_message(scope, [problem, *filter(None, [mixed])])) from error


def _mixed_mmcv(mmcv: list[tuple[str, str]]) -> str | None:
    """Several distributions of mmcv write the same files: the last one counts, if it is whole."""
    if len(mmcv) < 2:
        return None
    names = [name for name, _ in mmcv]
    return (
        f"{' and '.join(' '.join(pair) for pair in mmcv)} are both installed and overwrite each "
        f"other's files: pip uninstall {' '.join(names)}, then {_GET_MMCV[_line(mmcv)]}"
    )


def _misfit(mmcv: tuple[str, str], line: str) -> str:
    """What to do about compiled operators that do not load: another torch, or a library is gone."""
    from torch import __version__ as torch_version

    name, version = mmcv
    advice = f"the compiled operators of {name} {version} do not fit torch {torch_version}: "
    if line == "upstream":
        advice += (
            f"pip uninstall {name}, then {_GET_MMCV[line]}, whose operators come from torchvision "
            "and need no compiler; or compile it again: bash tools/setup_env.sh --mmcv compiled"
        )
    else:
        advice += f"pip uninstall {name}, then {_GET_MMCV[line]}"
    return advice


def _mixed_lines(providers: Mapping[str, list[tuple[str, str]]]) -> list[str]:
    """Both lines in one environment overwrite each other's files, or do not know each other."""
    names = [name for found in providers.values() for name, _ in found]
    forks = [name for name in names if name.startswith(_FORK)]
    if not forks or len(forks) == len(names):
        return []
    others = " ".join(name for name in names if name not in forks)
    return [
        f"upstream's packages ({others}) and the forks ({' '.join(forks)}) are mixed: make a new "
        f"environment with one of them, {_INSTALL['upstream']} or {_INSTALL['onedl']}"
    ]


def _problems(module: str, found: list[tuple[str, str]], line: str) -> list[str]:
    fix = _GET_MMCV[line] if module == "mmcv" else _INSTALL[line]
    if not found:
        return [f"{module} is not installed: {fix}"]
    name, version = found[0]
    if _release(version) < _MINIMUM[module]:
        needed = _dotted(_MINIMUM[module])
        return [f"{name} {version} is too old, {needed} or newer is needed: {fix}"]
    return []


def _mmcv_problems(
    scope: str, mmcv: tuple[str, str], libraries: list[tuple[str, str]], line: str
) -> list[str]:
    name, version = mmcv
    for library, its_version in libraries:
        limit = _MMCV_LIMIT.get(library)
        if limit is not None and _release(version) >= limit:
            return [
                f"{name} {version} is too new: {library} {its_version} refuses mmcv "
                f"{_dotted(limit)} and newer: pip uninstall {name}, then {_GET_MMCV[line]}"
            ]
    # Upstream's mmcv-lite is served by vig_mm.ops. mmpretrain runs without operators.
    if line == "onedl" and scope != "mmpretrain" and ops.provider() != "compiled":
        return [
            f"{name} {version} has no compiled operators (mmcv._ext): "
            f"pip uninstall {name}, then {_GET_MMCV[line]}"
        ]
    return []


def _dotted(release: tuple[int, ...]) -> str:
    return ".".join(map(str, release))


def _message(scope: str, problems: list[str]) -> str:
    lines = "".join(f"\n  - {problem}" for problem in problems)
    return f"this config needs {scope}, and the environment does not fit:{lines}"
