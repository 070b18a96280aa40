"""What a user of a backbone relies on: shapes, norms, freezing, checkpointing, sizes, errors."""

import pytest
import torch
from mmcv.ops import roi_align
from mmdet.registry import MODELS as MMDET_MODELS
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from mmseg.registry import MODELS as MMSEG_MODELS
from torchvision.ops import roi_align as torchvision_roi_align

import vig_mm
from vig_mm.kernels.torch_utils import linear, linear_input_gradient, linear_weight_gradient
from vig_mm.nets import GatedLinearAttention2d

SMALL = {
    "ViG": dict(embed_dims=32, depth=3, num_heads=2),
    "HierViG": dict(embed_dims=16, depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4)),
}
STRIDES = {"ViG": (16,), "HierViG": (4, 8, 16, 32)}
FAMILIES = list(SMALL)


def build(family, **kwargs):
    torch.manual_seed(0)
    backbone = getattr(vig_mm, family)(**{**SMALL[family], **kwargs})
    backbone.init_weights()
    return backbone


def full_grads(backbone, x):
    loss = sum(
        (out * torch.linspace(-1, 1, out[0].numel()).view(out[0].shape)).sum()
        for out in backbone(x)
    )
    backbone.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in backbone.named_parameters()}


@pytest.mark.parametrize("registry", [MMDET_MODELS, MMSEG_MODELS, MMPRETRAIN_MODELS])
@pytest.mark.parametrize("family", FAMILIES)
def test_found_by_type_alone(registry, family):
    backbone = registry.build(dict(type=f"vig_mm.{family}", **SMALL[family]))
    assert type(backbone) is getattr(vig_mm, family)


