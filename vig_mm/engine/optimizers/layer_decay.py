"""Optimizer constructor with layer-wise decay of the learning rate.

The nearer a layer is to the image, the lower its rate: the scheme of ELECTRA (arXiv 2003.10555,
section 3.1) in the form that vision uses since BEiT.
"""

from bisect import bisect_left
from collections.abc import Callable
from itertools import accumulate

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import Tensor, nn

from vig_mm.errors import LayerDecayError
from vig_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS

_DECAY_TYPES = ("layer_wise", "stage_wise")
# What a recipe without layer decay says to get the same exemptions; here they hold anyway.
_IMPLIED = ("norm_decay_mult", "bias_decay_mult", "flat_decay_mult")
_KNOWN = ("num_layers", "decay_rate", "decay_type", "custom_keys", *_IMPLIED)
_MULTIPLIERS = ("lr_mult", "decay_mult")


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Parameter groups with the rate ``lr * decay_rate ** (num_layers + 1 - depth)``.

    Depth 0 is the embedding (stem and pos_embed), 1 to ``num_layers`` are the layers, and
    ``num_layers + 1`` is all the rest: output norms, necks and heads, whose rate is ``lr`` itself.
    The backbone says how deep a parameter lies: ``get_layer_depth(name, prefix)`` returns the
    depth and ``num_layers + 2``, as the backbones of vig_mm and most of mmpretrain's do.

    1-D parameters, biases and position embeddings have no weight decay; frozen parameters are in
    no group. Schedulers multiply every group's own rate, so give cosine schedules
    ``eta_min_ratio``: an ``eta_min`` would be the same for all groups.

    Args:
        optim_wrapper_cfg: with an ``optimizer`` that states its ``lr`` and ``weight_decay``.
        paramwise_cfg: these entries:

            - ``num_layers``: the backbone's blocks, e.g. 12 for ViG and ``sum(depths)`` for
              HierViG; for ``'stage_wise'`` its stages.
            - ``decay_rate``: in (0, 1].
            - ``decay_type``: ``'layer_wise'`` (default), or ``'stage_wise'``: one depth for a whole
              stage and the downsampling behind it.
            - ``custom_keys``: ``{part of a name: dict(lr_mult=..., decay_mult=...)}``; both
              multiply what the rules above give. Of several keys the longest counts, then the
              first in alphabetical order.

    Raises:
        LayerDecayError: an entry is missing, unknown or out of range, ``num_layers`` is not the
            backbone's, or the model has no backbone with ``get_layer_depth``.
    """

    def _validate_cfg(self) -> None:
        for option, value in (("lr", self.base_lr), ("weight_decay", self.base_wd)):
            if value is None:
                raise LayerDecayError(
                    f"layer decay needs optim_wrapper.optimizer.{option}, unset here"
                )
        super()._validate_cfg()
        cfg = self.paramwise_cfg
        _refuse_unknown("paramwise_cfg", cfg, _KNOWN)
        for option in ("num_layers", "decay_rate"):
            if cfg.get(option) is None:
                raise LayerDecayError(f"layer decay needs paramwise_cfg.{option}, which is not set")
        if not 0 < cfg["decay_rate"] <= 1:
            raise LayerDecayError(f"paramwise_cfg.decay_rate={cfg['decay_rate']} must be in (0, 1]")
        self.decay_type = cfg.get("decay_type", _DECAY_TYPES[0])
        if self.decay_type not in _DECAY_TYPES:
            raise LayerDecayError(
                f"paramwise_cfg.decay_type={self.decay_type!r} is unknown; choose one of "
                f"{', '.join(map(repr, _DECAY_TYPES))}"
            )
        for option in _IMPLIED:
            if cfg.get(option):
                raise LayerDecayError(
                    f"paramwise_cfg.{option}={cfg[option]} contradicts layer decay, which exempts "
                    "1-D parameters and biases from weight decay: leave it out or set it to 0"
                )
        self.custom_keys = cfg.get("custom_keys") or {}
        for key, multipliers in self.custom_keys.items():
            _refuse_unknown(f"paramwise_cfg.custom_keys[{key!r}]", multipliers, _MULTIPLIERS)

    def add_params(self, params: list[dict], module: nn.Module, **kwargs) -> None:
        """Append the groups of a whole model, named ``layer_{depth}_{decay|no_decay}``.

        A ``custom_keys`` entry that changes the rate or the decay adds its key to the name.

        Args:
            params: the optimizer's groups so far; each new one has ``params``, ``lr``,
                ``weight_decay``, ``lr_scale`` and ``group_name``.
            module: the model, not wrapped.
        """
        depth_of = self._depths(module)
        groups: dict[tuple, dict] = {}
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                key, settings = self._settings(name, parameter, depth_of(name))
                groups.setdefault(key, {"params": [], **settings})["params"].append(parameter)
        ordered = [groups[key] for key in sorted(groups)]
        params.extend(ordered)
        print_log(self._table(ordered), "current")

    def _settings(self, name: str, parameter: Tensor, depth: int) -> tuple[tuple, dict]:
        """A parameter's group: what tells it from the others (sortable), and its settings."""
        exempt = parameter.ndim <= 1 or name.endswith(".bias") or "pos_embed" in name
        weight_decay = 0.0 if exempt else self.base_wd
        custom = min((k for k in self.custom_keys if k in name), key=_precedence, default="")
        multipliers = self.custom_keys.get(custom, {})
        lr_mult, decay_mult = (multipliers.get(option, 1.0) for option in _MULTIPLIERS)
        if lr_mult == 1 and weight_decay * decay_mult in (0, weight_decay):
            custom = ""  # changes nothing that the other two parts of the name do not say
        weight_decay *= decay_mult

        num_layers, decay_rate = self.paramwise_cfg["num_layers"], self.paramwise_cfg["decay_rate"]
        scale = decay_rate ** (num_layers + 1 - depth) * lr_mult
        kind = "decay" if weight_decay else "no_decay"
        return (depth, kind, custom), {
            "lr": self.base_lr * scale,
            "weight_decay": weight_decay,
            "lr_scale": scale,
            "group_name": "_".join(filter(None, (f"layer_{depth}", kind, custom))),
        }

    def _depths(self, model: nn.Module) -> Callable[[str], int]:
        """The depth of a parameter by its name, after a check of ``num_layers``."""
        prefixes = {f"{name}.": backbone for name, backbone in _backbones(model).items()}
        num_layers = self.paramwise_cfg["num_layers"]
        stage_ends: dict[str, list[int]] = {}
        for prefix, backbone in prefixes.items():
            _, total = backbone.get_layer_depth(f"{prefix}x", prefix)
            counted = total - 2
            if self.decay_type == "stage_wise":
                stage_ends[prefix] = _stage_ends(backbone, blocks=counted)
                counted = len(stage_ends[prefix])
            if num_layers != counted:
                raise LayerDecayError(
                    f"paramwise_cfg.num_layers={num_layers} does not fit {type(backbone).__name__}:"
                    f" for {self.decay_type} decay set num_layers={counted}"
                )

        def depth_of(name: str) -> int:
            for prefix, backbone in prefixes.items():
                if name.startswith(prefix):
                    depth, _ = backbone.get_layer_depth(name, prefix)
                    if depth and prefix in stage_ends:
                        return 1 + bisect_left(stage_ends[prefix], depth)
                    return depth
            return num_layers + 1

        return depth_of

    def _table(self, groups: list[dict]) -> str:
        names = [group["group_name"] for group in groups]
        width = max(map(len, ["group", *names]))
        rate = self.paramwise_cfg["decay_rate"]
        lines = [
            f"{self.decay_type} decay {rate} of the learning rate {self.base_lr}:",
            f"{'group':{width}}  lr scale  lr        weight decay  tensors  parameters",
        ]
        for name, group in zip(names, groups, strict=True):
            count = sum(p.numel() for p in group["params"])
            lines.append(
                f"{name:{width}}  {group['lr_scale']:<8.4g}  {group['lr']:<8.3g}  "
                f"{group['weight_decay']:<12g}  {len(group['params']):<7}  {count}"
            )
        return "\n".join(lines)


