"""What a training starts from, said last before its first iteration, with what was warned of."""

from collections.abc import Sequence
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from torch import nn

from vig_mm.checkpoints.conversion import to_backbone
from vig_mm.checkpoints.reading import read_checkpoint, shortlist, weights
from vig_mm.checks.weights import bare_model
from vig_mm.registry import type_name


class StartHook(Hook):
    """Logs a few lines before the first iteration, and their warnings once more at the end.

    mmengine logs hundreds of lines between the checks and the first iteration.

    Args:
        start: what the weights start from, if that is known.
        warnings: what the checks warned of.
    """

    priority = "LOWEST"

    def __init__(self, start: str | None, warnings: Sequence[str]) -> None:
        self._start = start
        self._warnings = list(warnings)

    def before_train(self, runner: Any) -> None:
        log = runner.logger.warning if self._warnings else runner.logger.info
        for line in [*filter(None, [self._start]), *self._warnings]:
            log(f"before the first iteration: {line}")

    def after_train(self, runner: Any) -> None:
        for line in self._warnings:
            runner.logger.warning(f"this training began with a warning: {line}")


def backbone_start(cfg: Config, model: nn.Module) -> str | None:
    """What the weights of a model's backbone will start from, if it has a backbone.

    Args:
        cfg: The whole config, whose `load_from` and `init_cfg` files are asked for their names.
        model: What is built of it, wrapped or not.
    """
    backbone = getattr(bare_model(model), "backbone", None)
    if backbone is None:
        return None
    path, part = cfg.get("load_from"), cfg.model.get("backbone") or {}
    if path and cfg.get("resume"):
        return f"all weights: as the run that is resumed left them in {path!r}"
    for source in ((path, None), _pretrained(cfg.model), _pretrained(part)):
        if line := _filled(backbone, *source):
            return line
    if named := part.get("pretrained") or cfg.model.get("pretrained"):
        return f"backbone: the weights that pretrained={named!r} names"
    recipe = "fine-tuning starts"
    if cfg.get("default_scope") in ("mmdet", "mmseg"):
        recipe = "recipes for COCO and ADE20K start"
    return f"backbone: random weights; {recipe} from ImageNet weights: docs/weights.md"


def _pretrained(part: dict) -> tuple[str | None, str | None]:
    """File and prefix of a part's `init_cfg` of type Pretrained."""
    entries = part.get("init_cfg") or ()
    for entry in [entries] if isinstance(entries, dict) else entries:
        if type_name(entry) in ("Pretrained", "PretrainedInit"):
            return entry["checkpoint"], entry.get("prefix")
    return None, None


def _filled(backbone: nn.Module, path: str | None, prefix: str | None) -> str | None:
    """How many of a backbone's parameters a file has; None where it has none of them."""
    if not path or "://" in path:  # an address, which the library's own loader reads
        return path and f"backbone: the weights of {path!r}"
    state = to_backbone(weights(read_checkpoint(path), path=path)[0], prefix)
    state = getattr(backbone, "fit_state_dict", dict)(state)  # ours fit them to the image's size
    shapes = {name: x.shape for name, x in state.items()}
    own = dict(backbone.named_parameters())
    fresh = [name for name, x in own.items() if shapes.get(name) != x.shape]
    if len(fresh) == len(own):
        return None
    rest = f"; at random: {shortlist(fresh, 3)}" if fresh else ""
    return f"backbone: {len(own) - len(fresh)} of {len(own)} parameters from {path!r}{rest}"
