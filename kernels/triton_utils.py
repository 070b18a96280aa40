"""What several operators' kernels share: device functions, grids, strides, dtypes of products."""

import functools
from contextlib import AbstractContextManager

import torch
import triton
import triton.language as tl
from torch import Tensor

# Triton compares the globals that a kernel reads at every launch, half a microsecond each, so that
# constants are defaults of device functions; and literals, as its cache knows a kernel by its text.
INTERPRETED: bool = triton.knobs.runtime.interpret
SCRATCH = torch.float32
GRID_LIMIT = 65_535


@triton.jit
def blocks():
    """How many blocks of a sequence the grid has, see `launch.by_blocks`; some may be past it."""
    return tl.num_programs(1) * tl.num_programs(2)


@triton.jit
def block_index():
    return tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)


@triton.jit
def ex2(x, INTERPRETED: tl.constexpr = INTERPRETED):
    """2^x in one instruction; Triton's own guards denormal numbers with three more."""
    if INTERPRETED:
        return tl.exp2(x)
    return tl.inline_asm_elementwise(
        "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def lg2(x, INTERPRETED: tl.constexpr = INTERPRETED):
    """log2(x) in one instruction."""
    if INTERPRETED:
        return tl.log2(x)
    return tl.inline_asm_elementwise(
        "lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def reciprocal(x, INTERPRETED: tl.constexpr = INTERPRETED):
    """1 / x in one instruction."""
    if INTERPRETED:
        return 1.0 / x
    return tl.inline_asm_elementwise(
        "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def smaller(x, y):
    """The smaller of each two; NaN stays NaN, which a GPU's own minimum drops."""
    return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def larger(x, y):
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def load(base, rows, cols, stride, valid_rows, WIDTH: tl.constexpr, PADDED: tl.constexpr, other):
    """``[rows, cols]`` as stored; ``other`` outside the tensor, which is WIDTH wide."""
    mask = (rows < valid_rows)[:, None]
    if WIDTH != PADDED:
        mask = mask & (cols < WIDTH)[None, :]
    return tl.load(base + rows[:, None] * stride + cols[None, :], mask=mask, other=other)


@triton.jit
def store(base, x, rows, cols, stride, valid_rows, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    mask = (rows < valid_rows)[:, None]
    if WIDTH != PADDED:
        mask = mask & (cols < WIDTH)[None, :]
    tl.store(base + rows[:, None] * stride + cols[None, :], x.to(base.dtype.element_ty), mask=mask)


def device_of(x: Tensor) -> AbstractContextManager:
    """Context in which kernels are launched on the device of x."""
    if x.device.type == "cpu" and not triton.knobs.runtime.interpret:
        raise ValueError(
            "the Triton kernels need CUDA tensors, got cpu; leave backend out, or set "
            "TRITON_INTERPRET=1 before Python starts to try them on a CPU, very slowly"
        )
    return torch.cuda.device_of(x)


# Triton's own are wrapped for use in kernels and cost 2 us a call.
def cdiv(x: int, y: int) -> int:
    return -(-x // y)


def power_of_2(x: int) -> int:
    """The next power of 2, at least 16 as in a product of Triton."""
    return max(16, 1 << (x - 1).bit_length())


def by_blocks(rows: int, blocks: int) -> tuple[int, int, int]:
    """Grid of rows times blocks, and a few past them: y and z have 65 535 programs at most.

    In a kernel, `tile.block_index` and `tile.blocks`.
    """
    planes = cdiv(blocks, GRID_LIMIT)
    return rows, cdiv(blocks, planes), planes


@functools.cache
def dot_dtype(dtype: torch.dtype) -> tl.dtype:
    """Type of the operands of a product; sums are float32 always.

    float32 means tf32. float16 is widened: states exceed its range. Triton's interpreter
    miscomputes products of bfloat16.
    """
    return tl.bfloat16 if dtype == torch.bfloat16 and not INTERPRETED else tl.float32


def by_tokens(x: Tensor) -> Tensor:
    """x ``[B, N, H, D]``, copied unless channels are neighbours and so are batch entries' tokens.

    What a split of a projection ``[B, N, C]`` gives is never copied.
    """
    batch, num_tokens, _, width = x.shape
    together = batch == 1 or x.stride(0) == num_tokens * x.stride(1)
    return x if together and (width == 1 or x.stride(3) == 1) else x.contiguous()


def strides(*tensors: Tensor) -> tuple[int, ...]:
    """Token and head stride of each."""
    return tuple(stride for x in tensors for stride in x.stride()[1:3])
