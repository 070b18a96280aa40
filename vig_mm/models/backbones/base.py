"""OpenMMLab's view of the networks: checkpoints by ``init_cfg``, frozen stages, layer decay."""

import copy

from mmengine.logging import print_log
from mmengine.model import BaseModule, initialize
from mmengine.model.weight_init import PretrainedInit
from torch import Tensor, nn

from vig_mm.registry import WEIGHT_INITIALIZERS

from .stem_channels import fit_channels


class ViGBackbone(BaseModule):
    """What a registered backbone has beside its network of `vig_mm.nets`, its other base class."""

    in_channels: int
    added_parts: tuple[str, ...] = ()
    """Prefixes of names that no public checkpoint has."""
    first_convs: tuple[str, ...]
    """Names of the weights that see the image's channels."""

    def set_up(
        self, frozen_stages: int, max_frozen: int, init_cfg: dict | list[dict] | None
    ) -> None:
        """To be called when the network has been built."""
        if not -1 <= frozen_stages <= max_frozen:
            raise ValueError(
                f"frozen_stages={frozen_stages} is out of range: -1 (none) to {max_frozen} (all)"
            )
        self.frozen_stages = frozen_stages
        self.init_cfg = copy.deepcopy(init_cfg)
        self.train(self.training)

    def frozen_parts(self) -> list[nn.Module | nn.Parameter]:
        """Modules and parameters that ``frozen_stages`` freezes."""
        raise NotImplementedError

    def get_layer_depth(self, param_name: str, prefix: str = "") -> tuple[int, int]:
        """Depth of a parameter for layer-wise decay, and the number of layers."""
        raise NotImplementedError

    def draw_weights(self) -> None:
        """Draw the weights as the public models do; the network has this."""
        raise NotImplementedError

    def fit_state_dict(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Adapt a state dict (own names) to this instance: its image channels, its image size."""
        state = dict(state)
        for name in self.first_convs:
            weight = state.get(name)
            if weight is not None and weight.dim() == 4 and weight.shape[1] != self.in_channels:
                old, new = weight.shape[1], self.in_channels
                how = "summed" if new == 1 else f"repeated and scaled by {old}/{new}"
                print_log(f"{name}: from {old} input channels to {new}: {how}", "current")
                state[name] = fit_channels(weight, new)
        return state

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        own = {k.removeprefix(prefix): x for k, x in state_dict.items() if k.startswith(prefix)}
        for name, x in self.fit_state_dict(own).items():
            state_dict[f"{prefix}{name}"] = x
        super()._load_from_state_dict(state_dict, prefix, *args)

    def init_weights(self) -> None:
        """Draw the weights, then load ``init_cfg``'s checkpoint, if any.

        A ``Pretrained`` checkpoint may be a public ViG file or an mm file, see
        `vig_mm.checkpoints.pretrained`.
        """
        if self.is_init:
            return
        self.draw_weights()  # again: a model's own init_cfg may have drawn them otherwise
        cfgs = [self.init_cfg] if isinstance(self.init_cfg, dict) else list(self.init_cfg or ())
        pretrained = [c for c in cfgs if c["type"] in ("Pretrained", PretrainedInit)]
        others = [c for c in cfgs if c not in pretrained]
        if others:
            initialize(self, others)
        for cfg in pretrained:
            ours = dict(type="vig_mm.PretrainedViG", checkpoint=cfg["checkpoint"])
            WEIGHT_INITIALIZERS.build(dict(ours, prefix=cfg.get("prefix")))(self)
        self._is_init = True

    def train(self, mode: bool = True) -> "ViGBackbone":
        """Set the mode; frozen parts stay in eval mode and without gradients."""
        super().train(mode)
        for part in self.frozen_parts():
            part.requires_grad_(False)
            if isinstance(part, nn.Module):
                part.eval()
        return self
