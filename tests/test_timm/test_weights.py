"""Files of the ViG authors, of OpenMMLab's models and of timm's own, read and written by timm."""

import re
from pathlib import Path

import pytest
import timm
import torch
from golden import MODELS, SHAPES, check_outputs, public_state
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from safetensors.torch import save_file
from timm.models import load_checkpoint

import vig_mm.timm  # noqa: F401
from vig_mm.checkpoints.conversion import prepare_checkpoint, to_classifier
from vig_mm.checkpoints.pretrained import load_pretrained_backbone
from vig_mm.models import HierViG, ViG

ROOT = Path(__file__).resolve().parents[2]
TINY = dict(vig_tiny="vig_tiny_patch16", vig_h_tiny="hier_vig_tiny")


def timm_name(model: str) -> str:
    """``vig_h_tiny`` -> ``hier_vig_tiny``, ``vig_tiny`` -> ``vig_tiny_patch16``."""
    size = model.rsplit("_", 1)[1]
    return f"hier_vig_{size}" if "_h_" in model else f"vig_{size}_patch16"


@pytest.mark.parametrize("model", MODELS)
def test_names_and_shapes_are_the_public_ones(model: str) -> None:
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in SHAPES[model].items()}
        timm.create_model(timm_name(model)).load_state_dict(state)  # as it is, strictly


