"""timm's ViG in OpenMMLab's TIMMBackbone, and mmpretrain's LoRA on OpenMMLab's ViG."""

import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from mmpretrain.structures import DataSample
from mmseg.registry import MODELS as MMSEG_MODELS
from mmseg.structures import SegDataSample
from small_models import SMALL, bright_squares, train

every_model = pytest.mark.parametrize("name", SMALL)


@every_model
def test_mmpretrain_trains_timms_model(name: str) -> None:
    torch.manual_seed(0)
    init_default_scope("mmpretrain")
    width = 128 if name.startswith("hier") else 32
    cfg = dict(
        type="ImageClassifier",
        backbone=dict(type="TIMMBackbone", model_name=name, **SMALL[name]),
        neck=dict(type="GlobalAveragePooling"),
        head=dict(type="LinearClsHead", num_classes=2, in_channels=width),
    )
    model = MMPRETRAIN_MODELS.build(cfg)
    before = {k: x.clone() for k, x in model.backbone.state_dict().items()}
    model.init_weights()  # leaves alone what the network has drawn
    after = model.backbone.state_dict()
    assert all(torch.equal(x, after[k]) for k, x in before.items())

    images, masks = bright_squares(size=32)
    images[::2] -= masks[::2, None]  # every other one without
    samples = [DataSample().set_gt_label(i % 2) for i in range(len(images))]
    first, last = train(model, lambda: model(images, samples, mode="loss")["loss"], 20, 2e-3)
    assert last < 0.5 * first


def test_mmseg_trains_timms_model() -> None:
    torch.manual_seed(0)
    init_default_scope("mmseg")
    name = "hier_vig_tiny"
    cfg = dict(
        type="EncoderDecoder",
        backbone=dict(type="TIMMBackbone", model_name=name, pretrained=False, **SMALL[name]),
        decode_head=dict(
            type="UPerHead",
            in_channels=[16, 32, 64, 128],
            in_index=[0, 1, 2, 3],
            channels=16,
            num_classes=2,
            norm_cfg=dict(type="BN"),
        ),
        test_cfg=dict(mode="whole"),
    )
    model = MMSEG_MODELS.build(cfg)
    model.init_weights()
    images, masks = bright_squares()
    samples = [
        SegDataSample(gt_sem_seg=PixelData(data=mask[None]), metainfo=dict(img_shape=(64, 64)))
        for mask in masks
    ]
    first, last = train(model, lambda: model(images, samples, mode="loss")["decode.loss_ce"], 20)
    assert last < 0.7 * first


@every_model
def test_mmpretrains_lora_trains_saves_and_is_not_passed_over(name: str) -> None:
    """Its projections are exchanged inside a block, whose fast path must see that."""
    torch.manual_seed(0)
    init_default_scope("mmpretrain")
    kind = "HierViG" if name.startswith("hier") else "ViG"
    targets = [dict(type=f".*{part}") for part in ("qkv_proj", "g_proj", "o_proj", "mlp.*")]
    cfg = dict(type="LoRAModel", module=dict(type=f"vig_mm.{kind}", **SMALL[name]), rank=2, alpha=4)
    cfg["targets"] = targets
    model = MMPRETRAIN_MODELS.build(cfg)
    trained = {k for k, p in model.named_parameters() if p.requires_grad}
    assert trained and all(".lora_" in k for k in trained)
    blocks = 4
    assert len(trained) == 2 * 5 * blocks  # qkv, g, o and two of the MLP; down and up of each
    images, _ = bright_squares()
    start = model(images)[-1].detach()
    first, last = train(model, lambda: (model(images)[-1] - start - 0.1).square().mean())
    assert last < 0.7 * first

    # merged by hand: W + scaling * up @ down; the same in training, with and without gradients
    plain = MMPRETRAIN_MODELS.build(cfg["module"])
    state = {}
    for key, x in model.module.state_dict().items():
        if ".lora_" not in key:
            state[key.replace(".original_layer", "")] = x
    for path, layer in model.module.named_modules():
        if type(layer).__name__ == "LoRALinear":
            update = layer.lora_up.weight @ layer.lora_down.weight
            assert update.any()
            state[f"{path}.weight"] = layer.original_layer.weight + layer.scaling * update
    plain.load_state_dict(state)
    for mode in (True, False):
        expected = plain.train(False)(images)[-1]
        model.train(mode)
        for drop in (m for m in model.modules() if type(m).__name__ == "DropPath"):
            drop.eval()
        torch.testing.assert_close(model(images)[-1], expected, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(model(images)[-1], expected, rtol=1e-4, atol=1e-5)

    saved = {k.removeprefix("module.") for k in model.state_dict()}  # the adapters alone
    assert saved == {k.removeprefix("module.") for k in trained}
