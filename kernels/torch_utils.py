"""What the operators' plain PyTorch forms share: linear layers, norms, blocks of tokens, dtypes.

On a CPU whatever treats every token alike runs in blocks of tokens, whose activations stay in its
caches.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

_zeros: dict[tuple, Tensor] = {}
BLOCK, ENTRIES = 1024, 2**18  # tokens of a block, or of narrow rows so many numbers
MUCH = 2**22  # multiply-adds from which a convolution is faster than BLAS
MANY_TOKENS = 512  # from which the gradient of a weight is
IMAGES = 16  # of a batch from which on torch leaves 1x1 convolutions to oneDNN on one thread, too

T = TypeVar("T", Tensor, Tensor | None)


def token_blocks(x: Tensor) -> Iterator[slice]:
    """Slices of the rows of ``x [M, ...]``: `BLOCK` or more on a CPU, all of them elsewhere."""
    cpu, width = x.device.type == "cpu", max(x[:1].numel(), 1)
    step = max(BLOCK, ENTRIES // width) if cpu else max(len(x), 1)
    return (slice(start, start + step) for start in range(0, len(x), step))


def by_blocks(function: Callable[[Tensor], Tensor], x: Tensor, dtype: torch.dtype) -> Tensor:
    """``function(x)`` in a dtype, of rows ``x [M, ...]`` that it treats alike, block by block."""
    first, *others = token_blocks(x)
    y = function(x[first])
    if not others:
        return y.to(dtype)
    out = y.new_empty(len(x), *y.shape[1:], dtype=dtype)
    out[first] = y
    for r in others:
        out[r] = function(x[r])
    return out


def add_up(sums: list[Tensor], *terms: Tensor) -> None:
    """Add the gradients that another block of tokens gives, in float32 at least."""
    if not sums:
        sums.extend(x.to(torch.promote_types(x.dtype, torch.float32)) for x in terms)
        return
    for total, term in zip(sums, terms, strict=True):
        total.add_(term)


def add_scaled(x: Tensor, y: Tensor, scale: Tensor | None, out: Tensor) -> None:
    """x + scale * y into ``out``; scale broadcasts."""
    if scale is None:
        torch.add(x, y, out=out)
    else:
        torch.addcmul(x, y, scale, out=out)


def scale_of_rows(scale: Tensor | None, rows: int) -> Tensor | None:
    """``scale [B]`` of samples -> ``[rows, 1]``; a sample's rows are neighbours."""
    return None if scale is None else scale.repeat_interleave(rows // len(scale))[:, None]


def upcast(*tensors: T) -> list[T]:
    """Half precision to float32, all to float64 where one is; None passes."""
    double = any(x is not None and x.dtype == torch.float64 for x in tensors)
    dtype = torch.float64 if double else torch.float32
    return [None if x is None else x.to(dtype) for x in tensors]


def no_autocast(x: Tensor) -> AbstractContextManager:
    """The operators cast by hand, also where the backward pass runs under autocast."""
    device = x.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` on rows ``[M, C]``, contiguous.

    Where there is much to compute on a CPU it runs as the 1x1 convolution that it is: oneDNN's
    kernels are 5 to 15 % faster there than the BLAS call behind `F.linear` on Intel's CPUs, and
    twice as fast on AMD's. In bfloat16 `F.linear` without a bias is oneDNN's product itself, where
    the CPU has one.
    """
    if not _as_convolution(x, weight, bias):
        return F.linear(x, weight, bias)
    return _rows(F.conv2d(_map(x), weight[:, :, None, None], bias))


def linear_input_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    """Gradient of the input of `linear`, contiguous."""
    if not _as_convolution(grad, weight):
        return grad @ weight
    return linear(grad, weight.mT.contiguous())


def linear_weight_gradient(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Gradient of the weight of `linear`."""
    if x.shape[0] < MANY_TOKENS or not _as_convolution(x, weight):
        return grad.mT @ x
    one_by_one = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    return torch.ops.aten.convolution_backward(
        _map(grad), _map(x), weight[:, :, None, None], None, *one_by_one, [False, True, False]
    )[1].flatten(1)


def _as_convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    if x.device.type != "cpu" or x.numel() // x.shape[-1] * weight.numel() < MUCH:
        return False
    if x.dtype != torch.bfloat16 or bias is not None:  # which would be copied to every row
        return True
    return not _bfloat16_products()


@functools.cache
def _bfloat16_products() -> bool:
    """Whether oneDNN has those for this CPU."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _map(x: Tensor) -> Tensor:
    """Rows ``[M, C]`` as a batch of maps ``[B, C, 1, M / B]``: of `IMAGES` if that divides M."""
    # in float16 the gradients of a weight would be rounded image by image
    images = IMAGES if x.dtype == torch.float32 and len(x) % IMAGES == 0 else 1
    return x.view(images, 1, -1, x.shape[1]).permute(0, 3, 1, 2)


def _rows(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def normalize(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """LayerNorm of ``[..., C]`` where there is a bias, else RMSNorm; all in one dtype."""
    if bias is not None:
        return F.layer_norm(x, weight.shape, weight, bias, eps)
    return (x * inverse_rms(x, eps)).mul_(weight).to(x.dtype)


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(x^2) + eps) over the last dimension, which stays; in float32 at least."""
    # F.rms_norm is not fused on the CPU; this reads x twice instead of four times
    dtype = torch.promote_types(x.dtype, torch.float32)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)
    return torch.rsqrt(length.square() / x.shape[-1] + eps)


def normalize_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, of the weight and of the bias (zeros if there is none)."""
    if bias is not None:
        shape = list(weight.shape)
        _, mean, scale = torch.native_layer_norm(x, shape, weight, bias, eps)
        return torch.ops.aten.native_layer_norm_backward(
            grad, x, shape, mean, scale, weight, bias, [True, True, True]
        )
    scale = inverse_rms(x, eps)
    normal = x * scale  # float32 at least from here on
    product = grad * normal
    dweight = product.flatten(0, -2).sum(dim=0)
    mean = product.mul_(weight).mean(dim=-1, keepdim=True)
    dx = torch.addcmul(grad * weight, normal, mean, value=-1).mul_(scale)
    return dx.to(x.dtype), dweight, torch.zeros_like(dweight)


def like(
    gradients: Sequence[Tensor | None], weights: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Gradients in the dtypes of the weights, in one launch; None for a weight that is None."""
    return _cast(gradients, [None if w is None else w.dtype for w in weights])


def zeros(count: int, like: Tensor) -> Tensor:
    """``[count]`` like another tensor, not to be written to: kept, and filled once a stream."""
    cuda = like.device.type == "cuda"
    if cuda and torch.cuda.is_current_stream_capturing():
        return like.new_zeros(count)  # in the graph's own memory
    stream = torch._C._cuda_getCurrentRawStream(like.device.index) if cuda else None
    key = count, like.dtype, like.device, stream
    if key not in _zeros:
        _zeros[key] = like.new_zeros(count)
    return _zeros[key]


def cast(dtype: torch.dtype, *tensors: Tensor) -> Sequence[Tensor]:
    """Tensors in a dtype, in one launch; as they are if they have it."""
    if all(x.dtype == dtype for x in tensors):
        return tensors
    return _cast(tensors, [dtype] * len(tensors))


def _cast(tensors: Sequence[Any], dtypes: Sequence[torch.dtype | None]) -> list[Any]:
    results = [None if t is None else x for x, t in zip(tensors, dtypes, strict=True)]
    other = [i for i, x in enumerate(results) if x is not None and x.dtype != dtypes[i]]
    if other:
        done = [torch.empty_like(tensors[i], dtype=dtypes[i]) for i in other]
        torch._foreach_copy_(done, [tensors[i] for i in other])
        for i, x in zip(other, done, strict=True):
            results[i] = x
    return results
