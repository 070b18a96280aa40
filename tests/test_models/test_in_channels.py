"""Backbones for images of any number of channels, started from weights for RGB."""

import pytest
import torch
from small_backbones import FAMILIES, build
from timm.models import adapt_input_conv

from vig_mm.models.backbones.stem_channels import fit_channels


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 8])
def test_as_timm_adapts(channels):
    weight = torch.randn(6, 3, 5, 5)
    torch.testing.assert_close(fit_channels(weight, channels), adapt_input_conv(channels, weight))
    assert fit_channels(weight.half(), channels).dtype == torch.float16
    assert fit_channels(weight, 3) is weight
    weight = torch.randn(6, 4, 5, 5)  # timm starts from one and three only
    fitted = fit_channels(weight, 6)
    torch.testing.assert_close(fitted, weight[:, [0, 1, 2, 3, 0, 1]] * 4 / 6)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_for_rgb(family, tmp_path, log):
    """Grey gives what the same grey as RGB gave; four channels start, and learn."""
    rgb = build(family).eval()
    path = tmp_path / "rgb.pth"
    torch.save(dict(state_dict={f"backbone.{k}": x for k, x in rgb.state_dict().items()}), path)
    init = dict(type="Pretrained", checkpoint=str(path))
    grey = build(family, in_channels=1, init_cfg=init).eval()
    image = torch.rand(2, 1, 64, 64)
    for a, b in zip(grey(image), rgb(image.expand(-1, 3, -1, -1)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)

    four = build(family, in_channels=4, init_cfg=init)
    for name in four.first_convs:
        assert f"{name}: from 3 input channels to 1: summed" in log.text
        assert f"{name}: from 3 input channels to 4: repeated and scaled by 3/4" in log.text
        weight = rgb.state_dict()[name]
        torch.testing.assert_close(four.state_dict()[name], weight[:, [0, 1, 2, 0]] * 0.75)
    sum(out.square().mean() for out in four(torch.rand(2, 4, 64, 64))).backward()
    gradients = dict(four.named_parameters())
    assert all(gradients[name].grad[:, 3].abs().sum() > 0 for name in four.first_convs)


@pytest.mark.parametrize("family", FAMILIES)
def test_image_of_other_channels(family):
    with pytest.raises(ValueError, match="4, H, W], got .*: set the backbone's in_channels=3"):
        build(family, in_channels=4)(torch.rand(1, 3, 64, 64))
    with pytest.raises(ValueError, match="in_channels=0 must be 1 or more"):
        build(family, in_channels=0)
