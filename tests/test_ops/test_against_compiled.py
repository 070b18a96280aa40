"""Every function that mmcv's compiled module has for a device, against vig_mm's, through mmcv.ops.

Skipped where mmcv has no compiled operators; on a GPU they need an mmcv compiled for CUDA.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from vig_mm.ops import provider

pytest.importorskip("mmcv")
if provider() != "compiled":
    pytest.skip("mmcv has no compiled operators to compare with", allow_module_level=True)

import mmcv.ops
from mmcv.ops import get_compiling_cuda_version

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = [torch.float32, torch.float64]
# Sums are taken in another order: relative to the largest value of a result.
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-14}


@pytest.fixture(autouse=True)
def compiled_for(request: pytest.FixtureRequest) -> None:
    if "gpu" in request.keywords and get_compiling_cuda_version() == "not available":
        pytest.skip("mmcv is not compiled for CUDA")


@pytest.fixture
def both(serve: Callable[[], None]) -> Callable[[Callable], tuple]:
    """What a function returns with mmcv's own operators, and with vig_mm's."""

    def run(function: Callable) -> tuple:
        own = function()
        serve()
        return own, function()

    return run


def random_boxes(number: int, seed: int, size: float = 100.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(number, 2, generator=generator) * size
    sides = torch.rand(number, 2, generator=generator) * size / 3
    return torch.cat((centres - sides / 2, centres + sides / 2), dim=1)


def box_cases() -> dict[str, tuple[Tensor, Tensor]]:
    """Boxes and scores: random ones, and those where rounding and order decide."""
    cases = {}
    for number in (2, 7, 100, 1500):
        generator = torch.Generator().manual_seed(number)
        cases[f"random_{number}"] = (
            random_boxes(number, number),
            torch.rand(number, generator=generator),
        )
    boxes = random_boxes(400, 1)
    cases["empty"] = torch.zeros(0, 4), torch.zeros(0)
    cases["one"] = boxes[:1], torch.tensor([0.3])
    cases["equal_scores"] = boxes, torch.full((400,), 0.5)
    cases["few_scores"] = boxes, (torch.arange(400) % 5) / 5
    cases["equal_boxes"] = boxes[:1].expand(50, 4).clone(), torch.linspace(1, 0, 50)
    cases["repeated_boxes"] = (
        boxes[:60].repeat(4, 1),
        torch.rand(240, generator=torch.Generator().manual_seed(3)),
    )
    # integer corners: many overlaps are exactly the threshold
    corners = torch.randint(0, 6, (300, 2), generator=torch.Generator().manual_seed(4)).float()
    sides = torch.randint(1, 6, (300, 2), generator=torch.Generator().manual_seed(5)).float()
    cases["integer"] = torch.cat((corners, corners + sides), 1), (torch.arange(300) % 7) / 7
    cases["no_area"] = torch.cat((corners, corners), 1), (torch.arange(300) % 7) / 7
    cases["inverted"] = torch.cat((corners + sides, corners), 1), (torch.arange(300) % 7) / 7
    cases["far"] = boxes + 3e4, (torch.arange(400) % 11) / 11
    return cases


BOX_CASES = box_cases()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", BOX_CASES)
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.6, 0.7, 1.0])
@pytest.mark.parametrize("offset", [0, 1])
def test_nms_keeps_the_same_in_the_same_order(both, case, threshold, offset, device):
    boxes, scores = (x.to(device) for x in BOX_CASES[case])
    own, ours = both(lambda: mmcv.ops.nms(boxes, scores, threshold, offset))
    assert torch.equal(own[1], ours[1])
    assert torch.equal(own[0], ours[0])


@pytest.mark.parametrize("device", DEVICES)
def test_nms_limits_come_from_mmcv(both, device):
    boxes, scores = (x.to(device) for x in BOX_CASES["random_1500"])
    own, ours = both(lambda: mmcv.ops.nms(boxes, scores, 0.6, score_threshold=0.4, max_num=20))
    assert len(own[1]) == 20
    assert torch.equal(own[1], ours[1])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["nms", "soft_nms"])
@pytest.mark.parametrize("split", [10000, 100])
def test_batched_nms(both, kind, split, device):
    boxes, scores = (x.to(device) for x in BOX_CASES["random_1500"])
    classes = torch.arange(1500, device=device) % 9
    cfg = dict(type=kind, iou_threshold=0.5, split_thr=split)
    own, ours = both(lambda: mmcv.ops.batched_nms(boxes, scores, classes, cfg))
    assert torch.equal(own[1], ours[1])
    close(own[0], ours[0])


@pytest.mark.parametrize("case", BOX_CASES)
@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.6])
@pytest.mark.parametrize("offset", [0, 1])
def test_soft_nms(both, case, method, threshold, offset):
    boxes, scores = BOX_CASES[case]
    own, ours = both(
        lambda: mmcv.ops.soft_nms(
            boxes, scores, threshold, min_score=0.05, method=method, offset=offset
        )
    )
    assert torch.equal(own[1], ours[1])
    close(own[0], ours[0])


@pytest.mark.parametrize("sigma", [0.1, 2.0])
@pytest.mark.parametrize("min_score", [0.0, 1e-3, 0.5])
def test_soft_nms_settings(both, sigma, min_score):
    boxes, scores = BOX_CASES["random_100"]
    own, ours = both(
        lambda: mmcv.ops.soft_nms(
            boxes.numpy(), scores.numpy(), sigma=sigma, min_score=min_score, method="gaussian"
        )
    )
    np.testing.assert_array_equal(own[1], ours[1])
    np.testing.assert_allclose(own[0], ours[0], rtol=1e-6)


@pytest.mark.parametrize("case", BOX_CASES)
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.6, 1.0])
def test_nms_match(both, case, threshold):
    boxes, scores = BOX_CASES[case]
    dets = torch.cat((boxes, scores[:, None]), dim=1)
    own, ours = both(lambda: mmcv.ops.nms_match(dets, threshold))
    assert [group.tolist() for group in own] == [group.tolist() for group in ours]


def close(own: Tensor, ours: Tensor) -> None:
    assert own.shape == ours.shape and own.dtype == ours.dtype
    scale = own.nan_to_num().abs().max().item() if own.numel() else 0
    torch.testing.assert_close(ours, own, rtol=0, atol=TOLERANCE[own.dtype] * scale, equal_nan=True)


def gradients(function: Callable, inputs: Sequence[Tensor]) -> list[Tensor]:
    """A function's result, and what backward gives for a fixed random gradient of it."""
    inputs = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs]
    output = function(*inputs)
    generator = torch.Generator().manual_seed(0)
    grad = torch.randn(output.shape, generator=generator, dtype=output.dtype)
    output.backward(grad.to(output.device))
    return [output.detach(), *(x.grad for x in inputs if x.grad is not None)]


