"""What a user of a backbone relies on: outputs, norms, freezing, checkpointing, errors.

Any size, batches and images that are refused: tests/test_fuzz/test_backbones_fuzzed.py; half
precision: tests/test_precision; depths of the layers: tests/test_engine/test_layer_decay.py; with
and without gradients, in blocks of tokens or at once: test_golden.py and test_recompute.py.
"""

import pytest
import torch
from mmdet.registry import MODELS as MMDET_MODELS
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from mmseg.registry import MODELS as MMSEG_MODELS
from small_backbones import FAMILIES, SMALL, build, build_awake, gradients

import vig_mm
from vig_mm.kernels.torch_utils import linear, linear_input_gradient, linear_weight_gradient
from vig_mm.nets import GatedLinearAttention2d

every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.mark.parametrize("registry", [MMDET_MODELS, MMSEG_MODELS, MMPRETRAIN_MODELS])
def test_found_by_type_alone(registry):
    for family in FAMILIES:
        backbone = registry.build(dict(type=f"vig_mm.{family}", **SMALL[family]))
        assert type(backbone) is getattr(vig_mm, family)


@pytest.mark.parametrize(
    "family, out_indices, norms",
    [
        ("ViG", -1, {"norm"}),
        ("ViG", (0, 2), {"norm0", "norm"}),
        ("ViG", (0, 1), {"norm0", "norm1"}),
        ("HierViG", (0, 1, 2, 3), {"norm0", "norm1", "norm2", "norm3"}),
        ("HierViG", (1, -1), {"norm1", "norm3"}),
        ("HierViG", 2, {"norm2"}),
    ],
)
def test_a_norm_for_every_output_and_no_unused_parameter(family, out_indices, norms):
    backbone = build(family, out_indices=out_indices)
    children = {name for name, _ in backbone.named_children() if name.startswith("norm")}
    assert children == norms
    grads = gradients(backbone, torch.randn(2, 3, 64, 64))
    assert [name for name, g in grads.items() if g is None] == []
    # the very first parameter is reached, too
    assert grads["patch_embed.proj.0.weight" if family == "ViG" else "patch_embed.0.weight"].any()


@every_family
def test_activation_checkpointing_changes_nothing(family):
    x = torch.randn(2, 3, 64, 64)
    plain = gradients(build_awake(family, drop_path_rate=0.3), x)
    saving = gradients(build_awake(family, drop_path_rate=0.3, with_cp=True), x)
    for name in plain:
        torch.testing.assert_close(saving[name], plain[name], msg=name)


@pytest.mark.parametrize(
    "family, frozen, parts",
    [
        ("ViG", 0, ("patch_embed.", "pos_embed")),
        ("ViG", 2, ("patch_embed.", "pos_embed", "blocks.0.", "blocks.1.")),
        ("HierViG", 0, ("patch_embed.",)),
        ("HierViG", 1, ("patch_embed.", "layers.0.")),
        ("ViGAdapter", 4, ("patch_embed.", "pos_embed", "blocks.")),  # never the adapter
    ],
)
def test_frozen_stages(family, frozen, parts):
    backbone = build(family, frozen_stages=frozen, drop_path_rate=0.5).train()
    names = {name for name, p in backbone.named_parameters() if not p.requires_grad}
    assert names == {name for name, _ in backbone.named_parameters() if name.startswith(parts)}
    first = backbone.layers[0].blocks[0] if family == "HierViG" else backbone.blocks[0]
    assert first.training == first.drop_path.training == (frozen == 0)
    grads = gradients(backbone, torch.randn(2, 3, 64, 64))
    assert {name for name, g in grads.items() if g is None} == names


