"""Layer-wise decay: every parameter in one group, with the rate of its depth, worked out by hand.

The decay rate is 1/2 throughout, so that every scale is a power of two and exact.
"""

from pathlib import Path

import known_cases
import pytest
from mmengine.config import Config
from mmengine.optim import LinearLR, build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch import nn

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
LR, WEIGHT_DECAY = 1e-3, 0.05

PLAIN = dict(type="vig_mm.ViG", embed_dims=32, num_heads=2)
ADAPTER = dict(type="vig_mm.ViGAdapter", embed_dims=48, num_heads=2, conv_inplane=8)
HIERARCHICAL = dict(type="vig_mm.HierViG", embed_dims=16, num_heads=(1, 1, 2, 4))

BACKBONES = {"mmpretrain": (PLAIN, 12), "mmseg": (ADAPTER, 12), "mmdet": (HIERARCHICAL, 11)}
# {depth: parameters}; the scale is 1/2 ** (blocks + 1 - depth)
DEPTHS = {
    "mmpretrain": {
        0: "backbone.pos_embed backbone.patch_embed.proj.0.weight",
        1: "backbone.blocks.0.attn.qkv_proj.weight",
        6: "backbone.blocks.5.mlp.gate_proj.weight",
        12: "backbone.blocks.11.attn_norm.weight",
        13: "backbone.norm.weight head.fc.bias",
    },
    "mmseg": {
        0: "backbone.pos_embed backbone.patch_embed.proj.3.weight",
        1: "backbone.blocks.0.attn.in_proj.0.weight",
        12: "backbone.blocks.11.mlp.down_proj.weight",
        13: (
            "backbone.adapter.spatial_prior.stem.0.conv.weight backbone.adapter.level_embed "
            "backbone.adapter.interactions.0.injector.gamma backbone.adapter.norms.0.weight "
            "decode_head.conv_seg.weight auxiliary_head.conv_seg.bias"
        ),
    },
    "mmdet": {
        0: "backbone.patch_embed.0.weight backbone.patch_embed.7.bias",
        1: "backbone.layers.0.blocks.0.op.qkv_proj.weight",
        2: "backbone.layers.0.downsample.1.weight",
        3: "backbone.layers.1.blocks.0.norm.weight",
        6: "backbone.layers.2.blocks.1.mlp.fc1.weight",
        11: "backbone.layers.3.blocks.1.op.gk_proj.1.bias",
        12: "backbone.norm3.weight neck.lateral_convs.0.conv.weight rpn_head.rpn_cls.weight",
    },
}
STAGES = {  # the same for stages as layers
    0: "backbone.patch_embed.5.weight",
    1: "backbone.layers.0.blocks.0.norm.weight backbone.layers.0.downsample.1.weight",
    3: "backbone.layers.2.blocks.0.norm.weight backbone.layers.2.blocks.4.norm.weight",
    4: "backbone.layers.3.blocks.0.norm.weight",
    5: "backbone.norm0.weight rpn_head.rpn_cls.weight",
}


def build(scope: str, backbone: dict) -> nn.Module:
    """A whole Mask R-CNN, UperNet or classifier; it is never run, so channels need not fit."""
    model = Config.fromfile(CONFIGS / known_cases.CONFIGS[scope]).model
    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(dict(model, backbone=backbone, _scope_=scope))


def optimise(model: nn.Module, scope: str = "mmpretrain", optimizer=None, **paramwise):
    optimizer = optimizer or dict(lr=LR, weight_decay=WEIGHT_DECAY)
    wrapper = dict(
        type="OptimWrapper",
        constructor="vig_mm.LayerDecayOptimWrapperConstructor",
        optimizer=dict(type="AdamW", **optimizer),
        paramwise_cfg=paramwise,
    )
    with DefaultScope.overwrite_default_scope(scope):
        return build_optim_wrapper(model, wrapper)


