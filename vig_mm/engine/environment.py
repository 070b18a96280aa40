"""Checks, before anything is built, that the OpenMMLab packages a task needs are there and fit."""

import re
import sys
from importlib import import_module, metadata
from importlib.util import find_spec

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

_INSTALL = "pip install 'vig-mm[mm]'"
_BUILD_MMCV = (
    "MMCV_WITH_OPS=1 pip install --no-build-isolation --no-cache-dir 'mmcv==2.1.0' "
    "(after torch, 'setuptools<80', wheel, ninja and psutil; about 10 minutes)"
)


class RequirementError(ImportError):
    """A package that the config needs is missing, too old, too new or incomplete."""


def _release(version: str) -> tuple[int, ...]:
    """`'2.2.0rc1'` -> `(2, 2, 0)`; by hand, as `packaging` comes with mmengine, if at all."""
    return tuple(int(part) for part in re.match(r"\d+(\.\d+)*", version)[0].split("."))


def _provider(module: str) -> tuple[str, str] | None:
    """The installed distribution that provides `module` and its version, or None."""
    for name in _DISTRIBUTIONS[module]:
        try:
            return name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def exit_without_mmengine() -> None:
    """For the top of a tool, before its mm imports: one message instead of a traceback."""
    if find_spec("mmengine") is None:
        sys.exit(f"{sys.argv[0]}: error: mmengine is not installed: {_INSTALL}")


def require(scope: str) -> None:
    """Check mmengine, mmcv with its operators and the library of a config.

    Args:
        scope: `default_scope` of the config, one of `SCOPES`.

    Raises:
        ValueError: `scope` is none of `SCOPES`.
        RequirementError: names everything that is missing or does not fit, the versions found,
            and the command that puts it right.
    """
    if scope not in SCOPES:
        raise ValueError(f"default_scope is {scope!r}, but must be one of {', '.join(SCOPES)}")

    problems = []
    found = {module: _provider(module) for module in ("mmengine", "mmcv", scope)}
    for module, provider in found.items():
        if provider is None:
            problems.append(f"{module} is not installed: {_fix(module)}")
        elif _release(provider[1]) < _MINIMUM[module]:
            problems.append(
                f"{provider[0]} {provider[1]} is too old, {_dotted(_MINIMUM[module])} or newer is "
                f"needed: {_fix(module)}"
            )
    if found["mmcv"] is not None:
        problems += _mmcv_problems(scope, *found["mmcv"], library=found[scope])
    if problems:
        raise RequirementError(_message(scope, problems))

    try:
        import_module(f"{scope}.models")
    except Exception as error:  # whatever stops it, its user needs to know what to install
        problem = f"{scope} is installed but cannot be imported: {type(error).__name__}: {error}"
        if isinstance(error, ModuleNotFoundError):
            problem += f": {_INSTALL}"
        raise RequirementError(_message(scope, [problem])) from error


def _mmcv_problems(
    scope: str, name: str, version: str, library: tuple[str, str] | None
) -> list[str]:
    limit = _MMCV_LIMIT.get(library[0]) if library else None
    if limit is not None and _release(version) >= limit:
        return [
            f"{name} {version} is too new: {library[0]} {library[1]} refuses mmcv "
            f"{_dotted(limit)} and newer: pip uninstall {name}, then {_BUILD_MMCV}"
        ]
    # mmpretrain runs without mmcv's operators; the detectors and segmentors do not.
    if scope != "mmpretrain" and find_spec("mmcv._ext") is None:
        return [
            f"{name} {version} has no compiled operators (mmcv._ext): "
            f"pip uninstall {name}, then {_BUILD_MMCV}"
        ]
    return []


def _dotted(release: tuple[int, ...]) -> str:
    return ".".join(map(str, release))


def _fix(module: str) -> str:
    return _BUILD_MMCV if module == "mmcv" else _INSTALL


def _message(scope: str, problems: list[str]) -> str:
    lines = "".join(f"\n  - {problem}" for problem in problems)
    return f"this config needs {scope}, and the environment does not fit:{lines}"
