"""Installs the folder `vig_mm` as it is and the folder `kernels` as `vig_mm.kernels`.

A regular install also carries `vig_mm/.mim` (configs, tools and the two index files), which is
where OpenMMLab's `mim` looks; it is written into the build folder, never into the source tree.
"""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
KERNELS = "vig_mm.kernels"
EXTRAS = ("mm", "onedl", "timm", "cpu", "tools", "tests", "docs")
MIM_FOLDERS = ("configs", "tools")
MIM_FILES = ("model-index.yml", "dataset-index.yml")


def requirements(*names: str) -> list[str]:
    """The requirement lines of `requirements/<name>.txt`, each once, comments left out."""
    lines = [
        line.strip()
        for name in names
        for line in (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
        if line.strip() and not line.startswith("#")
    ]
    return list(dict.fromkeys(lines))


def version() -> str:
    scope: dict[str, str] = {}
    exec((ROOT / "vig_mm" / "version.py").read_text(), scope)
    return scope["__version__"]


class BuildPy(build_py):
    """Adds `vig_mm/.mim` to what a regular install builds."""

    def run(self) -> None:
        if self.editable_mode:
            super().run()
            return
        target = Path(self.build_lib, "vig_mm")
        # An earlier build in the same tree may hold files that have been deleted since.
        shutil.rmtree(target, ignore_errors=True)
        super().run()
        mim = target / ".mim"
        mim.mkdir(parents=True)
        for folder in MIM_FOLDERS:
            ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
            shutil.copytree(ROOT / folder, mim / folder, ignore=ignore)
        for name in MIM_FILES:
            shutil.copy2(ROOT / name, mim / name)


kernel_packages = [KERNELS, *(f"{KERNELS}.{name}" for name in find_packages(str(ROOT / "kernels")))]
setup(
    name="vig-mm",
    version=version(),
    description="ViG visual backbones (gated linear attention) for timm and OpenMMLab",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="vig_mm authors",
    license="Apache-2.0",
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in (10, 11, 12, 13)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.10",
    packages=[*find_packages(str(ROOT), include=["vig_mm", "vig_mm.*"]), *kernel_packages],
    package_dir={KERNELS: "kernels"},
    install_requires=requirements("core"),
    extras_require={name: requirements(name) for name in EXTRAS},
    cmdclass={"build_py": BuildPy},
    zip_safe=False,
)
