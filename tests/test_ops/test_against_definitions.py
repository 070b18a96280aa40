"""Operators that mmcv compiles for CUDA only: against plain loops, torch's own and `gradcheck`."""

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck

pytest.importorskip("mmcv")
import vig_mm.ops  # noqa: F401, I001 (before mmcv.ops)
import mmcv.ops

DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def served(serve: Callable[[], None]) -> None:
    serve()


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_()


# Focal losses


def sigmoid_focal(x: Tensor, labels: Tensor, gamma: float, alpha: float) -> Tensor:
    """The paper's formula, on binary cross entropies."""
    truth = F.one_hot(labels, x.shape[1] + 1)[:, : x.shape[1]].to(x)
    p = x.sigmoid()
    factor = torch.where(truth == 1, alpha * (1 - p) ** gamma, (1 - alpha) * p**gamma)
    return factor * F.binary_cross_entropy_with_logits(x, truth, reduction="none")


def softmax_focal(x: Tensor, labels: Tensor, gamma: float, alpha: float) -> Tensor:
    log_p = x.log_softmax(1).gather(1, labels[:, None])
    return -alpha * (1 - log_p.exp()) ** gamma * log_p


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize(
    "formula, gamma, reduction",
    [
        *product([sigmoid_focal], [0.0, 1.5, 2.0], ["none", "mean", "sum"]),
        # mmcv multiplies with the gradient of the result, which has to be one number
        *product([softmax_focal], [1.0, 2.0], ["mean", "sum"]),
    ],
)
def test_focal_losses(formula, gamma, weighted, reduction):
    x = leaf(randn(40, 5) * 4)
    labels = torch.arange(40) % (6 if formula is sigmoid_focal else 5)  # 5 is background
    weight = torch.linspace(0.5, 2, 5, dtype=DOUBLE) if weighted else None
    of_labels = torch.ones(6, dtype=DOUBLE) if weight is None else F.pad(weight, (0, 1), value=1)
    expected = (formula(x, labels, gamma, 0.25) * of_labels[labels][:, None]).squeeze(1)
    expected = dict(none=expected, mean=expected.sum() / 40, sum=expected.sum())[reduction]
    loss = getattr(mmcv.ops, f"{formula.__name__}_loss")(x, labels, gamma, 0.25, weight, reduction)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(*(torch.autograd.grad(y.sum(), x) for y in (loss, expected)))


def test_sigmoid_focal_loss_of_sure_logits():
    """Float32 keeps its relative precision far from 0, forward and backward."""
    x = torch.linspace(-80, 80, 161)[:, None]
    for label in (0, 1):
        labels = torch.full((161,), label)
        single, double = leaf(x), leaf(x.double())
        loss = mmcv.ops.sigmoid_focal_loss(single, labels, 2.0, 0.25, None, "sum")
        expected = sigmoid_focal(double, labels, 2.0, 0.25).sum()
        torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
        loss.backward()
        mmcv.ops.sigmoid_focal_loss(double, labels, 2.0, 0.25, None, "sum").backward()
        torch.testing.assert_close(single.grad.double(), double.grad, rtol=3e-6, atol=1e-30)


def test_softmax_focal_loss_ignores_negative_labels():
    x, labels = leaf(randn(4, 3)), torch.tensor([0, -1, 2, -1])
    loss = mmcv.ops.softmax_focal_loss(x, labels, 2.0, 0.25, torch.ones(3, dtype=DOUBLE), "sum")
    some = mmcv.ops.softmax_focal_loss(x[[0, 2]], labels[[0, 2]], 2.0, 0.25, None, "sum")
    torch.testing.assert_close(loss, some)
    assert torch.autograd.grad(loss, x)[0][[1, 3]].abs().max() == 0


@pytest.mark.parametrize("name", ["sigmoid_focal_loss", "softmax_focal_loss"])
def test_focal_loss_of_nothing(name):
    x = torch.zeros(0, 4, requires_grad=True)
    loss = getattr(mmcv.ops, name)(x, torch.zeros(0, dtype=torch.long), 2.0, 0.25, None, "sum")
    loss.backward()
    assert loss == 0 and x.grad.shape == (0, 4)


