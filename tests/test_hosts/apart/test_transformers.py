"""timm's ViG as a backbone and as a classifier of transformers."""

from pathlib import Path

import pytest
import torch
from small_models import SMALL, bright_squares, train

transformers = pytest.importorskip("transformers")

NAME = "hier_vig_tiny"


def backbone_config(**options) -> "transformers.TimmBackboneConfig":
    return transformers.TimmBackboneConfig(backbone=NAME, **options)


def test_backbone_has_timms_maps() -> None:
    backbone = transformers.AutoBackbone.from_config(backbone_config(out_indices=[0, 3])).eval()
    assert backbone.channels == [96, 768]
    x = torch.randn(1, 3, 64, 96)
    maps = backbone(x).feature_maps
    assert [tuple(y.shape) for y in maps] == [(1, 96, 16, 24), (1, 768, 2, 3)]
    for y, z in zip(maps, backbone._backbone(x), strict=True):
        torch.testing.assert_close(y, z)


def small_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers passes no keywords on to timm: the entry point gets them here."""
    entry = vars(transformers.models.timm_backbone.modeling_timm_backbone)["timm"].create_model

    def create_model(name: str, **kwargs):
        return entry(name, **{k: v for k, v in kwargs.items() if v is not None}, **SMALL[name])

    monkeypatch.setattr("timm.create_model", create_model)


def test_upernet_trains_and_is_saved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small_backbone(monkeypatch)
    torch.manual_seed(0)
    cfg = transformers.UperNetConfig(
        backbone_config=backbone_config(out_indices=[0, 1, 2, 3]),
        hidden_size=16, num_labels=2, use_auxiliary_head=False,
    )  # fmt: skip
    model = transformers.UperNetForSemanticSegmentation(cfg)
    images, masks = bright_squares()
    first, last = train(model, lambda: model(pixel_values=images, labels=masks).loss, 20)
    assert last < 0.7 * first
    model.eval().save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(images).logits, model(images).logits)


def test_detr_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    small_backbone(monkeypatch)
    torch.manual_seed(0)
    cfg = transformers.DetrConfig(
        use_timm_backbone=False, backbone=None,
        backbone_config=backbone_config(out_indices=[3]),
        d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=5,
        num_labels=1, dropout=0.0,
    )  # fmt: skip
    model = transformers.DetrForObjectDetection(cfg)
    images, masks = bright_squares()
    labels = []
    for mask in masks:
        y, x = mask.nonzero().float().unbind(1)
        corners = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]) / 64
        centre, size = (corners[:2] + corners[2:]) / 2, corners[2:] - corners[:2]
        labels.append(
            dict(
                class_labels=torch.zeros(1, dtype=torch.long), boxes=torch.cat([centre, size])[None]
            )
        )
    first, last = train(model, lambda: model(pixel_values=images, labels=labels).loss, 30)
    assert last < 0.8 * first


def test_classifier_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    small_backbone(monkeypatch)
    torch.manual_seed(0)
    cfg = transformers.TimmWrapperConfig(architecture=NAME, num_labels=2, do_pooling=True)
    model = transformers.TimmWrapperForImageClassification(cfg)
    images, masks = bright_squares(8)
    images[::2] -= masks[::2, None]
    labels = torch.arange(8) % 2
    first, last = train(model, lambda: model(pixel_values=images, labels=labels).loss, 20)
    assert last < 0.5 * first
