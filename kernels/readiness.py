"""Whether Triton works on this machine, and what stands in its way.

Triton compiles a launcher for its kernels with a C compiler at run time and keeps it in a folder.
Imports triton, when asked.
"""

import contextlib
import functools
import os
import shutil
import subprocess
import sysconfig
import tempfile

INSTALL_COMPILER = "apt-get install gcc python3-dev, or set CC"
LONGEST = 400  # characters of an error that a warning repeats


@functools.cache
def obstacle() -> str | None:
    """Why no Triton kernel can run in this process, and what to do; None if one can.

    Asks Triton for the GPU, its own first step before any launch. That loads or compiles what
    Triton calls the driver with, by the compiler, headers and folder that it takes for all kernels;
    so nothing is refused that Triton can use, such as launchers compiled on another machine.
    """
    try:
        import triton

        if not hasattr(triton, "knobs"):
            return (
                f"Triton {triton.__version__} lacks settings that the kernels use; install "
                "Triton 3.4 or later, which comes with torch 2.8 or later"
            )
        if triton.knobs.runtime.interpret:
            return None
        triton.runtime.driver.active.get_current_target()
    except Exception as error:
        return explain(error)
    return None


def explain(error: Exception) -> str:
    """What an error of Triton means, and what to do if the machine lacks something."""
    if isinstance(error, (OSError, subprocess.SubprocessError)) or "compiler" in str(error):
        with contextlib.suppress(Exception):  # of a Triton that cannot be asked
            if lacks := no_compiler() or no_header() or no_cache():
                return lacks
    text = str(error).strip().removesuffix(".")
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
    return f"{type(error).__name__}: {text}"


def compiler() -> str | None:
    """The C compiler that Triton takes: CC, a file or a name on PATH, else gcc, else clang."""
    cc = os.environ.get("CC")
    return shutil.which("gcc") or shutil.which("clang") if cc is None else shutil.which(cc)


def header() -> str | None:
    """Python.h, where Triton lets the compiler look for it, or the environment does."""
    from triton import knobs

    paths = (os.environ.get(name, "") for name in ("CPATH", "C_INCLUDE_PATH"))
    folders = [include_folder(), *knobs.build.backend_dirs, *":".join(paths).split(":")]
    files = (os.path.join(folder, "Python.h") for folder in folders)
    return next(filter(os.path.exists, files), None)


def include_folder() -> str:
    scheme = sysconfig.get_default_scheme()
    scheme = "posix_prefix" if scheme == "posix_local" else scheme  # as Triton does, for Debian
    return sysconfig.get_paths(scheme)["include"]


def cache_folder() -> str | None:
    """Where Triton keeps what it compiled; None if it was given another cache than a folder.

    TRITON_CACHE_DIR, or .triton/cache in TRITON_HOME or in the home folder.
    """
    from triton import knobs

    return None if knobs.cache.manager_class else knobs.cache.dir


def no_compiler() -> str | None:
    from triton import knobs

    if compiler() or knobs.build.impl is not None:
        return None
    if (cc := os.environ.get("CC")) is not None:
        return f"CC is {cc!r}, which is no program: set it to a C compiler, or unset it"
    return f"Triton needs a C compiler, and neither gcc nor clang is on PATH: {INSTALL_COMPILER}"


def no_header() -> str | None:
    from triton import knobs

    if header() or knobs.build.impl is not None:
        return None
    return (
        f"Triton needs Python's headers, and {include_folder()} has no Python.h: install them "
        "(apt-get install python3-dev), or name their folder in CPATH"
    )


def no_cache() -> str | None:
    folder = cache_folder()
    if folder is None:
        return None
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return (
            f"Triton keeps compiled kernels in {folder}, which cannot be written "
            f"({error.strerror}): set TRITON_CACHE_DIR to a folder that can"
        )
