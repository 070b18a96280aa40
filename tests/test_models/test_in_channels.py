"""Backbones for images of any number of channels, started from weights for RGB."""

import pytest
import torch
from timm.models import adapt_input_conv

from vig_mm.models import HierViG, ViG, ViGAdapter
from vig_mm.models.backbones import base
from vig_mm.models.backbones.stem_channels import fit_channels

PLAIN = dict(embed_dims=32, depth=2, num_heads=1, img_size=64)
KINDS = {
    "ViG": (ViG, PLAIN),
    "HierViG": (HierViG, dict(embed_dims=16, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 4))),
    "ViGAdapter": (
        ViGAdapter, dict(PLAIN, deform_heads=2, num_interactions=2, conv_inplane=8),
    ),
}  # fmt: skip


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 8])
def test_as_timm_adapts(channels):
    weight = torch.randn(6, 3, 5, 5)
    torch.testing.assert_close(fit_channels(weight, channels), adapt_input_conv(channels, weight))
    assert fit_channels(weight.half(), channels).dtype == torch.float16
    assert fit_channels(weight, 3) is weight


def test_from_four_channels():
    weight = torch.randn(6, 4, 5, 5)
    fitted = fit_channels(weight, 6)
    torch.testing.assert_close(fitted, weight[:, [0, 1, 2, 3, 0, 1]] * 4 / 6)


def built(kind, channels, path=None):
    cls, options = KINDS[kind]
    init = dict(type="Pretrained", checkpoint=str(path)) if path else None
    model = cls(in_channels=channels, init_cfg=init, **options)
    model.init_weights()
    return model.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_weights_for_rgb(kind, tmp_path, monkeypatch):
    """Grey gives what the same grey as RGB gave; four channels start, and learn."""
    torch.manual_seed(0)
    printed = []
    monkeypatch.setattr(base, "print_log", lambda line, *_: printed.append(line))
    rgb = built(kind, 3)
    path = tmp_path / "rgb.pth"
    torch.save(dict(state_dict={f"backbone.{k}": x for k, x in rgb.state_dict().items()}), path)
    grey = built(kind, 1, path)
    image = torch.rand(2, 1, 64, 64)
    for a, b in zip(grey(image), rgb(image.expand(-1, 3, -1, -1)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)

    four = built(kind, 4, path).train()
    for name in four.first_convs:
        assert f"{name}: from 3 input channels to 1: summed" in printed
        assert f"{name}: from 3 input channels to 4: repeated and scaled by 3/4" in printed
        weight = rgb.state_dict()[name]
        torch.testing.assert_close(four.state_dict()[name], weight[:, [0, 1, 2, 0]] * 0.75)
    sum(out.square().mean() for out in four(torch.rand(2, 4, 64, 64))).backward()
    gradients = dict(four.named_parameters())
    assert all(gradients[name].grad[:, 3].abs().sum() > 0 for name in four.first_convs)


@pytest.mark.parametrize("kind", KINDS)
def test_image_of_other_channels(kind):
    with pytest.raises(ValueError, match="4, H, W], got .*: set the backbone's in_channels=3"):
        built(kind, 4)(torch.rand(1, 3, 64, 64))
    with pytest.raises(ValueError, match="in_channels=0 must be 1 or more"):
        built(kind, 0)