def _precedence(key: str) -> tuple[int, str]:
    return -len(key), key


def _refuse_unknown(where: str, given: dict, known: tuple[str, ...]) -> None:
    unknown = [option for option in given if option not in known]
    if unknown:
        raise LayerDecayError(
            f"{where} has unknown entries: {', '.join(unknown)}; known: {', '.join(known)}"
        )


def _backbones(model: nn.Module) -> dict[str, nn.Module]:
    """The modules named ``backbone`` by their full names, inside a teacher, student or wrapper too.

    Raises:
        LayerDecayError: there is none, or one does not say how deep its parameters lie.
    """
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        # mmengine's MMSeparateDistributedDataParallel wraps the backbone itself
        own_name = name.removesuffix(".module").rpartition(".")[2]
        inside = name.startswith(tuple(f"{outer}." for outer in found))
        if own_name == "backbone" and not inside and not hasattr(module, "module"):
            found[name] = module
    if not found:
        raise LayerDecayError(
            f"layer decay needs a model with a backbone; {type(model).__name__} has no module of "
            "that name"
        )
    for name, module in found.items():
        if not hasattr(module, "get_layer_depth"):
            raise LayerDecayError(
                f"layer decay needs a backbone with get_layer_depth(), and {name!r}, a "
                f"{type(module).__name__}, has none: use one of vig_mm's, or leave out "
                "optim_wrapper.constructor"
            )
    return found


def _stage_ends(backbone: nn.Module, blocks: int) -> list[int]:
    """Depth of the last block of every stage."""
    ends = list(accumulate(getattr(backbone, "depths", ())))
    if not ends or ends[-1] != blocks:
        raise LayerDecayError(
            f"decay_type='stage_wise' needs a backbone with stages, and {type(backbone).__name__} "
            "has none: use 'layer_wise'"
        )
    return ends
