"""Every backbone in half precision against itself in float32."""

import pytest
import torch

pytest.importorskip("mmcv")

import half_precision as half

SIZE = 64
# tiny and small at their full depth
SHALLOW = {"ViG-B": dict(depth=4), "ViG-H-B": dict(depths=(1, 1, 3, 1))}
SHALLOW |= {"ViG adapter-S": dict(depth=4), "ViG adapter-B": dict(depth=4)}


@pytest.mark.parametrize("name", half.NAMES)
def test_outputs_under_autocast(name, device):
    """Every map, with the weights that training begins with."""
    pytest.importorskip("mmcv.ops" if "adapter" in name else "mmcv")
    model = half.draw(half.build(name, SIZE, **SHALLOW.get(name, {})), "initial")
    x = half.image((SIZE, SIZE + 32))
    expected = half.maps(model, x)
    for short, bound in half.BOUNDS.items():
        found = half.autocast_errors(model, x, half.DTYPES[short], device, expected)
        assert len(found) == (1 if name in ("ViG-T", "ViG-S", "ViG-B") else 4)
        assert 0 < max(found) < bound, (short, found)


@pytest.mark.parametrize("name", ["ViG-T", "ViG-H-T", "ViG adapter-T"])
def test_outputs_of_an_unfavourable_network(name, device):
    """Random layers of unit gain multiply any error, that of rounded weights too.

    Rounding these alone, with everything else in float32, leaves more than 1e-2 of some maps. What
    autocast adds is no more than as much again.
    """
    pytest.importorskip("mmcv.ops" if "adapter" in name else "mmcv")
    model = half.draw(half.build(name, SIZE), "unit gain")
    x = half.image((SIZE, SIZE + 32))
    expected = half.maps(model, x)
    for dtype in half.DTYPES.values():
        inevitable = half.rounding_errors(model, x, dtype, expected)
        found = half.autocast_errors(model, x, dtype, device, expected)
        assert all(y < 2 * z for y, z in zip(found, inevitable, strict=True)), (found, inevitable)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", ["ViG-T", "ViG-H-T", "ViG adapter-T"])
def test_model_cast_as_a_whole(name, dtype, device):
    """Weights and activations in half precision: coarser, but it runs and is finite."""
    model = half.draw(half.build(name, SIZE), "initial")
    x = half.image((SIZE, SIZE + 32))
    expected = half.maps(model, x)
    outs = model.to(device, dtype)(x.to(device, dtype))
    assert all(y.dtype == dtype for y in outs)
    found = [y.detach().cpu().double() for y in outs]
    assert max(half.errors(found, expected)) < 8 * torch.finfo(dtype).eps