def by_name(model: nn.Module, wrapper) -> dict[str, dict]:
    """The group of every parameter; fails where one is in two groups."""
    groups = {}
    for group in wrapper.optimizer.param_groups:
        for parameter in group["params"]:
            assert id(parameter) not in groups
            groups[id(parameter)] = group
    return {n: groups.pop(id(p)) for n, p in model.named_parameters() if id(p) in groups}


def check_rates(groups: dict[str, dict], layers: int, depths: dict[int, str]) -> None:
    for depth, names in depths.items():
        for name in names.split():
            assert groups[name]["lr"] == LR * 0.5 ** (layers + 1 - depth), name
            assert groups[name]["group_name"].startswith(f"layer_{depth}_"), name


@pytest.mark.parametrize("scope", DEPTHS)
def test_groups(scope):
    backbone, blocks = BACKBONES[scope]
    model = build(scope, backbone)
    groups = by_name(model, optimise(model, scope, num_layers=blocks, decay_rate=0.5))

    assert groups.keys() == dict(model.named_parameters()).keys()
    check_rates(groups, blocks, DEPTHS[scope])
    for name, parameter in model.named_parameters():
        exempt = parameter.ndim == 1 or name.endswith(".bias") or name == "backbone.pos_embed"
        assert groups[name]["weight_decay"] == (0 if exempt else WEIGHT_DECAY), name
        assert groups[name]["group_name"].endswith("no_decay") == exempt, name
    # one group for each depth and decay
    assert len({id(group) for group in groups.values()}) == 2 * (blocks + 2)


def test_stages_as_layers():
    model = build("mmdet", HIERARCHICAL)
    wrapper = optimise(model, "mmdet", num_layers=4, decay_rate=0.5, decay_type="stage_wise")
    check_rates(by_name(model, wrapper), 4, STAGES)


def test_frozen_parameters_are_in_no_group():
    model = build("mmpretrain", dict(HIERARCHICAL, frozen_stages=1))
    groups = by_name(model, optimise(model, num_layers=11, decay_rate=0.5))
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert "backbone.layers.0.blocks.1.norm.weight" in frozen
    assert groups.keys() == dict(model.named_parameters()).keys() - frozen


def test_custom_keys_multiply():
    custom = {
        "head": dict(lr_mult=10),
        "blocks.5": dict(lr_mult=0.5, decay_mult=2),
        "blocks.5.mlp": dict(decay_mult=3),  # longer, so it alone counts
        "pos_embed": dict(decay_mult=0),
    }
    model = build("mmpretrain", PLAIN)
    wrapper = optimise(model, num_layers=12, decay_rate=0.5, custom_keys=custom)
    groups = by_name(model, wrapper)
    # parameter -> depth, kind and key of its group; multiples of rate and decay
    for name, (group, rate, decay) in {
        "head.fc.weight": ("13_decay_head", 10, 1),
        "head.fc.bias": ("13_no_decay_head", 10, 0),
        "backbone.blocks.5.attn.o_proj.weight": ("6_decay_blocks.5", 2**-8, 2),
        "backbone.blocks.5.mlp.down_proj.weight": ("6_decay_blocks.5.mlp", 2**-7, 3),
        "backbone.pos_embed": ("0_no_decay", 2**-13, 0),
    }.items():
        found = groups[name]
        assert found["group_name"] == f"layer_{group}"
        expected = (rate * LR, decay * WEIGHT_DECAY)
        assert (found["lr"], found["weight_decay"]) == pytest.approx(expected), name


