"""fp16 training steps whose gradients overflow: skipped, and training goes on."""

import copy

import pytest
import torch
from torch import nn

pytest.importorskip("mmcv")

from vig_mm import HierViG

SCALE = 2.0**10
TOO_LARGE = 2.0**40  # gradients of this loss leave the range of float16


def small_model(device: str) -> nn.Module:
    torch.manual_seed(0)
    model = HierViG(embed_dims=16, depths=(1, 1), num_heads=(1, 2), out_indices=1)
    model.init_weights()
    return model.to(device)


def loss_of(model: nn.Module, device: str) -> torch.Tensor:
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(device)
    return model(x)[0].float().square().mean()


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [x.detach().clone() for x in model.parameters()]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_torch_scaler(device):
    """With torch's scaler, which is there on a CPU as well."""
    model = small_model(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler(device, init_scale=SCALE)

    def step() -> bool:
        """Whether all gradients were finite."""
        optimizer.zero_grad()
        with torch.autocast(device, dtype=torch.float16):
            loss = loss_of(model, device)
        scaler.scale(loss).backward()
        finite = all(p.grad.isfinite().all() for p in model.parameters())
        scaler.step(optimizer)
        scaler.update()
        return finite

    before = weights(model)
    assert step() and not same(weights(model), before)
    assert scaler.get_scale() == SCALE
    scaler.update(TOO_LARGE)
    before, moments = weights(model), copy.deepcopy(optimizer.state_dict()["state"])
    assert not step()
    assert same(weights(model), before) and scaler.get_scale() == TOO_LARGE / 2
    for index, state in optimizer.state_dict()["state"].items():
        assert all(torch.equal(x, moments[index][key]) for key, x in state.items())

    skipped = 1
    while not step():  # it finds its way back by itself
        skipped += 1
        assert skipped < 40
    assert not same(weights(model), before) and all(x.isfinite().all() for x in weights(model))
    assert scaler.get_scale() == TOO_LARGE / 2**skipped

    again = torch.amp.GradScaler(device)
    again.load_state_dict(copy.deepcopy(scaler.state_dict()))
    assert again.state_dict() == scaler.state_dict()
    assert again.get_scale() == scaler.get_scale()


@pytest.mark.gpu
def test_optimizer_wrapper_of_fp16_configs(tmp_path):
    """mmengine's AmpOptimWrapper, which needs a GPU, with its state through a file."""
    from mmengine.optim import AmpOptimWrapper

    model = small_model("cuda")

    def wrapper(scale: float) -> AmpOptimWrapper:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        options = dict(clip_grad=dict(max_norm=5.0), dtype="float16")
        return AmpOptimWrapper(optimizer=optimizer, loss_scale=dict(init_scale=scale), **options)

    def step(wrapped: AmpOptimWrapper) -> None:
        with wrapped.optim_context(model):
            loss = loss_of(model, "cuda")
        wrapped.update_params(loss)

    wrapped = wrapper(TOO_LARGE)
    before = weights(model)
    step(wrapped)
    assert same(weights(model), before)
    assert wrapped.loss_scaler.get_scale() == TOO_LARGE / 2
    for _ in range(40):
        step(wrapped)
    assert not same(weights(model), before) and all(x.isfinite().all() for x in weights(model))

    torch.save(wrapped.state_dict(), tmp_path / "optimizer.pth")
    resumed = wrapper(SCALE)
    resumed.load_state_dict(torch.load(tmp_path / "optimizer.pth", weights_only=True))
    assert resumed.loss_scaler.state_dict() == wrapped.loss_scaler.state_dict()
