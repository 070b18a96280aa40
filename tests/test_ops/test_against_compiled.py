"""Every function that mmcv's compiled module has for the CPU, against vig_mm's, through mmcv.ops.

Skipped where mmcv has no compiled operators; on a GPU they need an mmcv compiled for CUDA. What it
compiles for CUDA only is for test_against_definitions, layers made of these for test_stock_configs.
"""

from collections.abc import Callable, Iterable, Sequence

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
OF_DEVICE = pytest.mark.parametrize("device", DEVICES)
OF_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)


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


@pytest.fixture
def same(both: Callable[[Callable], tuple]) -> Callable[[Callable[[], Iterable[Tensor]]], None]:
    """Requires that a function's results are close, those that are no floats equal."""

    def run(function: Callable[[], Iterable[Tensor]]) -> None:
        for own, ours in zip(*both(function), strict=True):
            assert own.shape == ours.shape and own.dtype == ours.dtype
            scale = own.nan_to_num().abs().max().item() if own.numel() else 0
            tolerance = TOLERANCE.get(own.dtype, 0) * scale
            torch.testing.assert_close(ours, own, rtol=0, atol=tolerance, equal_nan=True)

    return run


def gradients(function: Callable, inputs: Sequence[Tensor]) -> list[Tensor]:
    """A function's result, and what backward gives for a fixed random gradient of it."""
    inputs = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs]
    output = function(*inputs)
    output.backward(randn(*output.shape, dtype=output.dtype).to(output.device))
    return [output.detach(), *(x.grad for x in inputs if x.grad is not None)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


# Boxes


def random_boxes(number: int, seed: int, size: float = 100.0) -> Tensor:
    centres, sides = torch.rand(2, number, 2, generator=generator(seed)) * size
    return torch.cat((centres - sides / 6, centres + sides / 6), dim=1)


def box_cases() -> dict[str, tuple[Tensor, Tensor]]:
    """Boxes and scores: random ones, and those where rounding and order decide."""
    boxes, steps = random_boxes(400, 1), torch.arange(400)
    # integer corners: many overlaps are exactly the threshold
    corners = torch.randint(0, 6, (300, 2), generator=generator(4)).float()
    sides = torch.randint(1, 6, (300, 2), generator=generator(5)).float()
    few = steps[:300] % 7 / 7
    return {
        "random_7": (random_boxes(7, 7), torch.rand(7, generator=generator(7))),
        "random_1500": (random_boxes(1500, 2), torch.rand(1500, generator=generator(2))),
        "empty": (torch.zeros(0, 4), torch.zeros(0)),
        "one": (boxes[:1], torch.tensor([0.3])),
        "equal_scores": (boxes, torch.full((400,), 0.5)),
        "few_scores": (boxes, steps % 5 / 5),
        "equal_boxes": (boxes[:1].expand(50, 4).clone(), torch.linspace(1, 0, 50)),
        "repeated_boxes": (boxes[:60].repeat(4, 1), torch.rand(240, generator=generator(3))),
        "integer": (torch.cat((corners, corners + sides), 1), few),
        "no_area": (torch.cat((corners, corners), 1), few),
        "inverted": (torch.cat((corners + sides, corners), 1), few),
        "far": (boxes + 3e4, steps % 11 / 11),
    }


BOX_CASES = box_cases()
OF_BOXES = pytest.mark.parametrize("case", BOX_CASES)


@OF_DEVICE
@OF_BOXES
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.6, 0.7, 1.0])
@pytest.mark.parametrize("limits", [{}, dict(score_threshold=0.4, max_num=20)], ids=["", "limits"])
@pytest.mark.parametrize("offset", [0, 1])
def test_nms_keeps_the_same_in_the_same_order(both, case, threshold, limits, offset, device):
    boxes, scores = (x.to(device) for x in BOX_CASES[case])
    own, ours = both(lambda: mmcv.ops.nms(boxes, scores, threshold, offset, **limits))
    assert torch.equal(own[1], ours[1]) and torch.equal(own[0], ours[0])