# RoIPool and deformable RoI pooling

ROIS = torch.tensor(
    [
        [0, 3.0, 5.0, 40.5, 33.25],
        [1, 0.0, 0.0, 79.0, 59.0],
        [1, -30.0, -20.0, 20.0, 25.0],
        [0, 70.0, 50.0, 120.0, 90.0],
        [0, 200.0, 200.0, 220.0, 230.0],
        [1, 16.0, 8.0, 23.0, 15.0],
        [0, 10.0, 10.0, 10.0, 10.0],
        [0, 40.0, 40.0, 20.0, 20.0],
    ],
    dtype=DOUBLE,
)


def roi_pool_by_loops(maps: Tensor, rois: Tensor, size: tuple[int, int], scale: float) -> Tensor:
    """Bin by bin, as the loops of mmcv's kernel are nested."""
    height, width = maps.shape[2:]
    output = maps.new_zeros(len(rois), maps.shape[1], *size)
    for r, (image, x1, y1, x2, y2) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = x1 * scale, y1 * scale, (x2 + 1) * scale, (y2 + 1) * scale
        if x2 <= x1 or y2 <= y1:
            continue
        step_y, step_x = (y2 - y1) / size[0], (x2 - x1) / size[1]
        for i, j in product(*map(range, size)):
            rows = slice(
                min(max(math.floor(i * step_y + y1), 0), height),
                min(max(math.ceil((i + 1) * step_y + y1), 0), height),
            )
            columns = slice(
                min(max(math.floor(j * step_x + x1), 0), width),
                min(max(math.ceil((j + 1) * step_x + x1), 0), width),
            )
            cells = maps[int(image), :, rows, columns]
            if cells.numel():
                output[r, :, i, j] = cells.amax(dim=(1, 2))
    return output


def check_maps_gradient(result: Tensor, expected: Tensor, maps: Tensor) -> None:
    """The gradient of the maps that both were made of."""
    weights = randn(*result.shape, seed=1)
    pair = [torch.autograd.grad(x, maps, weights, retain_graph=True) for x in (result, expected)]
    torch.testing.assert_close(*pair)


@pytest.mark.parametrize("size", [(7, 7), (2, 3), (1, 1), (30, 40)], ids=str)
@pytest.mark.parametrize("scale", [1 / 4, 1 / 16])
def test_roi_pool(size, scale):
    maps = leaf(randn(2, 3, 15, 20))
    result = mmcv.ops.roi_pool(maps, ROIS, size, scale)
    expected = roi_pool_by_loops(maps, ROIS, size, scale)
    assert torch.equal(result, expected)
    check_maps_gradient(result, expected, maps)


def test_roi_pool_of_no_rois():
    maps = leaf(randn(1, 2, 5, 6))
    result = mmcv.ops.roi_pool(maps, torch.zeros(0, 5, dtype=DOUBLE), 3, 1.0)
    result.sum().backward()
    assert result.shape == (0, 2, 3, 3) and maps.grad.abs().max() == 0


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_deform_roi_pool_without_offsets_is_roi_align(sampling_ratio):
    maps, rois = leaf(randn(2, 3, 15, 20)), ROIS[:-1]
    expected = mmcv.ops.roi_align(maps, rois, (3, 5), 0.25, sampling_ratio, "avg", True)
    for offset in (None, torch.zeros(len(rois), 2, 3, 5, dtype=DOUBLE)):
        result = mmcv.ops.deform_roi_pool(maps, rois, offset, (3, 5), 0.25, sampling_ratio)
        torch.testing.assert_close(result, expected)
        check_maps_gradient(result, expected, maps)


