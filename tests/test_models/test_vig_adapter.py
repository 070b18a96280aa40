"""ViGAdapter: the backbone inside is plain ViG, four maps come out, public weights go in."""

import re
import sys

import pytest
import torch
from golden import public_state
from small_backbones import SMALL, build, build_awake, gradients

import vig_mm
from vig_mm.checkpoints.conversion import to_public
from vig_mm.checkpoints.reading import CheckpointError
from vig_mm.models.layers.deformable_attention import DeformableAttention, Maps

VIG = {key: SMALL["ViGAdapter"][key] for key in ("embed_dims", "depth", "num_heads")}
NAME = "ViGAdapter"


@pytest.mark.parametrize("size", [(16, 16), (33, 50), (97, 131), (64, 96)], ids=str)
def test_any_size_gives_the_maps_of_a_strided_pyramid(size):
    x = torch.randn(2, 3, *size)
    backbone = build_awake(NAME).eval()
    outs = backbone(x)
    pyramid = vig_mm.HierViG(embed_dims=16, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))(x)
    assert [out.shape[2:] for out in outs] == [out.shape[2:] for out in pyramid]
    assert all(out.shape[:2] == (2, 32) and out.is_contiguous() for out in outs)
    # what is padded inside is what anyone would pad outside
    padded = torch.nn.functional.pad(x, (0, -size[1] % 32, 0, -size[0] % 32))
    for out, whole in zip(outs, backbone(padded), strict=True):
        assert torch.equal(out, whole[:, :, : out.shape[2], : out.shape[3]])


@pytest.mark.parametrize("size", [(64, 96), (224, 224)], ids=str)
def test_stream_starts_as_plain_vig(size):
    """Injectors write nothing at first, so the last block's output is that of the ViG inside."""
    backbone, plain = build(NAME).eval(), vig_mm.ViG(**VIG).eval()
    found = plain.load_state_dict(backbone.state_dict(), strict=False)
    assert found.missing_keys == ["norm.weight"]
    streams = []
    for model in (backbone, plain):
        model.blocks[-1].register_forward_hook(lambda module, args, out: streams.append(out))
    x = torch.randn(2, 3, *size)
    backbone(x), plain(x)
    torch.testing.assert_close(streams[0], streams[1])
    for interaction in backbone.adapter.interactions:
        torch.nn.init.constant_(interaction.injector.gamma, 0.5)
    backbone(x)
    assert not torch.allclose(streams[2], streams[1], atol=1e-2)


@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (1, 2, 3), (0,), -1], ids=str)
def test_no_parameter_is_unused(out_indices):
    """DDP needs a gradient for each; in eval mode, where BN cancels no bias, none is zero."""
    backbone = build_awake(NAME, out_indices=out_indices).eval()
    grads = gradients(backbone, torch.randn(2, 3, 64, 96))
    assert [name for name, g in grads.items() if g is None or not g.any()] == []
    finest = [name for name in grads if name.startswith(("adapter.up", "adapter.spatial_prior.pr"))]
    assert len(finest) == (10 if 0 in backbone.out_indices else 6)


def test_out_indices_pick_maps():
    backbone = build_awake(NAME).eval()
    x = torch.randn(1, 3, 64, 64)
    fewer = build(NAME, out_indices=(1, 3)).eval()
    fewer.load_state_dict(backbone.state_dict(), strict=False)
    for out, expected in zip(fewer(x), backbone(x)[1::2], strict=True):
        assert torch.equal(out, expected)


def test_norms_need_no_process_group():
    """SyncBN, the default where there is a GPU, computes what BN does and has its parameters."""
    x = torch.randn(2, 3, 64, 64)
    outs = []
    for kind in ("BN", "SyncBN"):
        backbone = build(NAME, norm_cfg=dict(type=kind)).train()
        outs.append(backbone(x))
    assert type(backbone.adapter.norms["0"]).__name__ == "SyncBatchNorm"
    assert set(backbone.state_dict()) == set(build(NAME).state_dict())
    for out, expected in zip(outs[1], outs[0], strict=True):
        torch.testing.assert_close(out, expected)


def attention_that_reads(channels, heads, levels, offset):
    """One point per head and map, ``offset`` cells away; values and outputs pass unchanged."""
    attention = DeformableAttention(channels, heads, levels, num_points=1, value_ratio=1.0)
    attention.init_weights()
    for projection in (attention.value_proj, attention.output_proj):
        torch.nn.init.eye_(projection.weight)
    attention.sampling_offsets.bias.data = torch.tensor(offset).repeat(heads * levels)
    return attention