def roi_cases() -> dict[str, Tensor]:
    """RoIs ``[R, 5]`` on two images of 80 x 60 pixels."""
    boxes = random_boxes(40, 2, 60)
    images = (torch.arange(40) % 2)[:, None].float()
    inside = torch.cat((images, boxes.clamp(0, 60)), 1)
    one = torch.tensor([[1.0, 10.25, 5.5, 30.75, 40.5]])
    return {
        "random": torch.cat((images, boxes), 1),
        "inside": inside,
        "none": torch.zeros(0, 5),
        "one": one,
        "all_image": torch.tensor([[0.0, 0, 0, 80, 60], [1, 0, 0, 80, 60]]),
        "outside": torch.tensor([[0.0, 200, 200, 250, 260], [1, -90, -70, -60, -50]]),
        "half_outside": torch.tensor([[0.0, 70, 50, 120, 90], [1, -20, -30, 10, 20]]),
        "no_size": torch.tensor([[0.0, 10, 10, 10, 10], [1, 0, 0, 0, 0], [0, 5, 5, 5, 25]]),
        "tiny": torch.tensor([[0.0, 10, 10, 10.01, 10.02], [1, 79.9, 59.9, 80, 60]]),
        "whole_cells": torch.tensor([[0.0, 8, 16, 40, 48], [1, 16, 8, 24, 24]]),
    }


ROI_CASES = roi_cases()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ROI_CASES)
@pytest.mark.parametrize("sampling_ratio", [0, 2, 3])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("scale", [1 / 4, 1 / 7])
def test_roi_align(both, case, sampling_ratio, aligned, scale, dtype, device):
    if dtype == torch.float64 and scale == 1 / 7:
        scale = 0.1428  # no bin of whole cells, whose samples mmcv counts in float32
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 3, 15, 20, generator=generator, dtype=dtype).to(device)
    rois = ROI_CASES[case].to(device, dtype)
    layer = mmcv.ops.RoIAlign((5, 7), scale, sampling_ratio, aligned=aligned)
    own, ours = both(lambda: gradients(lambda x: layer(x, rois), [maps]))
    for a, b in zip(own, ours, strict=True):
        close(a, b)


