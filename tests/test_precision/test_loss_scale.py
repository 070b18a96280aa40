"""fp16 training steps whose gradients overflow: skipped, and training goes on."""

import copy

import pytest
import torch

pytest.importorskip("mmcv")

from vig_mm import HierViG

SCALE = 2.0**10
TOO_LARGE = 2.0**40  # gradients of this loss leave the range of float16


def test_torch_scaler(device):
    """With torch's scaler, which is there on a CPU, and inside mmengine's AmpOptimWrapper."""
    torch.manual_seed(0)
    model = HierViG(embed_dims=16, depths=(1, 1), num_heads=(1, 2), out_indices=1)
    model.init_weights()
    model.to(device)
    x = torch.randn(2, 3, 32, 32).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler(device, init_scale=SCALE)

    def step() -> bool:
        """Whether all gradients were finite."""
        optimizer.zero_grad()
        with torch.autocast(device, dtype=torch.float16):
            loss = model(x)[0].float().square().mean()
        scaler.scale(loss).backward()
        finite = all(p.grad.isfinite().all() for p in model.parameters())
        scaler.step(optimizer)
        scaler.update()
        return finite

    def state() -> list[torch.Tensor]:
        """Weights and moments."""
        moments = optimizer.state_dict()["state"].values()
        return copy.deepcopy([*model.parameters(), *(x for m in moments for x in m.values())])

    def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
        return all(torch.equal(x, y) for x, y in zip(first, second, strict=True))

    assert step()
    before = state()
    assert step() and not same(state(), before) and scaler.get_scale() == SCALE
    scaler.update(TOO_LARGE)
    before = state()
    assert not step()
    assert same(state(), before) and scaler.get_scale() == TOO_LARGE / 2

    skipped = 1
    while not step():  # it finds its way back by itself
        skipped += 1
        assert skipped < 40
    assert not same(state(), before) and all(x.isfinite().all() for x in state())
    assert scaler.get_scale() == TOO_LARGE / 2**skipped

    again = torch.amp.GradScaler(device)
    again.load_state_dict(copy.deepcopy(scaler.state_dict()))
    assert again.state_dict() == scaler.state_dict()
