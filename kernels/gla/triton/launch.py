"""Launches the kernels: sizes, scratch memory, and one fixed configuration per shape."""

import math
from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from ...triton_utils import (
    SCRATCH,
    by_blocks,
    by_tokens,
    cdiv,
    device_of,
    dot_dtype,
    power_of_2,
    strides,
)
from .backward import exact_gradient_kernel, gradient_kernel
from .forward import output_kernel
from .states import FACTORS, local_kernel, scan_kernel, segment_kernel

CHUNK = 64  # tokens, of the forward pass; and of what takes one launch, see `largest_chunk`
GRADIENT_CHUNK = 32  # of the backward pass and of operands of four bytes: registers are scarce
KEY_BLOCK = 32
MIN_PROGRAMS = 528  # of a scan, four for each multiprocessor of an H100 or H200
SCAN_ENTRIES = 2048  # of a state that a program, one warp, walks with at most ...
MAX_PARTS = 4  # ... divided into so many parts at most, for more programs


class Plan(NamedTuple):
    """Sizes of one call; NT chunks of BT tokens, in ``segments`` runs of ``per_segment`` chunks."""

    BT: int
    NT: int
    KP: int
    VP: int
    BK: int
    per_segment: int
    segments: int
    wide: bool  # operands of products take four bytes


def largest_chunk(wide: bool, width: int) -> int:
    """Tokens of a chunk; fewer where registers and the 99 KB of GPUs such as the L40 are short."""
    return GRADIENT_CHUNK if wide and width > 64 else CHUNK