@pytest.mark.parametrize("offset", [(0.0, 0.0), (2.0, 0.0), (0.0, -1.0), (0.5, 0.0)], ids=str)
def test_deformable_attention_reads_at_its_offset(offset):
    """On its own map a query at offset 0 reads itself; (x, y) counts cells, to the right, down."""
    h, w = 3, 5
    x = torch.randn(2, h * w, 8)
    maps = Maps.of((h, w), like=x)
    out = attention_that_reads(8, 2, 1, offset)(x, maps, x, maps)
    padded = torch.nn.functional.pad(x.view(2, h, w, 8), (0, 0, 3, 3, 3, 3))
    expected = torch.zeros(2, h, w, 8)
    whole, part = divmod(offset[0], 1)
    for dx, share in ((int(whole), 1 - part), (int(whole) + 1, part)):
        y0, x0 = 3 + int(offset[1]), 3 + dx
        expected += share * padded[:, y0 : y0 + h, x0 : x0 + w]
    torch.testing.assert_close(out, expected.flatten(1, 2), atol=1e-5, rtol=1e-5)


def test_deformable_attention_reads_every_level_at_the_same_place():
    """Three maps that hold their cells' own coordinates: the mean is the query's coordinate."""
    like = torch.zeros(1)
    maps = Maps.of((8, 12), (4, 6), (2, 3), like=like)
    at = Maps.of((4, 6), like=like)
    out = attention_that_reads(2, 1, 3, (0.0, 0.0))(
        torch.zeros(1, 24, 2), at, maps.centres[None], maps
    )
    inner = out.view(4, 6, 2)[1:3, 2:4]  # no bilinear read across the border of any map
    torch.testing.assert_close(inner, at.centres.view(4, 6, 2)[1:3, 2:4])


def test_deformable_attention_starts_in_all_directions():
    attention = DeformableAttention(32, 4, 3, num_points=2, value_ratio=0.5)
    attention.init_weights()
    offsets = attention.sampling_offsets.bias.view(4, 3, 2, 2)
    compass = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    for point in range(2):
        for level in range(3):
            torch.testing.assert_close(
                offsets[:, level, point], (point + 1) * compass, atol=1e-6, rtol=0
            )
    assert not attention.sampling_offsets.weight.any() and attention.value_proj.weight.any()


@pytest.mark.gpu
def test_cuda_kernel_equals_pytorch():
    attention = DeformableAttention(32, 4, 3, num_points=4, value_ratio=0.5).cuda()
    if attention.kernel is None:
        pytest.skip("mmcv was built without CUDA")
    x = torch.randn(3, 63, 32, device="cuda")
    maps, at = Maps.of((6, 8), (3, 4), (1, 3), like=x), Maps.of((4, 5), like=x)
    query = torch.randn(3, 20, 32, device="cuda")
    results = []
    for kernel in (attention.kernel, None):
        attention.kernel = kernel
        out = attention(query, at, x, maps)
        out.square().sum().backward()
        results.append([out, *(p.grad.clone() for p in attention.parameters())])
        attention.zero_grad()
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)


def pretrained(path, **kwargs):
    return build(NAME, init_cfg=dict(type="Pretrained", checkpoint=str(path)), **kwargs)


def test_public_checkpoint_fills_the_vig_inside(tmp_path, log):
    state = {k: x.float() for k, x in public_state("vig_tiny").items()}
    torch.save({"model": state}, tmp_path / "vig_t.pth")
    backbone = pretrained(
        tmp_path / "vig_t.pth", embed_dims=192, depth=12, num_heads=3, deform_heads=6
    )
    loaded = backbone.state_dict()
    inside = [name for name in loaded if not name.startswith("adapter.")]
    assert set(state) - set(inside) == {"norm.weight", "head.weight", "head.bias"}
    assert all(torch.equal(loaded[name], state[name]) for name in inside)
    assert f"loaded {len(inside)} of {len(loaded)} backbone weights" in log.text
    assert f"adapter.* starts fresh: {len(loaded) - len(inside)} weights" in log.text
    assert "left out, not in this backbone: norm.weight" in log.text
    assert "MISSING" not in log.text


def test_adapter_checkpoint_that_lacks_a_weight_is_reported(tmp_path, log):
    state = build_awake(NAME).state_dict()
    torch.save({"state_dict": {f"backbone.{k}": x for k, x in state.items()}}, tmp_path / "a.pth")
    loaded = pretrained(tmp_path / "a.pth").state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    assert "MISSING" not in log.text

    del state["adapter.up.weight"]
    torch.save({"state_dict": state}, tmp_path / "b.pth")
    pretrained(tmp_path / "b.pth")
    (warning,) = (record for record in log.records if record.levelname == "WARNING")
    assert re.search("MISSING.*: adapter.up.weight$", warning.getMessage())


def test_norms_of_other_vig_outputs_stay_out(tmp_path, log):
    plain = vig_mm.ViG(**VIG, out_indices=(0, 1, 2, 3))
    torch.save({"state_dict": plain.state_dict()}, tmp_path / "x.pth")
    pretrained(tmp_path / "x.pth")
    assert "norm0.weight, norm1.weight, norm2.weight" in log.text


def test_an_adapter_has_no_public_form():
    with pytest.raises(CheckpointError, match="no place for .* weights: adapter.level_embed"):
        to_public(build(NAME).state_dict())


def test_mmcv_without_operators(monkeypatch):
    monkeypatch.setitem(sys.modules, "mmcv.ops", None)
    with pytest.raises(ImportError, match="mmcv with its operators.*MMCV_WITH_OPS=1"):
        build(NAME)
