"""torch's own dynamic int8 on a CPU."""

import copy
import warnings

import pytest
import timm
import torch
from small_models import SMALL
from torch import nn
from torch.ao.nn.quantized.dynamic import Linear as QuantizedLinear

from vig_mm.models import HierViG, ViG


def quantized(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear})


@pytest.mark.parametrize("name", SMALL)
def test_every_linear_layer_is_quantized(name: str) -> None:
    """The exact type is matched: a subclass of nn.Linear would be passed over in silence."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 64, 64)
    backbone = (HierViG if name.startswith("hier") else ViG)(**SMALL[name])
    for model in (timm.create_model(name, **SMALL[name]), backbone):
        model.eval()
        linear = [k for k, m in model.named_modules() if isinstance(m, nn.Linear)]
        other = quantized(model)
        done = [k for k, m in other.named_modules() if isinstance(m, QuantizedLinear)]
        assert done == linear and len(linear) >= 7 * 4
        expected = model(x)
        output = other(x)
        if isinstance(expected, tuple):
            expected, output = expected[-1], output[-1]
        error = (output - expected).norm() / expected.norm()
        assert 1e-5 < error < 0.05, error
