"""What timm asks of a model, asked of ours."""

import numpy as np
import pytest
import timm
import torch
from small_models import SMALL
from timm.data import Mixup, resolve_data_config
from timm.loss import SoftTargetCrossEntropy
from timm.models import group_parameters, is_model_pretrained
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3

import vig_mm.timm  # noqa: F401
from vig_mm.models import HierViG, ViG

WIDTHS = dict(hier_vig_tiny=[16, 32, 64, 128], vig_tiny_patch16=[32] * 4)
REDUCTIONS = dict(hier_vig_tiny=[4, 8, 16, 32], vig_tiny_patch16=[16] * 4)
SIZES = dict(hier_vig_tiny=(70, 90), vig_tiny_patch16=(70, 94))
"""Odd ones; their grids are the rounded quotients by each stride."""

every_model = pytest.mark.parametrize("name", SMALL)


def create(name: str, **kwargs) -> torch.nn.Module:
    return timm.create_model(name, **SMALL[name], **kwargs)


def image(name: str, batch: int = 2, channels: int = 3) -> torch.Tensor:
    return torch.randn(batch, channels, *SIZES[name], generator=torch.Generator().manual_seed(0))


def test_all_six_are_registered() -> None:
    here = {f"hier_vig_{size}" for size in ("tiny", "small", "base")}
    here |= {f"vig_{size}_patch16" for size in ("tiny", "small", "base")}
    assert set(timm.list_models(module="timm")) == here
    assert {name.partition(".")[0] for name in timm.list_pretrained("*vig*")} == here
    for name in here:
        assert is_model_pretrained(name)