@OF_DEVICE
@pytest.mark.parametrize("kind", ["nms", "soft_nms"])
@pytest.mark.parametrize("split", [10000, 100])
def test_batched_nms(same, kind, split, device):
    boxes, scores = (x.to(device) for x in BOX_CASES["random_1500"])
    classes = torch.arange(1500, device=device) % 9
    cfg = dict(type=kind, iou_threshold=0.5, split_thr=split)
    same(lambda: mmcv.ops.batched_nms(boxes, scores, classes, cfg))


@OF_BOXES
@pytest.mark.parametrize(
    "settings",
    [
        *(dict(method="naive", iou_threshold=x) for x in (0.0, 0.3, 0.6)),
        *(dict(method="linear", iou_threshold=x) for x in (0.0, 0.3, 0.6)),
        *(dict(method="gaussian", sigma=x) for x in (0.1, 0.5, 2.0)),
    ],
    ids=str,
)
@pytest.mark.parametrize("min_score", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("offset", [0, 1])
def test_soft_nms(same, case, settings, min_score, offset):
    boxes, scores = BOX_CASES[case]
    same(lambda: mmcv.ops.soft_nms(boxes, scores, min_score=min_score, offset=offset, **settings))


@OF_BOXES
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.6, 1.0])
def test_nms_match(both, case, threshold):
    boxes, scores = BOX_CASES[case]
    dets = torch.cat((boxes, scores[:, None]), dim=1)
    own, ours = both(lambda: mmcv.ops.nms_match(dets, threshold))
    assert [group.tolist() for group in own] == [group.tolist() for group in ours]


# Regions, convolutions, masks


def roi_cases() -> dict[str, Tensor]:
    """RoIs ``[R, 5]`` on two images of 80 x 60 pixels."""
    boxes = random_boxes(40, 2, 60)
    images = (torch.arange(40) % 2)[:, None].float()
    return {
        "random": torch.cat((images, boxes), 1),
        "inside": torch.cat((images, boxes.clamp(0, 60)), 1),
        "none": torch.zeros(0, 5),
        "all_image": torch.tensor([[0.0, 0, 0, 80, 60], [1, 0, 0, 80, 60]]),
        "outside": torch.tensor([[0.0, 200, 200, 250, 260], [1, -90, -70, -60, -50]]),
        "half_outside": torch.tensor([[0.0, 70, 50, 120, 90], [1, -20, -30, 10, 20]]),
        "no_size": torch.tensor([[0.0, 10, 10, 10, 10], [1, 0, 0, 0, 0], [0, 5, 5, 5, 25]]),
        "tiny": torch.tensor([[0.0, 10, 10, 10.01, 10.02], [1, 79.9, 59.9, 80, 60]]),
        "whole_cells": torch.tensor([[0.0, 8, 16, 40, 48], [1, 16, 8, 24, 24]]),
    }


ROI_CASES = roi_cases()


@OF_DEVICE
@OF_DTYPE
@pytest.mark.parametrize("case", ROI_CASES)
@pytest.mark.parametrize("sampling_ratio", [0, 2, 3])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("scale", [1 / 4, 1 / 7])
def test_roi_align(same, case, sampling_ratio, aligned, scale, dtype, device):
    if dtype == torch.float64 and scale == 1 / 7:
        scale = 0.1428  # no bin of whole cells, whose samples mmcv counts in float32
    maps, rois = randn(2, 3, 15, 20, dtype=dtype).to(device), ROI_CASES[case].to(device, dtype)
    layer = mmcv.ops.RoIAlign((5, 7), scale, sampling_ratio, aligned=aligned)
    same(lambda: gradients(lambda x: layer(x, rois), [maps]))


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
OFFSETS = {
    "random": lambda x: x,
    "zero": lambda x: x * 0,
    "whole": lambda x: x.round(),
    "half": lambda x: (x * 2).round() / 2,
    "far": lambda x: x * 50,
    "border": lambda x: x.sign(),
}