def test_deform_roi_pool_moves_its_bins():
    """An offset moves a bin by gamma times the RoI's size: the RoI moved as a whole is the same."""
    maps, rois = randn(2, 3, 15, 20), ROIS[:4]
    offset = torch.zeros(4, 2, 3, 3, dtype=DOUBLE)
    offset[:, 0], offset[:, 1] = 0.7, -0.4
    width, height = (rois[:, 3] - rois[:, 1]) * 0.1, (rois[:, 4] - rois[:, 2]) * 0.1
    moved = rois + torch.stack((width * 0, width * 0.7, height * -0.4) * 2, 1)[:, [0, 1, 2, 1, 2]]
    torch.testing.assert_close(
        mmcv.ops.deform_roi_pool(maps, rois, offset, 3, 0.25, 2, 0.1),
        mmcv.ops.roi_align(maps, moved, (3, 3), 0.25, 2, "avg", True),
    )


def test_deform_roi_pool_gradients():
    maps = leaf(randn(2, 2, 8, 9))
    rois = torch.tensor([[0, 3.0, 4, 27.3, 25.1], [1, 6.0, 2, 20.7, 29.4]], dtype=DOUBLE)
    offset = leaf(randn(2, 2, 2, 2, seed=2) * 0.3)
    assert gradcheck(
        lambda x, o: mmcv.ops.deform_roi_pool(x, rois, o, 2, 0.25, 2, 0.1), (maps, offset)
    )


# Multi-scale deformable attention


def attention_inputs() -> tuple[Tensor, ...]:
    shapes = torch.tensor([[4, 5], [2, 3], [1, 1]])
    areas = shapes.prod(1)
    value = randn(2, int(areas.sum()), 2, 3)
    locations = randn(2, 7, 2, 3, 4, 2, seed=1) * 0.4 + 0.5
    weights = randn(2, 7, 2, 12, seed=2).softmax(-1).view(2, 7, 2, 3, 4)
    return value, shapes, areas.cumsum(0) - areas, locations, weights


def attention(*tensors: Tensor) -> Tensor:
    return mmcv.ops.multi_scale_deform_attn.MultiScaleDeformableAttnFunction.apply(*tensors, 64)


def test_deformable_attention_by_loops():
    value, shapes, starts, locations, weights = attention_inputs()
    expected = torch.zeros(2, 7, 2, 3, dtype=DOUBLE)
    for b, q, h, level, p in product(*map(range, (2, 7, 2, 3, 4))):
        height, width = shapes[level].tolist()
        x, y = locations[b, q, h, level, p].tolist()
        x, y = x * width - 0.5, y * height - 0.5
        for row in (math.floor(y), math.floor(y) + 1):
            for column in (math.floor(x), math.floor(x) + 1):
                if 0 <= row < height and 0 <= column < width:
                    cell = value[b, starts[level] + row * width + column, h]
                    part = (1 - abs(y - row)) * (1 - abs(x - column))
                    expected[b, q, h] += weights[b, q, h, level, p] * part * cell
    result = attention(value, shapes, starts, locations, weights)
    torch.testing.assert_close(result, expected.flatten(2))


def test_deformable_attention_gradients():
    value, shapes, starts, locations, weights = attention_inputs()
    assert gradcheck(
        lambda v, x, w: attention(v, shapes, starts, x, w),
        (leaf(value), leaf(locations), leaf(weights)),
    )


# CARAFE


