"""FSDP strategy: fully sharded training of our models with mmengine's FlexibleRunner."""

from functools import partial
from typing import Any

import torch
from mmengine._strategy import FSDPStrategy as MMEngineFSDPStrategy
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.optim import AmpOptimWrapper, OptimWrapper, build_optim_wrapper
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from vig_mm.nets import Block
from vig_mm.registry import FUNCTIONS, STRATEGIES, type_name

_SHARDED = ("state", "param_groups")  # of an optimizer's state dict
_WRAPPED = "_fsdp_wrapped_module."  # what FSDP inserts into names


@FUNCTIONS.register_module()
def wrap_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """FSDP's ``auto_wrap_policy``: every block of a ViG backbone is gathered on its own."""
    return recurse or isinstance(module, Block)


@STRATEGIES.register_module()
class FSDPStrategy(MMEngineFSDPStrategy):
    """mmengine's FSDPStrategy, corrected: training gives the same result as unsharded.

    Differences from mmengine 0.10.7:

    - It builds the optimizer from the flat shards, so that all weights count as 1-D and have no
      weight decay with ``flat_decay_mult=0``. Here groups are built from the unsharded parameters.
    - It clips gradients by the norm of each process's own shards. Here by that of all shards.
    - It calls ``optim_state_dict_to_load`` with the arguments of torch 2.0, so that resuming fails.
      Here resuming works, also from the checkpoint of a run without FSDP.
    - It requires a GPU. Here it also runs on CPUs.

    The arguments are those of mmengine. ``use_orig_params`` has to stay True, its default there.
    """

    def prepare(
        self, model: nn.Module | dict, *, optim_wrapper: Any = None, **kwargs
    ) -> tuple | nn.Module:
        """Build what is given as configs, shard the model, and return it with the optimizer."""
        if not self._prepared and isinstance(optim_wrapper, dict | Config):
            model = self.build_model(model)
            if type_name(optim_wrapper) == AmpOptimWrapper.__name__:
                optim_wrapper.setdefault("use_fsdp", True)
            optim_wrapper = build_optim_wrapper(model, optim_wrapper)
        return super().prepare(model, optim_wrapper=optim_wrapper, **kwargs)

    def build_optim_wrapper(self, optim_wrapper: OptimWrapper, model: nn.Module) -> OptimWrapper:
        """Put the shards of a model in the place of its whole parameters.

        Args:
            optim_wrapper: one whose optimizer has the parameters of the model before sharding, in
                their groups, and no state yet.
            model: the sharded model.
        """
        shards = {name.replace(_WRAPPED, ""): p for name, p in model.named_parameters()}
        self._order = []
        for group in optim_wrapper.optimizer.param_groups:
            names = [self.id_to_name[id(parameter)] for parameter in group["params"]]
            group["params"] = [shards[name] for name in names]
            self._order += names
        if getattr(optim_wrapper, "clip_func", None) is nn.utils.clip_grad_norm_:
            optim_wrapper.clip_func = partial(_clip_whole_norm, model)
        return optim_wrapper

    def optim_state_dict(self) -> dict:
        """The state of the whole optimizer, by the parameters' names, on the first process."""
        state = self.optim_wrapper.state_dict()
        sharded = {key: state.pop(key) for key in _SHARDED}
        optimizer = self.optim_wrapper.optimizer
        whole = FullyShardedDataParallel.optim_state_dict(self.model, optimizer, sharded)
        return {**state, **whole}

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Take each process's shards of an optimizer's whole state.

        Args:
            state_dict: what `optim_state_dict` returned, or the state of an optimizer that was not
                sharded, whose parameters have numbers instead of names.
        """
        whole = {key: state_dict.pop(key) for key in _SHARDED}

        def name(key: int | str) -> str:
            return self._order[key] if isinstance(key, int) else key

        whole["state"] = {name(key): value for key, value in whole["state"].items()}
        for group in whole["param_groups"]:
            group["params"] = [name(key) for key in group["params"]]
        shards = FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model, optim=self.optim_wrapper.optimizer, optim_state_dict=whole
        )
        self.optim_wrapper.load_state_dict({**state_dict, **shards})

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        if get_device() == "cpu":
            self.model_wrapper = {**(self.model_wrapper or {}), "device_id": torch.device("cpu")}
            # The copy "to the CPU" would be the gathered weights themselves, which torch frees
            # before they are read: a segmentation fault.
            for config in (self.state_dict_config, self.optim_state_dict_config):
                config.offload_to_cpu = False
        return super()._wrap_model(model)


def _clip_whole_norm(model: FullyShardedDataParallel, parameters: list, **options) -> torch.Tensor:
    """`clip_grad_norm_` by the norm over all processes; ``parameters`` are those of ``model``."""
    return model.clip_grad_norm_(**options)