@every_model
def test_forward_backward_and_checkpointing(name: str) -> None:
    model = create(name, num_classes=7, in_chans=4, drop_rate=0.1).eval()
    x = image(name, channels=4)
    expected = model(x)
    assert expected.shape == (2, 7)
    assert expected.isfinite().all() and expected.std() > 0
    model.set_grad_checkpointing()
    assert model.with_cp
    torch.testing.assert_close(model(x), expected)
    model.set_grad_checkpointing(False)
    assert not model.with_cp
    model.train()(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


@every_model
def test_rates_are_zero_unless_asked_for(name: str) -> None:
    def rates(model: torch.nn.Module) -> list[float]:
        return [m.rate for m in model.modules() if type(m).__name__ == "DropPath"]

    assert set(rates(create(name))) == {0}
    asked = rates(create(name, drop_path_rate=0.3))
    assert (asked[0], asked[-1]) == (0, pytest.approx(0.3))


@every_model
def test_default_cfg(name: str) -> None:
    model = create(name).eval()
    cfg = model.default_cfg
    state = model.state_dict()
    assert {f"{cfg['first_conv']}.weight", f"{cfg['classifier']}.weight"} <= state.keys()
    assert model.get_classifier() is model.get_submodule(cfg["classifier"])
    assert model.num_classes == cfg["num_classes"] == 1000
    assert resolve_data_config(model=model)["crop_pct"] == 0.875
    x = torch.randn(1, *cfg["input_size"])
    features = model.forward_features(x)
    assert features.shape == (1, model.num_features, *cfg["pool_size"])
    assert torch.equal(model.forward_head(features), model(x))
    assert model.forward_head(features, pre_logits=True).shape == (1, model.head_hidden_size)

    model.reset_classifier(0)
    assert model(x).shape == (1, model.num_features)
    model.reset_classifier(0, "")
    assert torch.equal(model(x), features)
    model.reset_classifier(5, "avg")
    assert model(x).shape == (1, 5)
    model = create(name, num_classes=0, global_pool="")
    assert isinstance(model.get_classifier(), torch.nn.Identity)
    assert model(x).shape == features.shape


@every_model
@pytest.mark.parametrize("indices", [(0,), (1, 2), (-1,), (0, -1)])
def test_features(name: str, indices: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    whole = create(name).eval()
    model = create(name, features_only=True, out_indices=indices).eval()
    model.model.load_state_dict(whole.state_dict(), strict=False)
    x = image(name)
    outputs = model(x)
    take = [range(len(WIDTHS[name]))[i] for i in indices]
    assert model.feature_info.channels() == [WIDTHS[name][i] for i in take]
    assert model.feature_info.reduction() == [REDUCTIONS[name][i] for i in take]
    expected = whole.forward_intermediates(x, take, intermediates_only=True)
    for i, y, z in zip(take, outputs, expected, strict=True):
        grid = [round(side / REDUCTIONS[name][i] + 0.01) for side in x.shape[2:]]
        if name == "hier_vig_tiny":  # its convolutions round up at every stage
            grid = [-(-side // REDUCTIONS[name][i]) for side in x.shape[2:]]
        assert y.shape == (2, WIDTHS[name][i], *grid) and y.is_contiguous()
        torch.testing.assert_close(y, z)
    # nothing is kept that these features do not need
    sum(y.square().mean() for y in outputs).backward()
    assert all(p.grad is not None for p in model.parameters())


@every_model
def test_hooks_see_the_features(name: str) -> None:
    """`feature_info` names the modules; those with a forward of their own give the same tokens."""
    model = create(name).eval()
    seen = []
    for info in model.feature_info:
        module = model.get_submodule(info["module"])
        last = module.blocks[-1] if hasattr(module, "blocks") else module
        last.register_forward_hook(lambda module, args, out: seen.append(out))
    x = image(name, batch=1)
    features = model.forward_intermediates(x, output_fmt="NLC", intermediates_only=True)
    assert len(seen) == len(features) == len(WIDTHS[name])
    for tokens, feature in zip(seen, features, strict=True):
        torch.testing.assert_close(tokens, feature)


@every_model
def test_intermediates(name: str) -> None:
    model = create(name).eval()
    x = image(name)
    final = model.forward_features(x)
    output, maps = model.forward_intermediates(x)
    assert torch.equal(output, final) and len(maps) == len(WIDTHS[name])
    for form, back in (
        ("NHWC", lambda y, like: y.permute(0, 3, 1, 2)),
        ("NLC", lambda y, like: y.mT.unflatten(2, like.shape[2:])),
    ):
        others = model.forward_intermediates(x, output_fmt=form, intermediates_only=True)
        assert all(torch.equal(back(y, z), z) for y, z in zip(others, maps, strict=True))
    _, (normed,) = model.forward_intermediates(x, indices=1, norm=True)
    assert torch.equal(normed, final)
    with pytest.raises(ValueError, match="'NCWH' is none of"):
        model.forward_intermediates(x, output_fmt="NCWH")

    calls = []
    model.get_submodule(model.feature_info[2]["module"]).register_forward_hook(
        lambda *_: calls.append(1)
    )
    early, (last,) = model.forward_intermediates(x, indices=[1], stop_early=True)
    assert not calls and torch.equal(last, maps[1])
    assert early.shape == last.shape


@every_model
def test_unfit_arguments_are_named(name: str) -> None:
    with pytest.raises(ValueError, match="feature_cls='fx'.*'getter'"):
        create(name, features_only=True, feature_cls="fx")
    with pytest.raises(NotImplementedError, match="torch.jit.script cannot compile.*export"):
        torch.jit.script(create(name))
    with pytest.raises(ValueError, match="in_channels=4"):
        create(name)(image(name, channels=4))


def test_a_fixed_image_size_is_kept() -> None:
    model = create("vig_tiny_patch16", img_size=(64, 96), dynamic_img_size=False).eval()
    assert model.pos_embed.shape == (1, 4 * 6, 32)
    assert model(torch.randn(1, 3, 64, 96)).shape == (1, 1000)
    with pytest.raises(ValueError, match="gives 4x4 tokens instead of 4x6: dynamic_img_size"):
        model(torch.randn(1, 3, 64, 64))


@every_model
def test_layer_decay_is_that_of_the_backbones(name: str) -> None:
    """Blocks and what stands between them; timm counts the last norm with the last block."""
    model = create(name)
    backbone = (HierViG if name.startswith("hier") else ViG)(**SMALL[name], out_indices=-1)
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    for parameter, depth in groups.items():
        if parameter.startswith(("norm", "head")):
            continue
        assert depth == backbone.get_layer_depth(parameter)[0], parameter
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert len(set(coarse.values())) <= len(set(groups.values()))

    rows = param_groups_layer_decay(
        model, 0.05, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.5
    )
    decayed = {
        n: row["weight_decay"] > 0
        for n, p in model.named_parameters()
        for row in rows
        if any(p is q for q in row["params"])
    }
    assert len(decayed) == len(list(model.parameters()))
    assert not decayed.get("pos_embed") and decayed["head.fc.weight"]


@every_model
def test_device_and_dtype(name: str) -> None:
    with torch.device("meta"):
        assert all(p.is_meta for p in create(name).parameters())
    model = create(name, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}


@every_model
def test_traced_compiled_and_exported(name: str) -> None:
    model = create(name, num_classes=5).eval()
    x = image(name, batch=1)
    with torch.no_grad():
        expected = model(x)
        traced = torch.jit.trace(model, x, check_trace=False)
        torch.testing.assert_close(traced(x), expected, rtol=1e-4, atol=1e-5)
        compiled = torch.compile(model, backend="eager")
        torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-5)
        exported = torch.export.export(model, (x,)).module()
        torch.testing.assert_close(exported(x), expected, rtol=1e-4, atol=1e-5)


def test_images_train_as_timms_script_does() -> None:
    """Model, optimizer with layer decay, schedule, mixup, EMA: as in timm's ``train.py``."""
    torch.manual_seed(0)
    np.random.seed(0)  # mixup's
    model = create("hier_vig_tiny", num_classes=4, drop_path_rate=0.05)
    optimizer = create_optimizer_v2(model, "adamw", lr=5e-3, layer_decay=0.9)
    schedule, epochs = create_scheduler_v2(optimizer, num_epochs=30, warmup_epochs=2)
    mixup = Mixup(mixup_alpha=0.1, label_smoothing=0.0, num_classes=4)
    loss_function = SoftTargetCrossEntropy()
    ema = ModelEmaV3(model, decay=0.5)
    labels = torch.arange(4).repeat(2)
    stripes = [(torch.arange(32) // width % 2).float() for width in (2, 8)]
    patterns = [s.expand(3, 32, 32) for s in stripes]
    patterns += [s.mT for s in patterns]
    images = torch.stack(patterns)[labels] + 0.1 * torch.randn(8, 3, 32, 32)
    losses = []
    for epoch in range(epochs):
        mixed, targets = mixup(images.clone(), labels)  # it works in place
        loss = loss_function(model(mixed), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step(epoch + 1)
        ema.update(model)
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert (ema.module.eval()(images).argmax(1) == labels).all()
