"""Launches the kernels: sizes, scratch memory, and one fixed configuration per shape."""

import math
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .backward import gradient_kernel
from .forward import output_kernel
from .states import segment_kernel, state_kernel

CHUNK = 64
KEY_BLOCK = 32
SCRATCH = torch.float32
MIN_PROGRAMS = 264  # two for each multiprocessor of an H100 or H200


class Plan(NamedTuple):
    """Sizes of one call; M chunks of C tokens in ``segments`` runs of ``per_segment`` chunks."""

    C: int
    M: int
    KP: int
    VP: int
    BK: int
    per_segment: int
    segments: int


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


def largest_chunk(v: Tensor) -> int:
    """The backward kernel's tiles have to fit the 99 KB of GPUs such as the L40 and RTX 4090."""
    return CHUNK // 2 if v.element_size() == 4 and v.shape[-1] > 64 else CHUNK


def make_plan(q: Tensor, v: Tensor, segments: int | None = None) -> Plan:
    """Chunk, paddings and segments from the shapes alone; ``segments`` forces about so many."""
    batch, num_tokens, heads, width = q.shape
    chunk = min(largest_chunk(v), power_of_2(num_tokens))
    chunks = cdiv(num_tokens, chunk)
    if segments is None:
        segments = cdiv(MIN_PROGRAMS, 2 * batch * heads)
    per_segment = cdiv(chunks, min(max(segments, 1), chunks))
    padded = power_of_2(width)
    return Plan(
        C=chunk,
        M=chunks,
        KP=padded,
        VP=power_of_2(v.shape[-1]),
        BK=min(padded, KEY_BLOCK),
        per_segment=per_segment,
        segments=cdiv(chunks, per_segment),
    )


def dot_dtype(dtype: torch.dtype) -> tl.dtype:
    """Type of the operands of a product; sums are float32 always.

    float32 means tf32. float16 is widened: states exceed its range. Triton's interpreter
    miscomputes products of bfloat16.
    """
    if dtype == torch.bfloat16 and not triton.knobs.runtime.interpret:
        return tl.bfloat16
    return tl.float32


def options(kernel: str, plan: Plan) -> dict[str, int]:
    """Warps of an instance of the "state", "output" or "gradient" kernel, and pipeline stages.

    Chosen so that the first two spill no registers on sm_80 and sm_90 (tests compile them all).
    """
    wide = plan.VP > 64
    if kernel == "gradient":
        # maxnreg: all that a thread can have; else ptxas takes 32 for the widest on sm_80
        warps = 8 if plan.C == CHUNK or wide else 4
        return {"num_warps": warps, "num_stages": 1, "maxnreg": 255}
    if plan.C < CHUNK and not wide:
        return {"num_warps": 2, "num_stages": 1}
    # only the state kernel has loads in a loop to fetch ahead
    return {"num_warps": 8 if wide else 4, "num_stages": 2 if kernel == "state" else 1}


class _States(NamedTuple):
    states: Tensor | None = None  # [2, B H, M, KP, VP] in-segment states
    decays: Tensor | None = None  # [2, B H, M, KP] log2 of the decay since the segment's begin
    carries: Tensor | None = None  # [2, B H, segments, KP, VP] states that enter the segments


def _states(
    x: Tensor, y: Tensor, gate_f: Tensor, gate_b: Tensor, plan: Plan, scale: float, grad: bool
) -> _States:
    """States that enter the chunks (x, y = k, v) or gradients of those that leave (q, grad)."""
    if plan.M == 1:
        return _States()
    batch, num_tokens, heads, width = x.shape
    segmented = plan.segments > 1
    rows = (2, batch * heads)

    def scratch(*shape: int) -> Tensor:
        return torch.empty(*rows, *shape, dtype=SCRATCH, device=x.device)

    states = scratch(plan.M, plan.KP, plan.VP)
    decays = ends = end_decays = None
    if segmented:
        decays = scratch(plan.M, plan.KP)
        ends = scratch(plan.segments, plan.KP, plan.VP)
        end_decays = scratch(plan.segments, plan.KP)
    key_blocks = plan.KP // plan.BK
    sizes = dict(GRAD=grad, BK=plan.BK, KP=plan.KP, VP=plan.VP)
    state_kernel[(batch * heads, 2 * plan.segments, key_blocks)](
        x, y, gate_f, gate_b, states, decays, ends, end_decays,
        num_tokens, heads, width, y.shape[-1], plan.M, plan.per_segment, scale,
        *x.stride(), *y.stride(), *gate_f.stride(), *gate_b.stride(),
        SEGMENTED=segmented, C=plan.C, DOT=dot_dtype(x.dtype),
        **options("state", plan), **sizes,
    )  # fmt: skip
    if segmented:
        segment_kernel[(batch * heads, 2, key_blocks)](
            ends, end_decays, plan.segments, num_warps=4, **sizes
        )
    return _States(states, decays, ends)


def triton_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate_f: Tensor,
    gate_b: Tensor,
    *,
    out_dtype: torch.dtype | None = None,
    segments: int | None = None,
) -> Tensor:
    """``[B, N, H, V]``, contiguous, from ``[B, N, H, K]`` (q, k, gate logits) and v.

    Inputs are read in place by their strides, sums and states are float32. The result has v's dtype
    unless ``out_dtype`` says otherwise. ``segments`` overrides into how many runs a sequence is
    cut, for tests.
    """
    batch, num_tokens, heads, width = q.shape
    out = torch.empty(v.shape, dtype=out_dtype or v.dtype, device=v.device)
    if batch == 0:
        return out
    plan = make_plan(q, v, segments)
    scale = 0.5 / math.sqrt(width)
    with device_of(q):
        s = _states(k, v, gate_f, gate_b, plan, scale, grad=False)
        output_kernel[(batch * heads * plan.M,)](
            q, k, v, gate_f, gate_b, out, *s,
            num_tokens, heads, width, v.shape[-1], plan.M, plan.per_segment, plan.segments, scale,
            *q.stride(), *k.stride(), *v.stride(), *gate_f.stride(), *gate_b.stride(),
            **options("output", plan), **_sizes(plan, q.dtype),
        )  # fmt: skip
    return out


def triton_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate_f: Tensor,
    gate_b: Tensor,
    *,
    segments: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and both gate logits from the output's, each like its input, contiguous.

    The states are computed again from the inputs. The result is the same in every run.
    """
    batch, num_tokens, heads, width = q.shape
    inputs = (q, k, v, gate_f, gate_b)
    grads = tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in inputs)
    if batch == 0:
        return grads
    plan = make_plan(q, v, segments)
    scale = 0.5 / math.sqrt(width)
    with device_of(q):
        s = _states(k, v, gate_f, gate_b, plan, scale, grad=False)
        d = _states(q, grad, gate_f, gate_b, plan, scale, grad=True)
        gradient_kernel[(batch * heads * plan.M,)](
            grad, *inputs, *grads, *s, *d,
            num_tokens, heads, width, v.shape[-1], plan.M, plan.per_segment, plan.segments, scale,
            *grad.stride(), *(stride for x in inputs for stride in x.stride()),
            **options("gradient", plan), **_sizes(plan, q.dtype),
        )  # fmt: skip
    return grads


def _sizes(plan: Plan, dtype: torch.dtype) -> dict:
    return dict(
        STATES=plan.M > 1,
        SEGMENTED=plan.segments > 1,
        C=plan.C,
        LEVELS=plan.C.bit_length() - 1,
        BK=plan.BK,
        KP=plan.KP,
        VP=plan.VP,
        DOT=dot_dtype(dtype),
    )