def deformable_inputs(setting: tuple, kind: str, dtype: torch.dtype, device: str) -> list[Tensor]:
    """Input ``[B, C, 9, 11]``, offsets, mask, weight and bias."""
    kernel, stride, padding, dilation, groups, deform_groups, batch, channels = setting
    kernel, stride, padding, dilation = (
        x if isinstance(x, tuple) else (x, x) for x in (kernel, stride, padding, dilation)
    )
    sizes = [
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, p, d in zip((9, 11), kernel, stride, padding, dilation, strict=True)
    ]
    points = deform_groups * kernel[0] * kernel[1]
    offset = OFFSETS[kind](randn(batch, 2 * points, *sizes, dtype=dtype, seed=1) * 2)
    mask = randn(batch, points, *sizes, dtype=dtype, seed=2).sigmoid()
    weight = randn(2 * channels, channels // groups, *kernel, dtype=dtype, seed=3)
    bias = torch.linspace(-1, 1, len(weight), dtype=dtype)
    inputs = (randn(batch, channels, 9, 11, dtype=dtype), offset, mask, weight, bias)
    return [x.to(device) for x in inputs]


@OF_DEVICE
@OF_DTYPE
@pytest.mark.parametrize("kind", OFFSETS)
@pytest.mark.parametrize("setting", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("form", ["plain", "modulated", "with bias"])
def test_deform_conv(same, form, setting, kind, dtype, device):
    x, offset, mask, weight, bias = deformable_inputs(setting, kind, dtype, device)
    options = setting[1:6]

    def modulated(x, offset, mask, weight, bias=None):
        return mmcv.ops.modulated_deform_conv2d(x, offset, mask, weight, bias, *options)

    def plain(*tensors):
        return mmcv.ops.deform_conv2d(*tensors, *options)

    if form == "plain":
        same(lambda: gradients(plain, [x, offset, weight]))
    else:
        inputs = [x, offset, mask, weight, *([bias] if form == "with bias" else [])]
        same(lambda: gradients(modulated, inputs))


@OF_DEVICE
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_offsets_that_are_no_numbers_read_nothing(same, value, device):
    """Of a training that diverges; on the CPU mmcv's own backward pass then ends the process."""
    inputs = deformable_inputs(CONVOLUTIONS[4], "random", torch.float32, device)
    x, offset, mask, weight, _ = inputs
    offset[:, ::3] = value
    options = CONVOLUTIONS[4][1:6]
    same(
        lambda: (
            mmcv.ops.deform_conv2d(x, offset, weight, *options),
            mmcv.ops.modulated_deform_conv2d(x, offset, mask, weight, None, *options),
        )
    )
    for result in gradients(
        lambda *tensors: mmcv.ops.deform_conv2d(*tensors, *options), [x, offset, weight]
    ):
        assert result.isfinite().all()


@OF_DEVICE
@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (0, 2), (1, 2)], ids=str)
def test_deform_conv_gives_the_gradients_that_are_asked_for(same, needed, device):
    """One convolution, two backward passes, each of another gradient: no value is taken over."""
    x, offset, _, weight, _ = deformable_inputs(CONVOLUTIONS[0], "random", torch.float32, device)

    def two_passes() -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in (x, offset, weight)]
        y = mmcv.ops.deform_conv2d(*leaves, 1, 1)
        wanted = [leaves[i] for i in needed]
        first = torch.autograd.grad(y.sum(), leaves, retain_graph=True)
        some = torch.autograd.grad((2 * y).sum(), leaves[:2], retain_graph=True)
        return [*first, *some, *torch.autograd.grad(y.square().sum(), wanted)]

    same(two_passes)


@OF_DEVICE
@OF_DTYPE
@pytest.mark.parametrize("kind", ["collect", "distribute"])
@pytest.mark.parametrize("mask_size", [(5, 3), (9, 11), (13, 15), (4, 6), (1, 1)], ids=str)
def test_psa_mask(both, kind, mask_size, dtype, device):
    x = randn(2, mask_size[0] * mask_size[1], 5, 6, dtype=dtype).to(device)
    layer = mmcv.ops.PSAMask(kind, mask_size)
    for own, ours in zip(*both(lambda: gradients(layer, [x])), strict=True):
        assert torch.equal(own, ours)