def test_cfgs_name_the_published_files() -> None:
    page = (ROOT / "docs" / "weights.md").read_text()
    listed = dict(re.findall(r"\| \[(vig_\w+\.pth)\]\(\S+\) \| `(vig\S+)_8xb128_in1k.py`", page))
    commit = re.search(r"commit\s+`(\w{40})`", page)[1]
    assert len(listed) == 6
    named = {}
    for name in timm.list_pretrained("*vig*"):
        cfg = timm.get_pretrained_cfg(name)
        folder, file = cfg.url.rsplit("/", 1)
        assert folder == f"https://huggingface.co/hustvl/ViG/resolve/{commit}"
        hier, size = re.fullmatch(
            r"(hier_)?vig_([tsb])\w+?(?:_patch16)?\.hustvl_in1k", name
        ).groups()
        named[file] = f"vig-{'h-' if hier else ''}{size}"
        assert (cfg.mean, cfg.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert named == listed


@pytest.fixture(scope="module", params=TINY)
def public(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A file as the authors publish it, and the model that it belongs to."""
    state = {k: x.float() for k, x in public_state(request.param).items()}
    file = tmp_path_factory.mktemp(request.param) / f"{request.param}.pth"
    torch.save({"model": state, "epoch": 3}, file)
    reference = timm.create_model(TINY[request.param]).eval()
    reference.load_state_dict(state)
    return dict(name=TINY[request.param], file=str(file), state=state, reference=reference)


def test_golden_outputs(public: dict) -> None:
    """In float32; the networks are compared in float64 in tests/test_models/test_golden.py."""
    hier, reference = public["name"].startswith("hier"), public["reference"]

    def outputs(image: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        features, stages = reference.forward_intermediates(image, output_fmt="NLC")
        return reference.forward_head(features), stages if hier else []

    check_outputs("vig_h_tiny" if hier else "vig_tiny", reference, outputs, {torch.float32: 3e-5})


def assert_same(model: torch.nn.Module, reference: torch.nn.Module) -> None:
    own, expected = model.state_dict(), reference.state_dict()
    assert own.keys() == expected.keys()
    assert all(torch.equal(own[k], expected[k]) for k in own)


def test_public_files_load_in_every_way_of_timm(public: dict) -> None:
    name, file, reference = public["name"], public["file"], public["reference"]
    overlay = dict(file=file)
    assert_same(timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay), reference)
    assert_same(timm.create_model(name, checkpoint_path=file), reference)  # applies no filter
    model = timm.create_model(name)
    load_checkpoint(model, file)
    assert_same(model, reference)

    adapted = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=5, in_chans=1
    )
    assert adapted.get_classifier().weight.shape[0] == 5
    stem = f"{reference.default_cfg['first_conv']}.weight"
    summed = reference.state_dict()[stem].sum(1, keepdim=True)
    torch.testing.assert_close(adapted.state_dict()[stem], summed)
    for key, x in reference.state_dict().items():
        if key != stem and not key.startswith("head."):
            assert torch.equal(adapted.state_dict()[key], x), key

    features = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=overlay, features_only=True, out_indices=(1,)
    )
    x = torch.randn(1, 3, 64, 64)
    (expected,) = reference.forward_intermediates(x, [1], intermediates_only=True)
    torch.testing.assert_close(features(x)[0], expected)


@pytest.mark.parametrize("public", ["vig_tiny"], indirect=True)
def test_another_image_size_resizes_the_positions(public: dict) -> None:
    overlay = dict(file=public["file"])
    model = timm.create_model(
        public["name"], pretrained=True, pretrained_cfg_overlay=overlay, img_size=(128, 96)
    ).eval()
    assert model.pos_embed.shape == (1, 8 * 6, 192)
    x = torch.randn(1, 3, 128, 96)
    torch.testing.assert_close(model(x), public["reference"](x), rtol=1e-4, atol=1e-4)
    state = dict(public["state"], pos_embed=torch.zeros(1, 15, 192))
    with pytest.raises(ValueError, match="15 positions, not a square grid"):
        model.load_state_dict(state)


def mm_classifier(name: str) -> torch.nn.Module:
    init_default_scope("mmpretrain")
    kind, width = ("HierViG", 768) if name.startswith("hier") else ("ViG", 192)
    return MMPRETRAIN_MODELS.build(
        dict(
            type="ImageClassifier",
            backbone=dict(type=f"vig_mm.{kind}", out_indices=-1),
            neck=dict(type="GlobalAveragePooling"),
            head=dict(type="LinearClsHead", num_classes=1000, in_channels=width),
        )
    )


def test_files_of_openmmlab_load(public: dict, tmp_path: Path) -> None:
    """A whole classifier under `state_dict`, a compiled and distributed one, a detector."""
    name, reference = public["name"], public["reference"]
    state = to_classifier(public["state"])
    classifier = mm_classifier(name)
    classifier.load_state_dict(state)  # strictly: such are its names
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(classifier.eval()(x, mode="tensor")[0], reference(x)[0])

    file = str(tmp_path / "epoch_1.pth")
    torch.save({"state_dict": classifier.state_dict(), "meta": dict(epoch=1)}, file)
    assert_same(timm.create_model(name, checkpoint_path=file), reference)
    wrapped = {f"module._orig_mod.{k}": x for k, x in state.items()}
    torch.save({"state_dict": wrapped}, file)
    assert_same(timm.create_model(name, checkpoint_path=file), reference)

    detector = {k: x for k, x in state.items() if k.startswith("backbone.")}
    detector |= {"neck.lateral_convs.0.conv.weight": torch.zeros(2, 2, 1, 1)}
    torch.save({"state_dict": detector}, file)
    features = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=dict(file=file), features_only=True
    )
    own = features.model.state_dict()
    assert all(torch.equal(x, reference.state_dict()[k]) for k, x in own.items())


@pytest.mark.parametrize("form", ["pth", "bare pth", "safetensors"])
def test_weights_of_timm_go_back_to_openmmlab(public: dict, tmp_path: Path, form: str) -> None:
    reference = public["reference"]
    file, state = tmp_path / f"model.{form.split()[-1]}", reference.state_dict()
    if form == "safetensors":
        save_file(state, file)
    else:
        torch.save(state if form.startswith("bare") else {"state_dict": state}, file)
    assert_same(timm.create_model(public["name"], checkpoint_path=str(file)), reference)
    backbone = (HierViG if public["name"].startswith("hier") else ViG)(out_indices=-1)
    load_pretrained_backbone(backbone, str(file))
    own = backbone.state_dict()
    assert set(own) == {k for k in reference.state_dict() if not k.startswith("head.")}
    assert all(torch.equal(x, reference.state_dict()[k]) for k, x in own.items())
    classifier = mm_classifier(public["name"]).eval()
    loaded = torch.load(prepare_checkpoint(str(file), str(tmp_path)), weights_only=True)
    classifier.load_state_dict(loaded["state_dict"])  # strictly: the head, too
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(classifier(x, mode="tensor")[0], reference.eval()(x)[0])
