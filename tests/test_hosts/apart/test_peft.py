"""Adapters of the library peft on the projections of timm's ViG."""

import copy
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from small_models import SMALL, bright_squares, train

peft = pytest.importorskip("peft")

PARTS = dict(
    hier_vig_tiny=["qkv_proj", "g_proj", "o_proj", "fc1", "fc2"],
    vig_tiny_patch16=["qkv_proj", "g_proj", "o_proj", "mlp.gate_proj", "mlp.down_proj"],
)


@pytest.mark.parametrize("name", SMALL)
def test_lora_trains_merges_and_saves(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = timm.create_model(name, num_classes=2, **SMALL[name])
    cfg = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=PARTS[name], modules_to_save=["head.fc"]
    )
    model = peft.get_peft_model(copy.deepcopy(base), cfg)
    adapted = [k for k, m in model.named_modules() if isinstance(m, peft.tuners.lora.Linear)]
    assert len(adapted) == 5 * 4
    images, masks = bright_squares(8, 32)
    images[::2] -= masks[::2, None]
    labels = torch.arange(8) % 2
    frozen = {k: p.clone() for k, p in model.named_parameters() if not p.requires_grad}
    first, last = train(model, lambda: F.cross_entropy(model(images), labels), 20, 1e-2)
    assert last < 0.5 * first
    assert all(torch.equal(p, frozen[k]) for k, p in model.named_parameters() if k in frozen)
    for k in adapted:  # a path that passes over the adapters would leave them as they began
        assert model.get_submodule(k).lora_B["default"].weight.any(), k

    outputs = []
    for training in (True, False):
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                outputs.append(model.train(training)(images).detach())
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    outputs.append(loaded(images).detach())
    merged = model.merge_and_unload().eval()  # the fast path again, on plain layers
    assert not any(isinstance(m, peft.tuners.lora.Linear) for m in merged.modules())
    expected = merged(images).detach()
    assert (expected - base.eval()(images)).norm() > 0.1 * expected.norm()
    for output in outputs:
        torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tuned_norms_are_used(dtype: torch.dtype) -> None:
    """LNTuning puts wrappers in the place of the norms."""
    torch.manual_seed(0)
    base = timm.create_model("hier_vig_tiny", num_classes=2, **SMALL["hier_vig_tiny"])
    cfg = peft.LNTuningConfig(target_modules=["norm", "norm2", "g_norm", "l_norm"])
    model = peft.get_peft_model(copy.deepcopy(base), cfg)
    images, masks = bright_squares(4, 32)
    labels = torch.arange(4) % 2
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        first, last = train(model, lambda: F.cross_entropy(model(images), labels).float(), 10, 0.05)
        assert last < first
        output = model.eval()(images).float()
        merged = model.merge_and_unload().eval()(images).float()
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    assert (output - merged).norm() <= tolerance * merged.norm()