# (kernel, stride, padding, dilation, groups, deformable groups, batch, channels)
CONVOLUTIONS = [
    (3, 1, 1, 1, 1, 1, 2, 4),
    (3, 2, 1, 1, 1, 1, 1, 4),
    ((3, 5), (2, 3), (1, 0), (1, 2), 1, 1, 2, 4),
    (3, 1, 2, 2, 2, 1, 2, 4),
    (3, 1, 1, 1, 1, 4, 2, 4),
    (3, 3, 2, 1, 4, 2, 3, 8),
    (1, 1, 0, 1, 1, 1, 1, 2),
]
OFFSETS = ["random", "zero", "whole", "half", "far", "border"]


def deformable_inputs(setting: tuple, kind: str, dtype: torch.dtype, device: str) -> list[Tensor]:
    """Input ``[B, C, 9, 11]``, offsets, mask and weight."""
    kernel, stride, padding, dilation, groups, deform_groups, batch, channels = setting
    kernel, stride, padding, dilation = (
        x if isinstance(x, tuple) else (x, x) for x in (kernel, stride, padding, dilation)
    )
    sizes = [
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, p, d in zip((9, 11), kernel, stride, padding, dilation, strict=True)
    ]
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype).to(device)

    points = deform_groups * kernel[0] * kernel[1]
    offset = randn(batch, 2 * points, *sizes) * 2
    offset = {
        "random": offset,
        "zero": offset * 0,
        "whole": offset.round(),
        "half": (offset * 2).round() / 2,
        "far": offset * 50,
        "border": offset.sign(),
    }[kind]
    mask = randn(batch, points, *sizes).sigmoid()
    weight = randn(2 * channels, channels // groups, *kernel)
    return [randn(batch, channels, 9, 11), offset, mask, weight]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", OFFSETS)
@pytest.mark.parametrize("setting", CONVOLUTIONS)
def test_deform_conv(both, setting, kind, dtype, device):
    x, offset, _, weight = deformable_inputs(setting, kind, dtype, device)
    options = setting[1:6]
    own, ours = both(
        lambda: gradients(
            lambda *tensors: mmcv.ops.deform_conv2d(*tensors, *options), [x, offset, weight]
        )
    )
    for a, b in zip(own, ours, strict=True):
        close(a, b)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_offsets_that_are_no_numbers_read_nothing(both, serve, value, device):
    """Of a training that diverges; on the CPU mmcv's own backward pass then ends the process."""
    x, offset, mask, weight = deformable_inputs(CONVOLUTIONS[4], "random", torch.float32, device)
    offset[:, ::3] = value
    options = CONVOLUTIONS[4][1:6]
    own, ours = both(
        lambda: (
            mmcv.ops.deform_conv2d(x, offset, weight, *options),
            mmcv.ops.modulated_deform_conv2d(x, offset, mask, weight, None, *options),
        )
    )
    for a, b in zip(own, ours, strict=True):
        close(a, b)
    for result in gradients(
        lambda *tensors: mmcv.ops.deform_conv2d(*tensors, *options), [x, offset, weight]
    ):
        assert result.isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (0, 2), (1, 2)])
def test_deform_conv_gives_the_gradients_that_are_asked_for(both, needed, device):
    """One convolution, two backward passes, each of another gradient: no value is taken over."""
    inputs = deformable_inputs(CONVOLUTIONS[0], "random", torch.float32, device)
    inputs = [inputs[0], inputs[1], inputs[3]]

    def two_passes() -> list[Tensor]:
        leaves = [x.clone().requires_grad_() for x in inputs]
        y = mmcv.ops.deform_conv2d(*leaves, 1, 1)
        wanted = [leaves[i] for i in needed]
        first = torch.autograd.grad(y.sum(), leaves, retain_graph=True)
        some = torch.autograd.grad((2 * y).sum(), leaves[:2], retain_graph=True)
        return [*first, *some, *torch.autograd.grad(y.square().sum(), wanted)]

    own, ours = both(two_passes)
    for a, b in zip(own, ours, strict=True):
        close(a, b)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", OFFSETS)
@pytest.mark.parametrize("setting", CONVOLUTIONS)
@pytest.mark.parametrize("with_bias", [True, False])
def test_modulated_deform_conv(both, setting, kind, with_bias, dtype, device):
    x, offset, mask, weight = deformable_inputs(setting, kind, dtype, device)
    options = setting[1:6]
    bias = [torch.linspace(-1, 1, len(weight), dtype=dtype, device=device)] if with_bias else []

    def convolve(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias=None) -> Tensor:
        return mmcv.ops.modulated_deform_conv2d(x, offset, mask, weight, bias, *options)

    own, ours = both(lambda: gradients(convolve, [x, offset, mask, weight, *bias]))
    assert len(own) == 5 + with_bias
    for a, b in zip(own, ours, strict=True):
        close(a, b)


