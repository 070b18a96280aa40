"""Initialization of a backbone by a public or mm checkpoint (``init_cfg`` of type Pretrained)."""

import re

from mmengine.logging import print_log

from vig_mm.models.backbones.base import ViGBackbone
from vig_mm.registry import WEIGHT_INITIALIZERS

from .conversion import to_backbone
from .reading import CheckpointError, StateDict, check_numbers, read_checkpoint, shortlist, weights


@WEIGHT_INITIALIZERS.register_module()
class PretrainedViG:
    """Replaces mmengine's initializer for ``dict(type='Pretrained', ...)`` in our backbones.

    Args:
        checkpoint: see `load_pretrained_backbone`.
        prefix: see `load_pretrained_backbone`.
    """

    def __init__(self, checkpoint: str, prefix: str | None = None) -> None:
        self.checkpoint = checkpoint
        self.prefix = prefix

    def __call__(self, backbone: ViGBackbone) -> None:
        load_pretrained_backbone(backbone, self.checkpoint, self.prefix)


def load_pretrained_backbone(backbone: ViGBackbone, path: str, prefix: str | None = None) -> None:
    """Load a public or mm checkpoint into a backbone and log exactly what did not fit.

    What may differ: heads (left out), output norms of stages that one of the two does not return
    (start fresh), the adapter of `ViGAdapter` (starts fresh as a whole), ``pos_embed`` of another
    grid (resized, bicubic). Anything else that is missing is logged as a warning, name by name.

    Raises:
        CheckpointError: nothing fits, a weight has another shape, the file has blocks that this
            backbone lacks (a checkpoint of another model or size), or a weight is no finite number.
    """
    state, key = weights(read_checkpoint(path), path=path)
    named = shortlist(list(state), 4)
    state = to_backbone(state, prefix)
    # before a grid is resized, which takes floating-point numbers only
    check_numbers(state, dict(backbone.named_parameters()), path)
    own = backbone.state_dict()
    state = backbone.fit_state_dict(state)

    norm = re.compile(r"norm\d*\.")
    matched = [k for k in own if k in state]
    added = [k for k in own if k.startswith(backbone.added_parts)]
    if any(k in state for k in added):
        added = []  # the file has this part, too: what it lacks of it is missing
    missing = [k for k in own if k not in state and k not in added and not norm.match(k)]
    fresh = [k for k in own if k not in state and norm.match(k)]
    unexpected = [k for k in state if k not in own and not norm.match(k)]
    reshaped = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(own[k].shape)}"
        for k in matched
        if state[k].shape != own[k].shape
    ]
    if not any(not norm.match(k) for k in matched):
        raise CheckpointError(
            f"nothing in {path!r} fits {type(backbone).__name__}: its weights"
            f"{f' (under {key!r})' if key else ''} are named {named}. "
            "Is it a checkpoint of another model, or is init_cfg's prefix wrong?"
        )
    known_top = {k.split(".")[0] for k in own}
    extra = [k for k in unexpected if k.split(".")[0] in known_top]
    extra = [k for k in extra if not k.startswith(backbone.added_parts)]
    # blocks beyond the last returned stage are not built, so a file may well have them
    extra = [k for k in extra if not _beyond_last_output(k, own)]
    if reshaped or extra:
        raise CheckpointError(
            f"{path!r} is of another size than {type(backbone).__name__}(embed_dims="
            f"{backbone.embed_dims}): "
            + "; ".join(
                f"{len(names)} {what}: {shortlist(names, 4)}"
                for what, names in (
                    ("of another shape", reshaped),
                    ("not in this backbone", extra),
                    ("missing", missing),
                )
                if names
            )
            + ". Choose the arch that the file was trained with."
        )
    backbone.load_state_dict(state, strict=False)
    where = f"{path}{f' [{key}]' if key else ''}"
    print_log(f"{where}: loaded {len(matched)} of {len(own)} backbone weights", "current")
    if fresh:
        print_log(f"{where}: output norms that start fresh: {shortlist(fresh)}", "current")
    if added:
        parts = ", ".join(f"{prefix}*" for prefix in backbone.added_parts)
        print_log(f"{where}: {parts} starts fresh: {len(added)} weights not in the file", "current")
    left_out = [k for k in state if k not in own]
    if left_out:
        print_log(f"{where}: left out, not in this backbone: {shortlist(left_out)}", "current")
    if missing:
        print_log(f"{where}: MISSING, left as initialised: {', '.join(missing)}", "current", 30)


def _beyond_last_output(name: str, own: StateDict) -> bool:
    """Whether ``blocks.i`` / ``layers.i`` lies after the last one that the backbone built."""
    match = re.match(r"(blocks|layers)\.(\d+)\.", name)
    if not match:
        return False
    part, index = match[1], int(match[2])
    last = max(int(k.split(".")[1]) for k in own if k.startswith(f"{part}."))
    if part == "layers" and index == last:
        return ".downsample." in name
    return index > last
