"""torchao's int8 on a CPU: its weights are tensors of another class inside ``nn.Linear``."""

import copy

import pytest
import timm
import torch
from small_models import SMALL
from torch import nn

pytest.importorskip("torchao")
from torchao.quantization import (  # noqa: E402
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    quantize_,
)


@pytest.mark.parametrize("config", [Int8WeightOnlyConfig, Int8DynamicActivationInt8WeightConfig])
@pytest.mark.parametrize("name", SMALL)
def test_every_linear_layer_is_quantized(name: str, config: type) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=32, **SMALL[name]).eval()
    x = torch.randn(2, 3, 64, 64)
    expected = model(x).detach()
    other = copy.deepcopy(model)
    quantize_(other, config())
    linear = [m for m in other.modules() if isinstance(m, nn.Linear)]
    assert len(linear) == 7 * 4 + 1
    assert all(type(m.weight).__name__ == "Int8Tensor" for m in linear)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            error = (other(x) - expected).norm() / expected.norm()
        assert 1e-5 < error < 0.05, error
