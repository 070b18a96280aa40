"""SimplePyramid: levels, norms, errors, and the segmentors and detectors it serves."""

import pytest
import torch
from mmdet.registry import MODELS as MMDET_MODELS
from mmseg.registry import MODELS as MMSEG_MODELS

import vig_mm


@pytest.mark.parametrize("registry", [MMDET_MODELS, MMSEG_MODELS])
def test_found_by_type_alone(registry):
    neck = registry.build(dict(type="vig_mm.SimplePyramid", in_channels=32))
    assert type(neck) is vig_mm.SimplePyramid


@pytest.mark.parametrize("num_outs", [4, 5, 6])
@pytest.mark.parametrize("size", [(4, 6), (3, 5), (1, 1)], ids=str)
def test_levels(size, num_outs):
    torch.manual_seed(0)
    neck = vig_mm.SimplePyramid(32, 24, num_outs)
    outs = neck([torch.randn(2, 32, *size)])
    assert len(outs) == num_outs
    for level, out in enumerate(outs):
        assert out.shape == (2, 24, *(-(-4 * n // 2**level) for n in size))
        assert out.is_contiguous()  # mmcv's RoIAlign reads memory as NCHW
    for out in outs[:4]:  # normed over channels, cell by cell
        torch.testing.assert_close(out.mean(1), torch.zeros_like(out.mean(1)), atol=1e-5, rtol=0)
        assert (out.var(1, unbiased=False) - 1).abs().max() < 0.02
    for finer, coarser in zip(outs[3:], outs[4:], strict=False):
        assert torch.equal(coarser, finer[:, :, ::2, ::2])


def test_levels_lie_where_the_map_does():
    """A cell reaches only the cells of a level that lie around its own place."""
    torch.manual_seed(0)
    neck = vig_mm.SimplePyramid(16, 8, num_outs=4)
    x = torch.randn(1, 16, 8, 8)
    changed = x.clone()
    changed[:, :, 4, 3] += 1
    for out, other, scale in zip(neck([x]), neck([changed]), (4, 2, 1, 0.5), strict=True):
        moved = (out - other).abs().amax(1)[0].nonzero().float()
        centre = moved.mean(0)
        expected = torch.tensor([4.5 * scale - 0.5, 3.5 * scale - 0.5])
        assert (centre - expected).abs().max() <= 0.5
        assert len(moved) == {4: 36, 2: 16, 1: 9, 0.5: 9}[scale]


def test_every_parameter_learns():
    neck = vig_mm.SimplePyramid(32, 24)
    sum((out * torch.randn_like(out)).sum() for out in neck([torch.randn(2, 32, 4, 4)])).backward()
    assert [n for n, p in neck.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_errors():
    with pytest.raises(ValueError, match="num_outs=3 must be at least 4"):
        vig_mm.SimplePyramid(32, num_outs=3)
    with pytest.raises(ValueError, match="in_channels=30 must be a multiple of 4"):
        vig_mm.SimplePyramid(30)
    neck = vig_mm.SimplePyramid(32)
    with pytest.raises(ValueError, match=r"in_channels=32.*\(1, 48, 4, 4\): set in_channels"):
        neck([torch.randn(1, 48, 4, 4)])
    with pytest.raises(ValueError, match="takes one map, got 2.*out_indices=-1"):
        neck([torch.randn(1, 32, 4, 4)] * 2)
