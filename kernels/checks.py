"""Argument checks that the operators share."""

from torch import Tensor


def check_tokens(**named: Tensor) -> None:
    """Floating-point tensors ``[B, N, H, width]`` on one device, only B may be 0.

    Raises:
        TypeError: one is not a floating-point tensor.
        ValueError: one has other dimensions, no entries, or is on another device than the first.
    """
    first = next(iter(named))
    for name, x in named.items():
        check_floating(name, x)
        if x.dim() != 4:
            raise ValueError(f"{name} must be [B, N, H, width], got shape {tuple(x.shape)}")
        check_device(name, x, first, named[first])
        for size, meaning in zip(x.shape[1:], ("tokens", "heads", "width"), strict=True):
            if size == 0:
                raise ValueError(f"{name} needs {meaning} >= 1, got {tuple(x.shape)}")


def check_floating(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {x.dtype}")


def check_device(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    if x.device != other.device:
        raise ValueError(
            f"{name} is on {x.device}, {other_name} on {other.device}; put all on one device"
        )


def check_shape(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    if x.shape != other.shape:
        raise ValueError(
            f"{name} must have {other_name}'s shape {tuple(other.shape)}, got {tuple(x.shape)}"
        )
