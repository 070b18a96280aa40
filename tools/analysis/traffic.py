"""What autograd keeps for the backward pass, and the bytes that a step's operators move."""

import collections
from collections.abc import Callable, Iterable
from functools import partial

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SIZE = (512, 512)
MOVES_NOTHING = (
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
    *("detach", "t", "_reshape_alias", "_unsafe_view"),
)


class TrafficMode(TorchDispatchMode):
    """Bytes read and written, and calls, of every operator that moves something.

    Each tensor that an operator takes or returns counts once; views and empty allocations do not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes: collections.Counter = collections.Counter()
        self.calls: collections.Counter = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::").removeprefix("vig_mm::")
        aliases = any(
            x.alias_info is not None and not x.alias_info.is_write for x in func._schema.returns
        )
        if not (func.is_view or aliases or name in MOVES_NOTHING):
            self.bytes[name] += sum(x.nbytes for x in _tensors((args, kwargs, out)))
            self.calls[name] += 1
        return out


def _tensors(tree: object) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def training_traffic(forward: Callable[[], object], parameters: Iterable[Tensor]) -> dict:
    """Of a training step whose loss is the sum of all that ``forward`` returns.

    Args:
        forward: to a tensor, or tensors in tuples, lists and dicts.
        parameters: what is no part of what is kept.

    Returns:
        ``kept``: bytes that autograd holds after the forward pass; ``forward``, ``training``: bytes
        moved by the forward pass and by both; ``operators``: calls in both; ``by_operator``: name
        to bytes moved in both, the largest first.
    """
    kept: dict[int, int] = {}
    alive = []  # or another storage might get the place of one that is gone

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        alive.append(storage)
        return x

    for x in parameters:
        alive.append(x.untyped_storage())
    own = {storage._cdata for storage in alive}
    mode = TrafficMode()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), mode:
        outputs = forward()
    moved = mode.bytes.total()
    loss = sum(x.sum() for x in _tensors(outputs) if x.requires_grad)
    with mode:
        loss.backward()
    return {
        "kept": sum(size for key, size in kept.items() if key not in own),
        "forward": moved,
        "training": mode.bytes.total(),
        "operators": mode.calls.total(),
        "by_operator": dict(mode.bytes.most_common()),
    }


def backbone(cfg: Config, device: str) -> nn.Module:
    """A config's backbone, or its whole model if that is none of several parts, in train mode."""
    settings = cfg.model.get("backbone", cfg.model)
    settings = {key: value for key, value in settings.items() if key != "init_cfg"}
    if "vig_mm" in str(settings["type"]) and device == "meta":
        settings["backend"] = "triton"
    with MODELS.switch_scope_and_registry(cfg.default_scope) as registry:
        model = revert_sync_batchnorm(registry.build(settings))
    model.train()
    return model.to(device)


def backbone_traffic(cfg: Config, size: tuple[int, int] = SIZE, device: str = "meta") -> dict:
    """`training_traffic` of a config's backbone for one image of ``size`` (H, W)."""
    model = backbone(cfg, device)
    image = torch.zeros(1, 3, *size, device=device)
    return training_traffic(partial(model, image), model.parameters())