@pytest.mark.parametrize("device", DEVICES)
def test_layers_that_build_on_them(both, device):
    """Switchable atrous convolution (DetectoRS) and the packs that predict their offsets."""
    torch.manual_seed(0)
    layers = [
        mmcv.ops.SAConv2d(4, 4, 3, padding=1, use_deform=True),
        mmcv.ops.DeformConv2dPack(4, 6, 3, padding=1, deform_groups=2),
        mmcv.ops.ModulatedDeformConv2dPack(4, 6, 3, padding=1, stride=2),
    ]
    x = torch.randn(2, 4, 12, 10, device=device)
    for layer in layers:
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        layer.to(device)

    def run() -> list[Tensor]:
        results = []
        for layer in layers:
            layer.zero_grad()
            results += gradients(layer, [x])
            results += [p.grad.clone() for p in layer.parameters() if p.grad is not None]
        return results

    own, ours = both(run)
    for a, b in zip(own, ours, strict=True):
        close(a, b)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["collect", "distribute"])
@pytest.mark.parametrize("mask_size", [(5, 3), (9, 11), (13, 15), (4, 6), (1, 1)])
def test_psa_mask(both, kind, mask_size, dtype, device):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, mask_size[0] * mask_size[1], 5, 6, generator=generator, dtype=dtype)
    layer = mmcv.ops.PSAMask(kind, mask_size)
    own, ours = both(lambda: gradients(layer, [x.to(device)]))
    for a, b in zip(own, ours, strict=True):
        assert torch.equal(a, b)


# The following have no compiled form for the CPU: tests/test_ops/test_against_definitions.py.


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ROI_CASES)
def test_roi_pool(both, case, dtype):
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 3, 15, 20, generator=generator, dtype=dtype).cuda()
    rois = ROI_CASES[case].to("cuda", dtype)
    layer = mmcv.ops.RoIPool((5, 7), 1 / 4)
    own, ours = both(lambda: gradients(lambda x: layer(x, rois), [maps]))
    for a, b in zip(own, ours, strict=True):
        close(a, b)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["sigmoid_focal_loss", "softmax_focal_loss"])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_focal_losses(both, name, weighted, reduction):
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(50, 7, generator=generator, dtype=torch.float64) * 3).cuda()
    labels = torch.randint(0, 7, (50,), generator=generator).cuda()
    weight = torch.linspace(0.5, 2, 7, dtype=torch.float64).cuda() if weighted else None
    loss = getattr(mmcv.ops, name)
    own, ours = both(
        lambda: gradients(lambda x: loss(x, labels, 2.0, 0.25, weight, reduction), [logits])
    )
    for a, b in zip(own, ours, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-12)


@pytest.mark.gpu
def test_carafe(both):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 8, 5, 7, generator=generator, dtype=torch.float64).cuda()
    masks = torch.randn(2, 2 * 25, 10, 14, generator=generator, dtype=torch.float64).cuda()
    for function in (mmcv.ops.carafe, mmcv.ops.carafe_naive):
        own, ours = both(
            lambda f=function: gradients(lambda x, m: f(x, m, 5, 2, 2), [features, masks])
        )
        for a, b in zip(own, ours, strict=True):
            close(a, b)


@pytest.mark.gpu
def test_masked_convolution(both):
    torch.manual_seed(0)
    layer = mmcv.ops.MaskedConv2d(3, 4, 3, padding=1).cuda()
    x = torch.randn(1, 3, 8, 9, device="cuda")
    mask = torch.rand(1, 8, 9, device="cuda") > 0.5
    own, ours = both(lambda: layer(x, mask).detach())
    close(own, ours)


@pytest.mark.gpu
def test_deform_roi_pool(both):
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 3, 15, 20, generator=generator).cuda()
    rois = ROI_CASES["inside"].cuda()
    offset = torch.randn(len(rois), 2, 3, 3, generator=generator).cuda() * 0.1
    for sampling_ratio in (0, 2):
        own, ours = both(
            lambda n=sampling_ratio: mmcv.ops.deform_roi_pool(maps, rois, offset, 3, 0.25, n)
        )
        close(own, ours)
