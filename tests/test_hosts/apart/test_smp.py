"""Encoders of segmentation_models.pytorch."""

import pytest
import torch
import torch.nn.functional as F
from small_models import SMALL, bright_squares, train

smp = pytest.importorskip("segmentation_models_pytorch")


@pytest.mark.parametrize(
    ("decoder", "name", "options"),
    [
        ("Unet", "hier_vig_tiny", dict(decoder_channels=(32, 16, 16, 8, 8))),
        ("FPN", "hier_vig_tiny", dict(decoder_pyramid_channels=16)),
        ("UPerNet", "hier_vig_tiny", dict(decoder_channels=16)),
        ("DPT", "vig_tiny_patch16", dict(decoder_fusion_channels=16)),
    ],
)
def test_segmentor_trains(decoder: str, name: str, options: dict) -> None:
    torch.manual_seed(0)
    small = {k: x for k, x in SMALL[name].items() if k != "depth"}  # smp's own word
    model = getattr(smp, decoder)(
        f"tu-{name}", encoder_weights=None, in_channels=3, classes=2, **options, **small
    )
    images, masks = bright_squares()
    assert model(images).shape == (4, 2, 64, 64)
    first, last = train(model, lambda: F.cross_entropy(model(images), masks), 12)
    assert last < 0.7 * first


def test_the_plain_family_is_no_pyramid() -> None:
    with pytest.raises(ValueError, match="Unsupported model downsampling pattern"):
        smp.Unet("tu-vig_tiny_patch16", encoder_weights=None)