def make_plan(q: Tensor, v: Tensor, segments: int | None = None, grad: bool = False) -> Plan:
    """Chunk, paddings and segments from the shapes alone; ``segments`` forces about so many."""
    batch, num_tokens, heads, width = q.shape
    wide = q.dtype != torch.bfloat16
    chunk = power_of_2(num_tokens)
    if chunk > largest_chunk(wide, max(width, v.shape[-1])):
        chunk = GRADIENT_CHUNK if grad or wide else CHUNK
    chunks = cdiv(num_tokens, chunk)
    padded = power_of_2(width)
    if segments is None:
        # each is walked through twice, and all of them once: the fewest steps in turn
        segments = min(cdiv(MIN_PROGRAMS, 2 * batch * heads), math.isqrt(2 * chunks))
    per_segment = cdiv(chunks, min(max(segments, 1), chunks))
    return Plan(
        BT=chunk,
        NT=chunks,
        KP=padded,
        VP=power_of_2(v.shape[-1]),
        BK=min(padded, KEY_BLOCK),
        per_segment=per_segment,
        segments=cdiv(chunks, per_segment),
        wide=wide,
    )


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Type in which states are kept: that of the products they enter."""
    return torch.bfloat16 if dot_dtype(dtype) == tl.bfloat16 else SCRATCH


def options(kernel: str, plan: Plan) -> dict[str, int]:
    """Warps of an instance of a kernel, pipeline stages, and (N) how many chunks it walks through.

    Few warps for narrow heads, so that no tile is done twice over. Four of them for 64 tokens bring
    in wgmma, which Triton has miscompiled: only where two would spill registers.
    """
    narrow = plan.KP <= 16 and plan.VP <= 32  # HierViG's; ViG's are 32 and 64
    if max(plan.KP, plan.VP) > 64:
        warps = 8
    elif kernel == "local":
        warps = (max(plan.BT // 32, 1) if narrow else 2) * (1 + plan.wide)
    elif kernel == "gradient":
        warps = 4 if plan.BT == CHUNK or not narrow else 2
    else:
        warps = 2 if narrow else 4
    chosen = {"num_warps": warps, "num_stages": 1}
    if kernel == "gradient":
        chosen["maxnreg"] = 255  # all that there are; else ptxas takes 32 for wide heads on sm_80
    if kernel == "gradient":
        return chosen
    return {**chosen, "N": 16 if kernel == "exact" else 8}


def _row_strides(dq: Tensor, dk: Tensor, dv: Tensor, dgate_f: Tensor, dgate_b: Tensor):
    """Token strides of q's and k's gradients, of v's, and of both gates'."""
    grads = (dq, dk, dv, dgate_f, dgate_b)
    heads = all(x.shape[2] == 1 or x.stride(2) == x.shape[3] for x in grads)
    pairs = dq.stride(1) == dk.stride(1) and dgate_f.stride(1) == dgate_b.stride(1)
    if not (heads and pairs and all(by_tokens(x) is x for x in grads)):
        raise ValueError(f"the kernel cannot write to strides {[x.stride() for x in grads]}")
    return dq.stride(1), dv.stride(1), dgate_f.stride(1)


class _States(NamedTuple):
    """Scratch of one pass; None where a sequence is one chunk. Rows are B H."""

    states: Tensor | None = None  # [2, rows, NT, KP, VP] as they enter, decayed to the middle
    dstates: Tensor | None = None  # the same of the gradients of those that leave
    flows: Tensor | None = None  # [2, rows, NT, KP], see `scan_kernel`
    factors: Tensor | None = None  # [2, rows, NT, FACTORS, KP] decay of a chunk and of its halves
    flags: Tensor | None = None  # [rows, NT, KP / BK] whether a chunk has the anchored range


def _scan(
    own: Tensor, factors: Tensor, per_segment: int, grad: bool,
    entering: Tensor | None = None, flows: Tensor | None = None,
) -> None:  # fmt: skip
    """Turns the chunks' own states into those that enter, in place.

    Args:
        own, factors: see `_States`.
        per_segment: chunks of a segment.
        grad: these are gradients: the directions run the other way.
        entering, flows: the states, and where flows go.
    """
    _, rows, chunks, padded, v_padded = own.shape
    segments = cdiv(chunks, per_segment)
    missing = cdiv(MIN_PROGRAMS, 2 * rows * segments)
    parts = min(1 << (missing - 1).bit_length(), MAX_PARTS)
    per_program = min(padded, max(SCAN_ENTRIES // v_padded, 1))
    per_program = max(per_program // parts, 1)
    grid = (rows, 2 * segments, padded // per_program)
    sizes = dict(GRAD=grad, R=per_program, KP=padded, VP=v_padded, num_warps=1)
    # few programs wait for memory, many need the instructions
    sizes["PREFETCH"] = 4 if segments > 1 else 1
    carries = None
    if segments > 1:
        carries = torch.empty(2, rows, segments, padded, v_padded, dtype=SCRATCH, device=own.device)
        end_factors = torch.empty(
            2, rows, segments, FACTORS, padded, dtype=SCRATCH, device=own.device
        )
        segment_kernel[grid](own, factors, carries, end_factors, chunks, per_segment, **sizes)
        _scan(carries, end_factors, segments, grad)
    scan_kernel[grid](
        own, factors, carries, entering, flows, chunks, per_segment,
        FLOWS=flows is not None, SEGMENTED=segments > 1, **sizes,
    )  # fmt: skip


def _states(
    k: Tensor, v: Tensor, gates: list[Tensor], plan: Plan, scale: float,
    q: Tensor | None = None, grad: Tensor | None = None,
) -> _States:  # fmt: skip
    """States that enter the chunks; with q and the output's gradient also theirs."""
    if plan.NT == 1:
        return _States()
    batch, num_tokens, heads, width = k.shape
    rows = (batch * heads, plan.NT)

    def scratch(*shape: int, dtype: torch.dtype = SCRATCH) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=k.device)

    full = (2, *rows, plan.KP, plan.VP)
    states = scratch(*full, dtype=state_dtype(k.dtype))
    dstates = flows = None
    others = ()
    if q is not None:
        dstates = torch.empty_like(states)
        flows = scratch(2, *rows, plan.KP)
        others = (q, grad)
    factors = scratch(2, *rows, FACTORS, plan.KP)
    flags = scratch(*rows, plan.KP // plan.BK, dtype=torch.int32)
    settings = options("local", plan)
    grid = by_blocks(rows[0] * (plan.KP // plan.BK), cdiv(plan.NT, settings["N"]))
    local_kernel[grid](
        k, v, *gates, q, grad, states, dstates, factors, flags, num_tokens, heads, plan.NT, scale,
        strides(k, v, *gates, *(others or (k, v))), GRAD=q is not None,
        **_sizes(plan, width, v), **settings,
    )  # fmt: skip
    _scan(states, factors, plan.per_segment, grad=False)
    if q is not None:
        _scan(dstates, factors, plan.per_segment, True, states, flows)
    return _States(states, dstates, flows, factors, flags)


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

    Inputs are read in place where `by_tokens` can, sums are float32. The result has v's dtype
    unless ``out_dtype`` says otherwise. ``segments`` overrides into how many runs a sequence is
    cut, for tests.
    """
    batch, num_tokens, heads, width = q.shape
    out = torch.empty(v.shape, dtype=out_dtype or v.dtype, device=v.device)
    if batch == 0:
        return out
    plan = make_plan(q, v, segments)
    scale = 0.5 / math.sqrt(width)
    q, k, v, *gates = map(by_tokens, (q, k, v, gate_f, gate_b))
    settings = options("output", plan)
    with device_of(q):
        s = _states(k, v, gates, plan, scale)
        output_kernel[by_blocks(batch * heads, cdiv(plan.NT, settings["N"]))](
            q, k, v, *gates, out, s.states, s.factors, s.flags, num_tokens, heads, plan.NT, scale,
            strides(q, k, v, *gates), STATES=plan.NT > 1, **_sizes(plan, width, v), **settings,
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
    out: tuple[Tensor, ...] | None = None,
    segments: int | None = None,
) -> tuple[Tensor, ...]:
    """Gradients of q, k, v and both gate logits from the output's, each like its input, contiguous.

    Or in ``out``, parts of joined gradients: heads are neighbours, those of q and k have the same
    strides, and so have those of both gates. The states are computed again from the inputs. The
    result is the same in every run.
    """
    batch, num_tokens, heads, width = q.shape
    grads = out or tuple(
        torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v, gate_f, gate_b)
    )
    if batch == 0:
        return grads
    plan = make_plan(q, v, segments, grad=True)
    scale = 0.5 / math.sqrt(width)
    grad, q, k, v, *gates = map(by_tokens, (grad, q, k, v, gate_f, gate_b))
    tensors = (grad, q, k, v, *gates, tuple(grads))
    sizes = (
        num_tokens, heads, plan.NT, scale,
        (*strides(grad, q, k, v, *gates), *_row_strides(*grads)),
    )  # fmt: skip
    with device_of(q):
        s = tuple(_states(k, v, gates, plan, scale, q, grad))
        gradient_kernel[by_blocks(batch * heads, plan.NT)](
            *tensors, s[:3], *sizes, STATES=plan.NT > 1,
            **_sizes(plan, width, v), **options("gradient", plan),
        )  # fmt: skip
        if plan.NT > 1:
            settings = options("exact", plan)
            exact_gradient_kernel[by_blocks(batch * heads, cdiv(plan.NT, settings["N"]))](
                *tensors, s, *sizes, **_sizes(plan, width, v), **settings
            )
    return grads


def _sizes(plan: Plan, width: int, v: Tensor) -> dict:
    return dict(
        K=width,
        V=v.shape[-1],
        BT=plan.BT,
        BK=plan.BK,
        KP=plan.KP,
        VP=plan.VP,
        DOT=dot_dtype(v.dtype),
    )
