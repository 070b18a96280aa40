"""Stems of other images than RGB, started from weights for RGB."""

from torch import Tensor


def fit_channels(weight: Tensor, in_channels: int) -> Tensor:
    """A convolution's weights for another number of input channels, as timm adapts them.

    One channel: the sum over the old ones, so that grey gives what the same grey as RGB gave. More:
    the old ones repeated and scaled by old / new, which keeps the size of the outputs.

    Args:
        weight: [out, old, kh, kw].
        in_channels: New number of channels.

    Returns:
        [out, in_channels, kh, kw], of the dtype that came in.
    """
    old = weight.shape[1]
    if in_channels == old:
        return weight
    full = weight.float()
    if in_channels == 1:
        return full.sum(1, keepdim=True).to(weight.dtype)
    repeated = full.repeat(1, -(-in_channels // old), 1, 1)[:, :in_channels]
    return (repeated * (old / in_channels)).to(weight.dtype)