@pytest.mark.parametrize("size", [(64, 64), (32, 96), (16, 16), (50, 37), (101, 64)])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_any_size(family, size, batch):
    backbone = build(family).eval()
    outs = backbone(torch.randn(batch, 3, *size))
    for i, (out, stride) in enumerate(zip(outs, STRIDES[family], strict=True)):
        channels = backbone.embed_dims * 2**i
        assert out.shape[:2] == (batch, channels) and out.isfinite().all()
        for pixels, cells in zip(size, out.shape[2:], strict=True):
            # the stems of both families round as the public models do
            assert abs(cells - pixels / stride) < 1
    one = backbone(torch.randn(batch, 3, *size)[:1])
    assert one[0].shape[0] == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_suit_mmcv_operators(family):
    """RoIAlign reads memory as NCHW whatever the strides say; so do other compiled operators."""
    out = build(family).eval()(torch.randn(2, 3, 96, 96))[0]
    assert out.is_contiguous()
    roi = torch.tensor([[1, 0.0, 0.0, 4.0, 4.0]])
    aligned = roi_align(out, roi, (2, 2), 1.0, 0, "avg", True)
    expected = torchvision_roi_align(out, roi, (2, 2), 1.0, -1, True)
    torch.testing.assert_close(aligned, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_batch_of_one_equals_the_same_image_in_a_batch(family):
    backbone = build(family).eval()
    x = torch.randn(4, 3, 64, 48)
    for whole, one in zip(backbone(x), backbone(x[2:3]), strict=True):
        torch.testing.assert_close(whole[2:3], one)


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
    grads = full_grads(backbone, torch.randn(2, 3, 64, 64))
    assert [name for name, g in grads.items() if g is None] == []
    # the very first parameter is reached, too
    assert grads["patch_embed.proj.0.weight" if family == "ViG" else "patch_embed.0.weight"].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_activation_checkpointing_changes_nothing(family):
    x = torch.randn(2, 3, 64, 64)
    plain = full_grads(build(family, drop_path_rate=0.0), x)
    saving = full_grads(build(family, drop_path_rate=0.0, with_cp=True), x)
    for name in plain:
        torch.testing.assert_close(saving[name], plain[name], msg=name)


@pytest.mark.parametrize(
    "family, frozen, parts",
    [
        ("ViG", 0, ("patch_embed.", "pos_embed")),
        ("ViG", 2, ("patch_embed.", "pos_embed", "blocks.0.", "blocks.1.")),
        ("HierViG", 0, ("patch_embed.",)),
        ("HierViG", 1, ("patch_embed.", "layers.0.")),
    ],
)
def test_frozen_stages(family, frozen, parts):
    backbone = build(family, frozen_stages=frozen, drop_path_rate=0.5).train()
    names = {name for name, p in backbone.named_parameters() if not p.requires_grad}
    assert names == {name for name, _ in backbone.named_parameters() if name.startswith(parts)}
    blocks = backbone.blocks if family == "ViG" else backbone.layers[0].blocks
    assert blocks[0].training == (frozen == 0)
    assert blocks[0].drop_path.training == (frozen == 0)
    grads = full_grads(backbone, torch.randn(2, 3, 64, 64))
    assert {name for name, g in grads.items() if g is None} == names


@pytest.mark.parametrize("family, size", [("ViG", (576, 528)), ("HierViG", (144, 160))])
def test_inference_in_blocks_equals_training_at_once(family, size):
    """Without gradients tokens are worked on in blocks of 1024: here more than one."""
    backbone = build(family).eval()
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        blocks = backbone(x)
    for out, whole in zip(blocks, backbone(x), strict=True):
        torch.testing.assert_close(out, whole.detach())


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


def test_drop_path_acts_in_training_only():
    backbone = build("HierViG", drop_path_rate=0.9)
    x = torch.randn(2, 3, 64, 64)
    backbone.train()
    assert not torch.equal(backbone(x)[-1], backbone(x)[-1])
    backbone.eval()
    assert torch.equal(backbone(x)[-1], backbone(x)[-1])


@pytest.mark.parametrize("family", FAMILIES)
def test_initialisation(family):
    """Std 0.02 outside the mixer; inside Xavier-uniform with gain 2^-2.5."""
    arch = dict(ViG=dict(depth=2), HierViG=dict(depths=(1, 1, 1, 1)))[family]
    backbone = getattr(vig_mm, family)(**arch)
    backbone.init_weights()
    mixers = [m for m in backbone.modules() if isinstance(m, GatedLinearAttention2d)]
    for mixer in mixers:
        weight = mixer.qkv_proj.weight
        bound = 2**-2.5 * (6 / sum(weight.shape)) ** 0.5
        assert 0.95 * bound < weight.abs().max() <= bound
        assert not mixer.g_proj.bias.any()
    block = (backbone.blocks if family == "ViG" else backbone.layers[0].blocks)[0]
    for weight in block.mlp.parameters():
        assert abs(weight.std() - 0.02) < 1e-3
    stem = backbone.patch_embed.proj[0] if family == "ViG" else backbone.patch_embed[0]
    assert stem.bias.abs().min() > 0
    if family == "ViG":
        assert abs(backbone.pos_embed.std() - 0.02) < 1e-3


def test_layer_depth():
    vig, hier = build("ViG"), build("HierViG")
    expected = {
        (vig, "backbone.pos_embed"): (0, 5),
        (vig, "backbone.patch_embed.proj.0.weight"): (0, 5),
        (vig, "backbone.blocks.0.attn.qkv_proj.weight"): (1, 5),
        (vig, "backbone.blocks.2.mlp_norm.weight"): (3, 5),
        (vig, "backbone.norm.weight"): (4, 5),
        (vig, "head.fc.weight"): (4, 5),
        (hier, "backbone.patch_embed.7.weight"): (0, 7),
        (hier, "backbone.layers.0.blocks.0.norm.weight"): (1, 7),
        (hier, "backbone.layers.0.downsample.1.weight"): (1, 7),
        (hier, "backbone.layers.2.blocks.1.op.g_norm.weight"): (4, 7),
        (hier, "backbone.layers.3.blocks.0.mlp.fc1.weight"): (5, 7),
        (hier, "backbone.norm0.weight"): (6, 7),
    }
    for (backbone, name), depth in expected.items():
        assert backbone.get_layer_depth(name, "backbone.") == depth, name


def test_position_embedding_follows_the_image():
    """The grid it was trained on is used as it is, any other is interpolated."""
    backbone = build("ViG", img_size=64)
    assert backbone.pos_embed.shape == (1, 16, 32)
    other = build("ViG", img_size=(64, 96))
    other.load_state_dict(backbone.state_dict())
    assert other.pos_embed.shape == (1, 24, 32)
    backbone.eval()
    x = torch.randn(1, 3, 64, 64)
    before = backbone(x)[0]
    backbone.pos_embed.data.zero_()
    assert not torch.allclose(backbone(x)[0], before)


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_autocast_stays_near_float32(family):
    backbone = build(family).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = backbone(x)[-1]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = backbone(x)[-1].float()
    assert ((out - expected).norm() / expected.norm()) < 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_compile_fullgraph(family):
    backbone = build(family).eval()
    x = torch.randn(1, 3, 64, 64)
    compiled = torch.compile(backbone, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for out, expected in zip(compiled(x), backbone(x), strict=True):
            torch.testing.assert_close(out, expected)


@pytest.mark.parametrize(
    "family, kwargs, words",
    [
        ("ViG", dict(arch="huge"), ["unknown arch 'huge'", "'tiny', 'small', 'base'"]),
        ("HierViG", dict(arch="t"), ["unknown arch 't'", "'tiny'"]),
        ("ViG", dict(out_indices=(0, 3)), ["out_indices=(0, 3)", "3 blocks", "0 to 2"]),
        ("HierViG", dict(out_indices=(0, 4)), ["out_indices=(0, 4)", "4 stages", "0 to 3"]),
        ("HierViG", dict(out_indices=()), ["out_indices=()"]),
        ("HierViG", dict(out_indices=(3, 1)), ["ascending"]),
        ("HierViG", dict(frozen_stages=5), ["frozen_stages=5", "-1", "4"]),
        ("ViG", dict(drop_path_rate=1.5), ["drop_path_rate=1.5"]),
        ("ViG", dict(img_size=8), ["img_size=8", "16"]),
        ("ViG", dict(num_heads=5), ["channels=32", "num_heads=5"]),
        ("HierViG", dict(num_heads=(1, 2)), ["num_heads=(1, 2)", "depths"]),
    ],
)
def test_bad_arguments(family, kwargs, words):
    with pytest.raises(ValueError) as caught:
        build(family, **kwargs)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_smaller_than_a_patch_is_padded_with_zeros(family):
    backbone = build(family).eval()
    x = torch.randn(2, 3, 1, 40)
    padded = torch.nn.functional.pad(x, (0, 0, 0, backbone.patch_size - 1))
    for a, b in zip(backbone(x), backbone(padded), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "family, shape, words",
    [
        ("ViG", (1, 3, 0, 64), ["[B, 3, H, W]", "(1, 3, 0, 64)"]),
        ("ViG", (1, 1, 64, 64), ["[B, 3, H, W]", "(1, 1, 64, 64)"]),
        ("HierViG", (3, 64, 64), ["(3, 64, 64)"]),
    ],
)
def test_bad_images(family, shape, words):
    with pytest.raises(ValueError) as caught:
        build(family)(torch.randn(shape))
    assert all(word in str(caught.value) for word in words), str(caught.value)