@pytest.mark.parametrize("name", ["carafe", "carafe_naive"])
@pytest.mark.parametrize(("kernel", "groups", "scale"), [(5, 2, 2), (3, 1, 3), (1, 4, 1)])
def test_carafe(name, kernel, groups, scale):
    features, masks = randn(2, 4, 3, 5), randn(2, groups * kernel**2, 3 * scale, 5 * scale, seed=1)
    result = getattr(mmcv.ops, name)(features, masks, kernel, groups, scale)
    windows = F.unfold(features, kernel, padding=kernel // 2).view(2, 4, kernel**2, 3, 5)
    for y, x, c in product(range(3 * scale), range(5 * scale), range(4)):
        group = c // (4 // groups)
        mask = masks[:, group * kernel**2 : (group + 1) * kernel**2, y, x]
        expected = (windows[:, c, :, y // scale, x // scale] * mask).sum(1)
        torch.testing.assert_close(result[:, c, y, x], expected)


def test_carafe_gradients(monkeypatch):
    inputs = leaf(randn(1, 4, 3, 2)), leaf(randn(1, 18, 6, 4, seed=1))
    assert gradcheck(lambda x, m: mmcv.ops.carafe(x, m, 3, 2, 2), inputs)
    # mmcv itself asserts that the naive form's gradient lies on a GPU
    monkeypatch.setattr(Tensor, "is_cuda", True)
    assert gradcheck(lambda x, m: mmcv.ops.carafe_naive(x, m, 3, 2, 2), inputs)


# Masked convolution and synchronised batch normalisation


@pytest.mark.parametrize(("kernel", "padding"), [(3, 1), ((1, 3), (0, 1)), (5, 2)])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_masked_convolution(kernel, padding, share):
    torch.manual_seed(0)
    layer = mmcv.ops.MaskedConv2d(3, 4, kernel, padding=padding)
    x, mask = torch.randn(1, 3, 6, 7), (torch.rand(1, 6, 7) < share).float()
    expected = F.conv2d(x, layer.weight, layer.bias, padding=padding) * mask
    torch.testing.assert_close(layer(x, mask), expected)


@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (2, 3, 7), (1, 3, 1, 2)])
@pytest.mark.parametrize("mode", ["default", "N"])
def test_synchronised_batch_normalisation(shape, mode):
    from mmcv.ops.sync_bn import SyncBatchNormFunction

    x, weight, bias = (leaf(randn(*s, dtype=torch.float32)) for s in (shape, (3,), (3,)))
    statistics = [torch.zeros(3), torch.ones(3)]
    result = SyncBatchNormFunction.apply(x, *statistics, weight, bias, 0.1, 1e-5, None, 1, mode)
    expected_statistics = [torch.zeros(3), torch.ones(3)]
    expected = F.batch_norm(x, *expected_statistics, weight, bias, True, 0.1, 1e-5)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(statistics, expected_statistics)
    grad = randn(*shape, seed=1, dtype=torch.float32)
    pair = [torch.autograd.grad(y, (x, weight, bias), grad) for y in (result, expected)]
    torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-5)


# What is wider than mmcv's own, and what is not there


@pytest.mark.parametrize("offset", [0, 1])
def test_nms_takes_other_dtypes(offset):
    """mmcv compiles it for float32 only."""
    boxes = torch.rand(200, 4, generator=torch.Generator().manual_seed(0)) * 50
    boxes[:, 2:] += boxes[:, :2]
    boxes, scores = boxes.round(), torch.arange(200).flip(0) / 200
    expected = mmcv.ops.nms(boxes, scores, 0.5, offset)[1]
    assert torch.equal(mmcv.ops.nms(boxes.double(), scores.double(), 0.5, offset)[1], expected)
    kept = mmcv.ops.nms(boxes.bfloat16(), scores, 0.5, offset)[1]
    assert torch.equal(kept, mmcv.ops.nms(boxes.bfloat16().float(), scores, 0.5, offset)[1])


def test_what_is_not_served_says_so(stand_in):
    with pytest.raises(NotImplementedError, match="nms_rotated.*--mmcv compiled"):
        mmcv.ops.nms_rotated(torch.rand(3, 5), torch.rand(3), 0.5)
    with pytest.raises(NotImplementedError, match="pool_mode='max'.*use 'avg', or.*compiled"):
        mmcv.ops.roi_align(torch.rand(1, 1, 4, 4), torch.zeros(1, 5), 2, 1.0, 0, "max")
    assert not hasattr(stand_in, "__wrapped__")


def test_reports_of_the_environment():
    import torchvision
    from mmcv.utils import collect_env

    report = collect_env()
    assert report["MMCV CUDA Compiler"] == "not available"
    assert f"torchvision {torchvision.__version__}" in report["MMCV Compiler"]
