"""PSANet's point-wise spatial attention masks: from places relative to a cell to the whole map."""

from collections.abc import Iterator

from torch import Tensor

COLLECT = 0


def psamask_forward(
    input: Tensor,
    output: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Write each cell's mask, centred on the cell, where it belongs on the whole map.

    Args:
        input: ``[num_, h_mask w_mask, h_feature, w_feature]``, one mask for each cell.
        output: ``[num_, h_feature w_feature, h_feature, w_feature]``, zeros that are filled.
        psa_type: 1, distribute: channels of the output are the cells, places what their masks point
            to; 0, collect: the reverse.
    """
    sizes = (h_feature, w_feature, h_mask, w_mask, half_h_mask, half_w_mask)
    for of_mask, of_map in _pairs(input, output, psa_type, sizes):
        of_map.copy_(of_mask)


def psamask_backward(
    grad_output: Tensor,
    grad_input: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """The reverse: fill `grad_input`, which holds zeros, from `grad_output`."""
    sizes = (h_feature, w_feature, h_mask, w_mask, half_h_mask, half_w_mask)
    for of_mask, of_map in _pairs(grad_input, grad_output, psa_type, sizes):
        of_mask.copy_(of_map)


def _pairs(
    masks: Tensor, maps: Tensor, psa_type: int, sizes: tuple[int, ...]
) -> Iterator[tuple[Tensor, Tensor]]:
    """For each cell two views of one shape: the part of its mask on the map, and its place."""
    height, width, h_mask, w_mask, half_h, half_w = sizes
    masks = masks.view(-1, h_mask, w_mask, height, width)
    maps = maps.view(-1, height, width, height, width)
    for h in range(height):
        y = slice(max(0, half_h - h), min(h_mask, height + half_h - h))
        on_y = slice(y.start + h - half_h, y.stop + h - half_h)
        for w in range(width):
            x = slice(max(0, half_w - w), min(w_mask, width + half_w - w))
            on_x = slice(x.start + w - half_w, x.stop + w - half_w)
            of_map = maps[:, on_y, on_x, h, w] if psa_type == COLLECT else maps[:, h, w, on_y, on_x]
            yield masks[:, y, x, h, w], of_map
