"""Stochastic depth (Huang et al., arXiv 1603.09382)."""

from torch import Tensor, nn


class DropPath(nn.Module):
    """In training, drops a sample with probability ``rate`` and scales the others up."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def draw(self, x: Tensor, count: int) -> Tensor | list[None]:
        """What ``count`` times the samples of ``x [B, ...]`` are multiplied with.

        Returns:
            ``[count, B]``, or as many None: nothing.
        """
        if not self.training or self.rate == 0:
            return [None] * count
        return x.new_empty(count, len(x)).bernoulli_(1 - self.rate).div_(1 - self.rate)

    def forward(self, x: Tensor, scale: Tensor | None) -> Tensor:
        """``[B, ...]`` -> ``[B, ...]``, with ``scale [B]`` of `draw`."""
        return x if scale is None else x * scale.view(-1, *[1] * (x.dim() - 1))

    def extra_repr(self) -> str:
        return f"{self.rate}"


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Rates of the blocks, from 0 at the first one up to ``rate`` at the last one."""
    if not 0 <= rate < 1:
        raise ValueError(f"drop_path_rate={rate} must be in [0, 1)")
    return [rate * i / max(depth - 1, 1) for i in range(depth)]
