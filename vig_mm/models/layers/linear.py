"""A linear layer for tokens, and its two gradients."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MUCH = 2**22  # multiply-adds from which a convolution is faster than BLAS
MANY_TOKENS = 512  # from which the gradient of a weight is
IMAGES = 16  # of a batch from which on torch leaves 1x1 convolutions to oneDNN on one thread, too


class TokenLinear(nn.Linear):
    """`nn.Linear` on tokens ``[B, N, C]``.

    Where there is much to compute on a CPU it runs as the 1x1 convolution that it is: oneDNN's
    kernels are 5 to 15 % faster there than the BLAS call behind `F.linear` on Intel's CPUs, and
    twice as fast on AMD's, for inference and training alike.
    """

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or x.dim() != 3 or not _as_convolution(x, self.weight):
            return super().forward(x)
        out = F.conv2d(_map(x.flatten(0, 1)), self.weight[:, :, None, None], self.bias)
        return _rows(out).unflatten(0, x.shape[:2])


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` on rows ``[M, C]``, contiguous; as a convolution where `TokenLinear` is one."""
    if not _as_convolution(x, weight):
        return F.linear(x, weight, bias)
    return _rows(F.conv2d(_map(x), weight[:, :, None, None], bias))


def linear_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of ``x [M, C]`` and of the weight from that of the output, all contiguous."""
    return linear_input_gradient(grad, weight), linear_weight_gradient(grad, x, weight)


def linear_input_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    """The first of `linear_backward`."""
    if not _as_convolution(grad, weight):
        return grad @ weight
    return linear(grad, weight.mT.contiguous())


def linear_weight_gradient(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The second of `linear_backward`."""
    if len(x) < MANY_TOKENS or not _as_convolution(x, weight):
        return grad.mT @ x
    return torch.ops.aten.convolution_backward(
        _map(grad), _map(x), weight[:, :, None, None], None, *_ONE_BY_ONE, [False, True, False]
    )[1].flatten(1)


def _as_convolution(x: Tensor, weight: Tensor) -> bool:
    return x.device.type == "cpu" and x.numel() // x.shape[-1] * weight.numel() >= MUCH


_ONE_BY_ONE = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1)


def _map(x: Tensor) -> Tensor:
    """Rows ``[M, C]`` as a batch of maps ``[B, C, 1, M / B]``: of `IMAGES` if that divides M."""
    # in float16 the gradients of a weight would be rounded image by image
    images = IMAGES if x.dtype == torch.float32 and len(x) % IMAGES == 0 else 1
    return x.view(images, 1, -1, x.shape[1]).permute(0, 3, 1, 2)


def _rows(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).flatten(0, 2)
