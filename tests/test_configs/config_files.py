"""The configs of the repository: which there are, and what they say, entry by entry."""

from pathlib import Path
from typing import Any

from mmengine.config import Config

ROOT = Path(__file__).resolve().parents[2] / "configs"
CONFIGS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("mm*/*.py"))
MINI = [name for name in CONFIGS if "-mini_" in name]
ZOO = [name for name in CONFIGS if "-mini_" not in name]
PEERS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("*/peers/*.py"))


def load(name: str) -> Config:
    return Config.fromfile(ROOT / name)


def stem(name: str) -> str:
    return Path(name).stem


def entries(value: Any, prefix: str = "") -> dict[str, Any]:
    """By dotted path; of lists only those of dicts are taken apart."""
    if isinstance(value, dict) and value:
        parts = value.items()
    elif isinstance(value, list) and value and all(isinstance(x, dict) for x in value):
        parts = enumerate(value)
    else:
        return {prefix: value}
    found = {}
    for key, part in parts:
        found |= entries(part, f"{prefix}.{key}" if prefix else str(key))
    return found


def differences(base: str, other: str) -> dict[str, Any]:
    """The entries of another config that are not its base's; None where it has none."""
    ours, theirs = (entries(load(name).to_dict()) for name in (base, other))
    return {key: theirs.get(key) for key in ours | theirs if ours.get(key) != theirs.get(key)}
