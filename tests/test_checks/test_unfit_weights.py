"""`check_weights`: a checkpoint whose names and shapes fit, and whose numbers do not."""

from pathlib import Path

import pytest
import torch
from mmengine.runner.checkpoint import load_state_dict
from torch import nn

from vig_mm import HierViG, ViG
from vig_mm.checkpoints.conversion import prepare_checkpoint
from vig_mm.checkpoints.reading import CheckpointError, read_checkpoint
from vig_mm.checks.weights import check_initial_weights, check_weights


@pytest.fixture
def model():
    """A norm, whose counter is an integer, and tied weights, of which torch lists one name."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    model[2].weight = model[0].weight
    return model


@pytest.fixture
def saved(tmp_path):
    """`saved(state)`: the path of a checkpoint x.pth that holds a state dict."""

    def save(state, key="state_dict"):
        torch.save({key: state}, tmp_path / "x.pth")
        return str(tmp_path / "x.pth")

    return save


def refused(words, model, path, **how):
    with pytest.raises(CheckpointError, match=words):
        check_weights(model, path, **how)


@pytest.mark.parametrize("partly", [False, True], ids=["test or resume", "fine-tune"])
@pytest.mark.parametrize("name", ["0.weight", "1.bias", "2.weight"])
@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda x: x / 0, "NaN or infinity: {}"),
        (lambda x: x.to(torch.int8), r"{} \(torch.int8\)"),
        (lambda x: x.to("meta"), r"{} \(meta, no values\)"),
    ],
    ids=["nan", "int8", "meta"],
)
def test_refused(change, reason, name, partly, model, saved):
    state = dict(model.state_dict())
    path = saved({**state, name: change(state[name])})
    refused(f"x.pth' cannot be used: .*{reason.format(name)}", model, path, partly=partly)


def test_taken(model, saved):
    """Half precision, infinities in a buffer; when fine-tuning, broken weights of no use."""
    state = dict(model.half().state_dict())
    state["1.running_var"] = state["1.running_var"] / 0
    check_weights(model.float(), saved(state))
    state["0.bias"] = torch.full((7,), float("nan"))
    check_weights(model, saved(state), partly=True)


def test_message_names_the_file(model, saved):
    refused("x.pth': no weights .*'net'", model, saved(model.state_dict(), "net"))


def vit(size):
    return pytest.importorskip("mmpretrain.models").VisionTransformer("deit-t", size)


def plain_vig(size):
    return ViG("tiny", img_size=size, embed_dims=16, depth=1, num_heads=2)


@pytest.mark.parametrize("build", [vit, plain_vig])
@pytest.mark.parametrize("partly", [False, True], ids=["test", "fine-tune"])
def test_what_the_modules_resize_fits(build, partly, saved):
    torch.manual_seed(0)
    path, model = saved(build(224).state_dict()), build(448)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    check_weights(model, path, partly)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    load_state_dict(model, torch.load(path)["state_dict"], strict=True)
    refused("of another shape", model, path, resume=True)  # the optimizer's state is not resized


def test_stem_for_other_images(saved):
    """Adapted where training starts from `load_from`; to test it as it is would be a mistake."""
    torch.manual_seed(0)
    settings = dict(embed_dims=16, depths=(1, 1), num_heads=(1, 1), out_indices=(1,))
    rgb = HierViG(**settings)
    four = nn.ModuleDict(dict(backbone=HierViG(in_channels=4, **settings)))
    state = {f"backbone.{k}": x for k, x in rgb.state_dict().items()}
    path = saved(state)
    check_weights(four, path, partly=True)
    load_state_dict(four, state, strict=True)
    name = "patch_embed.0.weight"
    expected = rgb.state_dict()[name][:, [0, 1, 2, 0]] * 0.75
    torch.testing.assert_close(four.backbone.state_dict()[name], expected)
    for resume in (False, True):
        refused("patch_embed.0.weight .* instead of", four, path, resume=resume)


def test_hook_that_fails(model, saved):
    """As mmpretrain's Swin does on window sizes, for want of a function that SciPy gave up."""

    def hook(*_):
        raise NotImplementedError("interp2d has been removed")

    model[0].register_load_state_dict_pre_hook(hook)
    path = saved({"0.weight": torch.ones(3, 3)})
    refused("x.pth' cannot be loaded .*interp2d has been", model, path)


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.head = nn.Linear(3, 3), nn.Linear(3, 2)


def test_parts_of_which_nothing_is_loaded_are_named(saved):
    model = Parts()
    state = {k.replace("backbone", "body"): x for k, x in model.state_dict().items()}
    (line,) = check_weights(model, saved(state), partly=True)
    assert "none of the 2 weights of backbone is in" in line and "body.weight" in line
    assert check_weights(model, saved(model.state_dict()), partly=True) == []


def test_safetensors(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    model, path = Parts(), tmp_path / "a.safetensors"
    save_file(model.state_dict(), str(path))
    assert read_checkpoint(path).keys() == model.state_dict().keys()
    copied = prepare_checkpoint(str(path), str(tmp_path / "work"))
    assert torch.load(copied)["state_dict"].keys() == model.state_dict().keys()
    given = dict(init_cfg=dict(type="Pretrained", checkpoint=str(path)))
    own = type("OwnViG", (HierViG,), {})
    for kind in ("vig_mm.HierViG", HierViG, own):
        check_initial_weights(dict(backbone=dict(type=kind, **given)))
    with pytest.raises(CheckpointError, match="safetensors file, which mmengine does not read"):
        check_initial_weights(dict(backbone=dict(type="ResNet", **given)))
    renamed = path.rename(Path(tmp_path, "b.pth"))  # the bytes tell
    assert len(read_checkpoint(renamed)) == 4
    renamed.write_bytes(renamed.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        read_checkpoint(renamed)
