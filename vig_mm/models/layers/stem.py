"""The convolutions in front of the blocks."""

from torch import Tensor, nn

from .recompute import norm_act_conv


class Stem(nn.Sequential):
    """Convolution, norm, activation, convolution, norm; keeps the outputs of both convolutions.

    ``backend='torch'`` leaves to autograd what is kept.
    """

    backend: str | None = None

    def forward(self, x: Tensor) -> Tensor:
        """``[B, 3, H, W]`` -> ``[B, C, h, w]``."""
        first, norm, act, second, last = self
        return last(norm_act_conv(first(x), norm, act, second, self.backend))