@pytest.mark.parametrize(("rows", "width"), [(600, 7), (1200, 7), (1200, 640)])
def test_linear_layers_as_convolutions(rows, width):
    """Few rows, a number that 16 divides not and one that it does; small and large."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(12 if width < 100 else 640, width)
    x = torch.randn(rows + (width < 100), layer.in_features, requires_grad=True)
    expected = layer(x)
    torch.testing.assert_close(linear(x, layer.weight, layer.bias), expected)
    grad = torch.randn_like(expected)
    dx, dweight = torch.autograd.grad(expected, (x, layer.weight), grad)
    x, weight = x.detach(), layer.weight.detach()
    torch.testing.assert_close(linear_input_gradient(grad, weight), dx, rtol=1e-4, atol=1e-4)
    found = linear_weight_gradient(grad, x, weight)
    torch.testing.assert_close(found, dweight, rtol=1e-4, atol=1e-3)


@every_family
def test_drop_path_acts_in_training_only(family):
    backbone, x = build(family, drop_path_rate=0.9), torch.randn(2, 3, 64, 64)
    assert not torch.equal(backbone.train()(x)[-1], backbone(x)[-1])
    assert torch.equal(backbone.eval()(x)[-1], backbone(x)[-1])


@pytest.mark.parametrize("family", ["ViG", "HierViG"])
def test_initialisation(family):
    """Std 0.02 outside the mixer; inside Xavier-uniform with gain 2^-2.5."""
    arch = dict(ViG=dict(depth=2), HierViG=dict(depths=(1, 1, 1, 1)))[family]
    backbone = getattr(vig_mm, family)(**arch)
    backbone.init_weights()
    for mixer in (m for m in backbone.modules() if isinstance(m, GatedLinearAttention2d)):
        weight = mixer.qkv_proj.weight
        bound = 2**-2.5 * (6 / sum(weight.shape)) ** 0.5
        assert 0.95 * bound < weight.abs().max() <= bound
        assert not mixer.g_proj.bias.any()
    block = (backbone.blocks if family == "ViG" else backbone.layers[0].blocks)[0]
    small = [*block.mlp.parameters(), *([backbone.pos_embed] if family == "ViG" else [])]
    assert all(abs(weight.std() - 0.02) < 1e-3 for weight in small)
    stem = backbone.patch_embed.proj[0] if family == "ViG" else backbone.patch_embed[0]
    assert stem.bias.abs().min() > 0


@pytest.mark.parametrize(
    "family, cut",
    [
        ("ViG", dict(depth=1)),
        ("HierViG", dict(depths=(1, 1), num_heads=(1, 2), out_indices=(0, 1))),
        ("ViGAdapter", dict(depth=1, num_interactions=1)),
    ],
    ids=["ViG", "HierViG", "ViGAdapter"],
)
def test_compile_fullgraph(family, cut):
    """Inference; a compiled training step is in test_recompute.py."""
    backbone = build_awake(family, **cut).eval()
    x = torch.randn(1, 3, 64, 64)
    compiled = torch.compile(backbone, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for out, expected in zip(compiled(x), backbone(x), strict=True):
            torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("family", ["ViG", "HierViG"])
def test_what_is_smaller_than_a_patch_is_padded_with_zeros(family):
    backbone = build(family).eval()
    x = torch.randn(2, 3, 1, 40)
    padded = torch.nn.functional.pad(x, (0, 0, 0, backbone.patch_size - 1))
    for a, b in zip(backbone(x), backbone(padded), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "family, kwargs, message",
    [
        ("ViG", dict(arch="huge"), "unknown arch 'huge'.*'tiny', 'small', 'base'"),
        ("HierViG", dict(arch="t"), "unknown arch 't'.*'tiny'"),
        ("ViGAdapter", dict(arch="huge"), "unknown arch 'huge'.*'tiny', 'small', 'base'"),
        ("ViG", dict(out_indices=(0, 3)), r"out_indices=\(0, 3\).*3 blocks.*0 to 2"),
        ("HierViG", dict(out_indices=(0, 4)), r"out_indices=\(0, 4\).*4 stages.*0 to 3"),
        ("ViGAdapter", dict(out_indices=(0, 4)), r"out_indices=\(0, 4\).*4 maps.*0 to 3"),
        ("HierViG", dict(out_indices=()), r"out_indices=\(\)"),
        ("HierViG", dict(out_indices=(3, 1)), "ascending"),
        ("HierViG", dict(frozen_stages=5), "frozen_stages=5.*-1.*4"),
        ("ViGAdapter", dict(frozen_stages=5), r"frozen_stages=5.*4 \(all\)"),
        ("ViG", dict(drop_path_rate=1.5), "drop_path_rate=1.5"),
        ("ViG", dict(img_size=8), "img_size=8.*16"),
        ("ViG", dict(num_heads=5), "channels=32.*num_heads=5"),
        ("HierViG", dict(num_heads=(1, 2)), r"num_heads=\(1, 2\).*depths"),
        ("ViGAdapter", dict(deform_heads=6), "embed_dims=32.*deform_ratio=1.0.*deform_heads=6"),
        ("ViGAdapter", dict(deform_ratio=0.3), "deform_ratio=0.3.*deform_heads=4"),
        ("ViGAdapter", dict(depth=6), "depth=6.*num_interactions=4"),
        ("ViGAdapter", dict(num_interactions=0), "num_interactions=0"),
    ],
    ids=str,
)
def test_bad_arguments(family, kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(family, **kwargs)