class Wrapper(nn.Module):
    """Holds its model as every distributed wrapper does."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def test_wrapped_and_nested_models():
    plain = build("mmpretrain", PLAIN)
    expected = by_name(plain, optimise(plain, num_layers=12, decay_rate=0.5))

    groups = by_name(plain, optimise(Wrapper(plain), num_layers=12, decay_rate=0.5))
    assert groups.keys() == expected.keys()
    assert all(groups[name]["lr"] == expected[name]["lr"] for name in expected)

    # semi-supervised detectors and distillation; a wrapper around the backbone alone
    both = nn.ModuleDict(dict(student=plain, teacher=build("mmpretrain", PLAIN)))
    both.teacher.requires_grad_(False)
    both.student.backbone = Wrapper(both.student.backbone)
    groups = by_name(both, optimise(both, num_layers=12, decay_rate=0.5))
    assert len(groups) == len(expected)
    for name in ("patch_embed.proj.0.weight", "blocks.5.mlp.gate_proj.weight", "norm.weight"):
        lr = groups[f"student.backbone.module.{name}"]["lr"]
        assert lr == expected[f"backbone.{name}"]["lr"]


def test_schedulers_keep_the_ratios_and_the_log_shows_the_base_rate():
    model = build("mmpretrain", PLAIN)
    wrapper = optimise(model, num_layers=12, decay_rate=0.5)
    scheduler = LinearLR(wrapper, start_factor=0.25, end=3)
    groups = by_name(model, wrapper)
    for factor in (0.25, 0.625, 1):
        assert wrapper.get_lr()["base_lr"] == [pytest.approx(factor * LR)]
        assert groups["head.fc.weight"]["lr"] == pytest.approx(factor * LR)
        assert groups["backbone.pos_embed"]["lr"] == pytest.approx(factor * LR / 2**13)
        wrapper.step()
        scheduler.step()


def test_our_recipes_take_it_as_they_are():
    """The exemptions that a recipe without layer decay spells out are no contradiction."""
    cfg = Config.fromfile(CONFIGS / "mmpretrain" / "vig-t_8xb128_in1k.py")
    cfg.optim_wrapper.constructor = "vig_mm.LayerDecayOptimWrapperConstructor"
    cfg.optim_wrapper.paramwise_cfg.update(num_layers=12, decay_rate=0.5)
    model = build("mmpretrain", PLAIN)
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        groups = by_name(model, build_optim_wrapper(model, cfg.optim_wrapper))
    assert groups["backbone.pos_embed"]["lr"] == 2e-3 / 2**13


GOOD = dict(num_layers=12, decay_rate=0.9)
# backbone, what is not as in GOOD (None: not there), message
BAD = {
    "another ViG": (PLAIN, dict(num_layers=24), "num_layers=24 .* ViG: .*set num_layers=12"),
    "another HierViG": (HIERARCHICAL, {}, "num_layers=12 .* HierViG: .*set num_layers=11"),
    "blocks for stages": (
        HIERARCHICAL,
        dict(num_layers=11, decay_type="stage_wise"),
        "num_layers=11 .*stage_wise.*set num_layers=4",
    ),
    "no stages": (PLAIN, dict(decay_type="stage_wise"), "ViG has none: use 'layer_wise'"),
    "unknown type": (PLAIN, dict(decay_type="block"), "'block'.*'layer_wise', 'stage_wise'"),
    "rate above one": (PLAIN, dict(decay_rate=1.5), r"decay_rate=1.5 .*\(0, 1\]"),
    "no num_layers": (PLAIN, dict(num_layers=None), "num_layers, which is not set"),
    "no decay_rate": (PLAIN, dict(decay_rate=None), "decay_rate, which is not set"),
    "unknown entry": (PLAIN, dict(rate=0.9), "unknown entries: rate; known: num_layers"),
    "decaying norms": (PLAIN, dict(norm_decay_mult=0.5), "norm_decay_mult=0.5 .* to 0"),
    "unknown multiplier": (
        PLAIN,
        dict(custom_keys=dict(head=dict(lr=1))),
        r"custom_keys\['head'\] .*: lr; known: lr_mult",
    ),
    "no weight decay": (PLAIN, dict(optimizer=dict(lr=LR)), "optimizer.weight_decay, unset"),
    "a backbone without depths": (
        dict(type="MobileNetV2"),
        {},
        r"get_layer_depth\(\), and 'backbone', a MobileNetV2, .*constructor",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_options(what):
    backbone, changes, message = BAD[what]
    with pytest.raises(ValueError, match=message):
        optimise(build("mmpretrain", backbone), **{**GOOD, **changes})


def test_a_model_without_backbone():
    with pytest.raises(ValueError, match="Linear has no module of that name"):
        optimise(nn.Linear(2, 2), **GOOD)
