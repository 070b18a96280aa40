"""Cases of the kernels: against their formulas in float64."""

from collections.abc import Iterator

import references
import torch
from references import gla_truth, truth
from torch import Tensor

from .case import Case, Results
from .under_test import (
    feed_forward,
    launch,
    locality_gate,
    norm,
    norm_conv,
    swiglu,
    triton_projection,
)

BF16, FP16, FP32 = DTYPES = (torch.bfloat16, torch.float16, torch.float32)
NAMES = {BF16: "bf16", FP16: "fp16", FP32: "fp32"}
# operands of tf32 products that are cut off instead of rounded give 1.5e-3 in float32
GLA = {BF16: 1.5e-2, FP16: 2e-3, FP32: 1.2e-3}
ROUNDED = {BF16: 4e-3, FP16: 1e-3, FP32: 1e-5}  # once, of what is stored
EPS = 1e-6


def randn(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g) for shape in shapes]


def put_nan(inputs: tuple, index: int | None) -> None:
    """In the middle of the first entry of an input."""
    if index is not None:
        x = inputs[index]
        x[(0, *(size // 2 for size in x.shape[1:-1]), 0)] = torch.nan


def named(names: str, *results: Tensor) -> Results:
    return dict(zip(names.split(), results, strict=True))


def case(part, run, reference, tolerances, dtype, nan, **sizes) -> Case:
    """``nan``: number of the input that has one, or None; ``sizes``: for the name."""
    text = " ".join(f"{k}={v}" for k, v in sizes.items() if v not in (None, False))
    name = f"{part} {NAMES[dtype]} {text}" + ("" if nan is None else f" NaN in input {nan}")
    return Case(name, run, reference, tolerances[dtype], nan is not None)


# ---------------------------------------------------------------- the operator


def gate_logits(kind: str, shape: tuple[int, ...], seed: int) -> Tensor:
    (x,) = randn(seed, shape)
    u = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    if kind == "extreme":
        return x * 30 - 45
    if kind == "shut":
        return torch.where(u < 0.3, -1000.0, x)
    if kind == "infinite":
        return torch.where(u < 0.1, -torch.inf, torch.where(u > 0.8, torch.inf, x))
    if kind == "mixed":  # some chunks beyond the range of anchored products
        x[:, 64:128] -= 200
    return x


def gla(dtype, B, T, H, K, V, gates=None, split=True, segments=None, nan=None):
    qk, v = 2 * H * K, H * V
    (qkv, grad) = (x.to(dtype) for x in randn(T, (B, T, qk + v), (B, T, H, V)))
    logits = torch.cat([gate_logits(gates, (B, T, H * K), seed) for seed in (1, 2)], -1).to(dtype)
    parts = (*qkv.split([H * K, H * K, v], -1), *logits.chunk(2, -1))  # as a mixer has them
    inputs = tuple(x.unflatten(-1, (H, -1)) for x in parts)
    if not split:
        inputs = tuple(x.contiguous() for x in inputs)
    put_nan(inputs, nan)
    names = "o dq dk dv dgf dgb"

    def run(_) -> Results:
        out = launch.triton_forward(*inputs, segments=segments)
        return named(names, out, *launch.triton_backward(grad, *inputs, segments=segments))

    def reference() -> Results:
        return named(names, *gla_truth(inputs, grad))

    sizes = dict(B=B, T=T, H=H, K=K, V=V, gates=gates, segments=segments, split=split)
    return case("gla", run, reference, GLA, dtype, nan, **sizes)


def operator_cases(_) -> Iterator[Case]:
    for dtype in DTYPES:
        for K, V in ((16, 32), (32, 64)):
            for T in (1, 17, 49, 64, 65, 196, 300):
                B, H = (2, 3) if T in (49, 65) else (1, 2)
                yield gla(dtype, B, T, H, K, V)


def exact_cases(_) -> Iterator[Case]:
    """Gates beyond the range of anchored products."""
    for dtype in DTYPES:
        for gates in ("extreme", "shut"):
            yield gla(dtype, 1, 49, 2, 32, 64, gates)
            yield gla(dtype, 1, 130, 1, 16, 32, gates)
        yield gla(dtype, 1, 200, 1, 32, 64, "mixed")
        for T, K, V in ((17, 16, 32), (40, 32, 64), (100, 16, 32)):
            yield gla(dtype, 1, T, 1, K, V, "infinite")
    yield gla(FP32, 1, 70, 1, 64, 64, "mixed")


def width_cases(_) -> Iterator[Case]:
    for dtype in DTYPES:
        for K, V in ((20, 17), (24, 40), (128, 128)):
            for T in (33, 150):
                yield gla(dtype, 1, T, 2 if K < 100 else 1, K, V, split=K != 24)
    yield gla(BF16, 1, 100, 2, 1, 1)
    yield gla(BF16, 1, 100, 1, 17, 19)  # pointers that no 16 divides
    yield gla(FP16, 1, 40, 3, 33, 65)
    yield gla(BF16, 1, 100, 1, 64, 128, "mixed")
    yield gla(FP16, 1, 80, 1, 128, 64, "mixed")
    # what takes most shared memory
    for dtype, K, V in ((FP16, 32, 128), (FP32, 32, 64), (FP32, 128, 64)):
        yield gla(dtype, 1, 64, 1, K, V)


def segment_cases(_) -> Iterator[Case]:
    for dtype in (BF16, FP32):
        for segments in (1, 2, 5, 100):
            yield gla(dtype, 1, 450, 1, 16, 32, segments=segments)
    yield gla(BF16, 1, 450, 1, 32, 64, "mixed", segments=3)


# ---------------------------------------------------------------- the parts of a block


def gate_inputs(dtype, B, T, H, D):
    (packed, *others) = randn(T, (B, T, 3 * H * D), *[(B, T, H, D)] * 3, (D,), (D,))
    o, local, grad = (x.to(dtype) for x in others[:3])
    gate = packed.to(dtype)[..., H * D : 2 * H * D].unflatten(-1, (H, D))
    return (o, local, gate, *others[3:]), grad


def blend(dtype, B, T, H, D, act=False, nan=None):
    inputs, grad = gate_inputs(dtype, B, T, H, D)
    put_nan(inputs, nan)
    scale = torch.linspace(0.5, 1.5, B)
    names = "out do dlocal dgate dwg dwl"

    def run(emulator) -> Results:
        out = locality_gate.gate_forward(*inputs, EPS, act)
        found = named(names, out, *locality_gate.gate_backward(grad, *inputs, EPS, act))
        room = emulator.poisoned(torch.empty(B, T, 2 * H * D + 16, dtype=dtype))
        into = room[..., 8 : 8 + H * D].unflatten(-1, (H, D))
        out, do, dlocal, sums = locality_gate.gate_backward_into(
            grad, *inputs, scale, into, EPS, act
        )
        scaled = named(names, out, do, dlocal, into, *sums[:2].sum(1))
        scaled["dbias"] = sums[2].flatten()[None]
        return found | {f"scaled {key}": x for key, x in scaled.items()}

    def reference() -> Results:
        def plain(*x):
            return references.locality_gate(*x, EPS, act)

        def scaled(*x):
            return plain(*x) * scale.double()[:, None, None, None]

        again = named(names, *truth(scaled, inputs, grad))
        again["dbias"] = again["dgate"].sum((0, 1)).flatten()[None]
        found = named(names, *truth(plain, inputs, grad))
        return found | {f"scaled {key}": x for key, x in again.items()}

    return case("locality gate", run, reference, ROUNDED, dtype, nan, B=B, T=T, H=H, D=D, act=act)


def projection(dtype, B, T, H, D, C, act=False, scaled=False, nan=None):
    inputs, _ = gate_inputs(dtype, B, T, H, D)
    put_nan(inputs, nan)
    x, weight = randn(C, (B, T, C), (C, H * D))
    weight = (weight / (H * D) ** 0.5).to(dtype)
    scale = torch.linspace(0.5, 1.5, B) if scaled else None

    def run(_) -> Results:
        out = triton_projection.gate_projection(*inputs, weight, x, scale, EPS, act)
        return {"out": out}

    def reference() -> Results:
        y = references.locality_gate(*(t.double() for t in inputs), EPS, act)
        y = y.flatten(2) @ weight.double().mT
        return {"out": x.double() + (y * scale.double()[:, None, None] if scaled else y)}

    sizes = dict(B=B, T=T, H=H, D=D, C=C, act=act, scaled=scaled)
    return case("gate projection", run, reference, ROUNDED, dtype, nan, **sizes)


NORM = ("out", "dx", "again", "dw", "db")  # the last one with a bias


def normed(dtype, M, C, center=True, nan=None):
    x, residual, weight, bias, grad = randn(C, (M, C), (M, C), (C,), (C,), (M, C))
    bias, grad = (bias if center else None), grad.to(dtype)
    put_nan((x,), nan)

    def run(_) -> Results:
        out = norm.norm(x, weight, bias, EPS, dtype)
        dx, again, dws = norm.norm_backward(grad, x, weight, bias, residual, EPS)
        return dict(zip(NORM, (out, dx, again, *dws[:, None]), strict=False))

    def reference() -> Results:
        inputs = (x, weight, bias)
        out, dx, *dws = truth(lambda *t: references.norm(*t, EPS), inputs, grad)
        dx = dx + residual.double()
        return dict(zip(NORM, (out, dx, out, *(t[None] for t in dws)), strict=False))

    return case("norm", run, reference, ROUNDED, dtype, nan, M=M, C=C, center=center)


def convolved(dtype, B, hw, C, center=True, act=False, nan=None):
    shape = (B, hw[0] * hw[1], C)
    x, residual, grad, weight, bias, taps = randn(C, *[shape] * 3, (C,), (C,), (C, 1, 3, 3))
    bias, grad = (bias if center else None), grad.to(dtype)
    put_nan((x,), nan)

    def run(_) -> Results:
        stats = norm_conv.statistics(x, center, EPS)
        args = (x, stats, weight, bias, taps)
        out = norm_conv.conv(*args, *hw, act, dtype)
        dx, sums = norm_conv.conv_backward(grad, *args, residual, *hw, act)
        dtaps = sums[:-2].mT.reshape(1, *taps.shape)
        return named("out dx dw db dtaps", out, dx, *sums[-2:, None], dtaps)

    def reference() -> Results:
        inputs = (x, weight, bias, taps)
        out, dx, *dws = truth(lambda *t: references.norm_conv(*t, hw, act, EPS), inputs, grad)
        names = "out dx dw db dtaps" if center else "out dx dw dtaps"
        return named(names, out, dx + residual.double(), *(t[None] for t in dws))

    sizes = dict(B=B, hw=hw, C=C, center=center, act=act)
    tolerances = {BF16: 6e-3, FP16: 1e-3, FP32: 1e-5}
    return case("norm and convolution", run, reference, tolerances, dtype, nan, **sizes)


def gated(dtype, B, N, width, nan=None):
    x, grad = (t.to(dtype) for t in randn(N, (B, N, 2 * width), (B, N, width)))
    scale = torch.linspace(0.5, 1.5, B) if B > 1 else None
    put_nan(x.chunk(2, -1), nan)

    def run(_) -> Results:
        out = swiglu.swiglu(x)
        return named("out dx again", out, *swiglu.swiglu_backward(grad, x, scale))

    def reference() -> Results:
        s = 1.0 if scale is None else scale.double()[:, None, None]
        again, dx = truth(lambda x: references.swiglu(x) * s, (x,), grad)
        return {"out": references.swiglu(x.double()), "again": again, "dx": dx}

    return case("swiglu", run, reference, ROUNDED, dtype, nan, B=B, N=N, width=width)


def fused(dtype, M, C, width, center=True, scaled=False, nan=None):
    x, grad, norm_w, norm_b, w_in, w_out = randn(
        C, (M, C), (M, C), (C,), (C,), (2 * width, C), (C, width)
    )
    norm_b = norm_b if center else None
    w_in, w_out = (w_in / C**0.5).to(dtype), (w_out / width**0.5).to(dtype)
    scale = torch.linspace(0.5, 1.5, 2 if M % 2 == 0 else 1) if scaled else None
    put_nan((x,), nan)
    names = "out dx dinside hidden normed dw" + (" db" if center else "")

    def run(_) -> Results:
        args = (x, norm_w, norm_b, w_in, w_out, scale, EPS)
        out = feed_forward.fused(*args)
        if C > feed_forward.MAX_GRADIENT_CHANNELS:
            return {"out": out}
        *results, dws = feed_forward.fused_backward(grad, *args)
        return named(names, out, *results, *dws[:, None])

    def reference() -> Results:
        s = 1.0 if scale is None else scale.double().repeat_interleave(M // len(scale))[:, None]
        leaves = [t.double().requires_grad_() for t in (x, norm_w, norm_b) if t is not None]
        normal = references.norm(*leaves, *[None] * (3 - len(leaves)), EPS)
        inside = normal @ w_in.double().mT
        hidden = references.swiglu(inside)
        out = leaves[0] + s * (hidden @ w_out.double().mT)
        dinside, dx, *dws = torch.autograd.grad(out, [inside, *leaves], grad.double())
        return named(names, out, dx, dinside, hidden * s, normal, *(t[None] for t in dws))

    sizes = dict(M=M, C=C, width=width, center=center, scaled=scaled)
    tolerances = {BF16: 1e-2, FP16: 2e-3, FP32: 1e-4}
    return case("feed-forward", run, reference, tolerances, dtype, nan, **sizes)


def part_cases(_) -> Iterator[Case]:
    for dtype in DTYPES:
        for sizes, act in (((2, 49, 3, 32), False), ((2, 70, 3, 64), True), ((1, 200, 2, 24), True),
                           ((1, 5, 2, 100), False)):  # fmt: skip
            yield blend(dtype, *sizes, act)
        yield projection(dtype, 2, 49, 3, 32, 96, False, True)
        yield projection(dtype, 1, 70, 3, 64, 192, True, False)
        yield projection(dtype, 2, 30, 2, 24, 300, False, True)
        for M, C, center in ((50, 96, True), (70, 192, False), (9, 768, True), (3, 1500, False),
                             (200, 20, True)):  # fmt: skip
            yield normed(dtype, M, C, center)
        yield convolved(dtype, 2, (7, 7), 96, True, False)
        yield convolved(dtype, 1, (14, 14), 48, False, True)
        yield convolved(dtype, 2, (5, 9), 40, True, True)
        yield convolved(dtype, 1, (1, 1), 32, True, False)
        yield convolved(dtype, 1, (2, 40), 200, False, False)
        for B, N, width in ((2, 49, 256), (1, 30, 100), (2, 5, 520), (1, 1, 17)):
            yield gated(dtype, B, N, width)
        yield fused(dtype, 100, 96, 72, True, True)
        yield fused(dtype, 70, 192, 40, False, False)
        yield fused(dtype, 40, 128, 50, True, False)
        yield fused(dtype, 33, 192 if dtype == FP32 else 256, 32, False, True)
        yield fused(dtype, 20, 20, 24, True, True)


# ---------------------------------------------------------------- NaN, and what the tests run


def nan_cases(_) -> Iterator[Case]:
    """NaN in any input stays NaN, in its entry of the batch; and without it all is right."""
    for dtype in DTYPES:
        for nan in (None, *range(5)):
            yield gla(dtype, 2, 17, 1, 16, 32, nan=nan)
            yield from small_parts(dtype, nan)


def small_parts(dtype, nan, width=32) -> Iterator[Case]:
    """Of the operators with an input of that number."""
    if nan in (None, 0, 1, 2):
        yield blend(dtype, 2, 5, 1, width, nan=nan)
        yield projection(dtype, 2, 5, 1, width, 32, nan=nan)
    if nan in (None, 0, 1):
        yield gated(dtype, 2, 5, width, nan=nan)
    if nan in (None, 0):
        yield normed(dtype, 9, width, nan=nan)
        yield convolved(dtype, 2, (3, 3), width, act=dtype == BF16, nan=nan)
        yield fused(dtype, 20, width, 24, scaled=True, nan=nan)


def quick_cases(capability) -> Iterator[Case]:
    """Every kernel in both passes, in few compilations: what the tests run.

    float16 on sm_80 alone and float32 on sm_90, of widths that are no power of 2, and one input
    with NaN: that the kernels keep it in the others shows the interpreter, too, and that minima and
    maxima do, the compiled code (tests/test_kernels).
    """
    for nan in (None, 3):
        yield gla(BF16, 1, 130, 1, 32, 64, "mixed", nan=nan)
    yield gla(FP32, 1, 100, 1, 16, 32, segments=2)
    yield gla(BF16, 2, 17, 1, 16, 32)
    yield from small_parts(BF16, None)
    other = FP16 if capability == 80 else FP32
    yield gla(other, 2, 17, 1, 20, 17, nan=3)
    yield from small_parts(other, 0, width=20)
