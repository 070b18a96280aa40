"""What runs here and why: `python -m vig_mm.kernels`. Needs torch alone.

Where there is a GPU, compiles and runs each operator, forward and backward, on a small input, and
compares it with plain PyTorch in float64. Exit status 1: a result is wrong.
"""

import importlib.metadata
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import bidirectional_gla, readiness
from .dispatch import TRITON_INSTALLED, choose_backend
from .feed_forward import feed_forward
from .locality_gate import gate_projection, gate_projection_backward, locality_gate
from .norm_conv import norm_conv, norm_conv_backward

BOUNDS = {torch.float32: 5e-3, torch.float16: 5e-3, torch.bfloat16: 2e-2}
"""Relative errors that rounding explains: float32 is multiplied as tf32."""
BATCH, HW, HEADS, WIDTH = 2, (7, 10), 2, 32  # 70 tokens: more than a chunk
TOKENS, CHANNELS = HW[0] * HW[1], HEADS * WIDTH
EPS = 1e-6


def main() -> int:
    device, why = describe()
    for line in why:
        print(line)
    print()
    wrong = [name for name in OPERATORS if not report(name, device)]
    if wrong:
        print(f"\nwrong results: {', '.join(wrong)}; please report this with all lines above")
    return 1 if wrong else 0


def describe() -> tuple[str | None, list[str]]:
    """Device to run the kernels on, None if they cannot run, and what was found here, in words."""
    lines = [f"torch         {torch.__version__}, CUDA {torch.version.cuda or 'none'}"]
    if not TRITON_INSTALLED:
        lines.append("triton        not installed (pip install triton)")
    else:
        try:
            lines += describe_triton()
        except Exception as error:  # a broken installation must not hide the rest
            lines.append(f"triton        does not work: {readiness.explain(error)}")
    device = None
    if torch.cuda.is_available():
        capability = torch.cuda.get_device_capability()
        version = ".".join(map(str, capability))
        lines.append(f"GPU           {torch.cuda.get_device_name()}, compute capability {version}")
        backend, reason = choose_backend("torch", "cuda", capability, torch.float32, {}, False)
        reason = readiness.obstacle() if backend == "triton" else reason
        device = None if reason else "cuda"
    else:
        reason = "there is no CUDA GPU that torch can use"
        if TRITON_INSTALLED and interpreted():
            device, reason = "cpu", "there is no CUDA GPU, but TRITON_INTERPRET=1: interpreted here"
    lines.append(f"kernels       {reason or 'can run'}")
    return device, lines


def describe_triton() -> list[str]:
    folder = readiness.cache_folder()
    problems = (readiness.no_compiler(), readiness.no_header(), readiness.no_cache())
    found = (readiness.compiler(), readiness.header(), folder or "none: another kind of cache")
    names = ("C compiler", "Python.h", "cache folder")
    lines = [f"triton        {importlib.metadata.version('triton')}"]
    for name, problem, path in zip(names, problems, found, strict=True):
        lines.append(f"{name:13} {problem or path}")
    return lines


def interpreted() -> bool:
    try:
        import triton

        return triton.knobs.runtime.interpret
    except Exception:
        return False


def report(name: str, device: str | None) -> bool:
    """Print a line on an operator; False if one of its results is wrong."""
    function, plain, shapes = OPERATORS[name]
    if device is None:
        print(f"{name:18} {plain}")
        return True
    words, right = [], True
    for dtype, bound in BOUNDS.items():
        tensors = inputs(shapes, device, dtype)
        label = str(dtype).removeprefix("torch.")
        try:
            found = function("triton", *tensors)
        except Exception as error:
            words.append(f"{label} {plain}, as the kernel fails: {readiness.explain(error)}")
            continue
        expected = function(plain, *(t.double() for t in tensors))
        worst = torch.tensor(list(map(relative_error, found, expected))).max()  # NaN stays
        fits = bool(worst <= bound)
        words.append(f"{label} {worst:.1e} {'ok' if fits else f'WRONG, more than {bound}'}")
        right &= fits
    print(f"{name:18} triton   {'   '.join(words)}", flush=True)
    return right


def inputs(shapes: tuple[tuple[int, ...], ...], device: str, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]


def relative_error(x: Tensor, reference: Tensor) -> float:
    return ((x.double() - reference).norm() / reference.norm()).item()


def differentiated(function: Callable[..., Tensor]) -> Callable[..., list[Tensor]]:
    """(backend, *tensors, gradient of the output) -> output and gradients of the tensors."""

    def run(backend: str, *tensors: Tensor) -> list[Tensor]:
        leaves = [t.detach().requires_grad_() for t in tensors[:-1]]
        out = function(backend, *leaves)
        return [out.detach(), *torch.autograd.grad(out, leaves, tensors[-1])]

    return run


def projected(backend: str, *tensors: Tensor) -> list[Tensor]:
    """The locality gate with the layer behind it."""
    o, local, gate, g_weight, l_weight, weight, x, scale, grad = tensors
    dgate = torch.empty_like(gate)
    settings: Any = dict(eps=EPS, act=True, backend=backend)
    out = gate_projection(o, local, gate, g_weight, l_weight, weight, x, scale, **settings)
    gradients = gate_projection_backward(
        grad, o, local, gate, g_weight, l_weight, weight, scale, dgate, **settings
    )
    return [out, *gradients, dgate]


def convolved(backend: str, *tensors: Tensor) -> list[Tensor]:
    norm_w, norm_b, taps, x, residual, grad = tensors
    settings: Any = dict(eps=EPS, act=True, backend=backend)
    out, stats = norm_conv(x, None, norm_w, norm_b, taps, HW, dtype=x.dtype, **settings)
    return [
        out, *norm_conv_backward(grad, x, stats, norm_w, norm_b, taps, residual, HW, **settings)
    ]  # fmt: skip


@differentiated
def fed_forward(
    backend: str, x: Tensor, norm_w: Tensor, norm_b: Tensor, w_in: Tensor, w_out: Tensor
) -> Tensor:
    scale = torch.linspace(1, 2, len(x), device=x.device, dtype=x.dtype)
    layers = (w_in / 8, w_out / 8)
    return feed_forward(x, norm_w, norm_b, *layers, scale, eps=EPS, dtype=x.dtype, backend=backend)


HEAD, VECTOR = (BATCH, TOKENS, HEADS, WIDTH), (CHANNELS,)
X = (BATCH, TOKENS, CHANNELS)


def half(channels: int) -> tuple[tuple[int, ...], ...]:
    """Shapes of the arguments of `fed_forward`, and of the result's gradient."""
    x = (BATCH, TOKENS, channels)
    return x, (channels,), (channels,), (4 * channels, channels), (channels, 2 * channels), x


# name -> (backend, tensors) -> results; backend in plain PyTorch; shapes of the tensors
OPERATORS: dict[str, tuple[Callable[..., list[Tensor]], str, tuple[tuple[int, ...], ...]]] = {
    "bidirectional_gla": (
        differentiated(lambda backend, *t: bidirectional_gla(*t, backend=backend)),
        "chunked",
        (HEAD,) * 6,
    ),
    "locality_gate": (
        differentiated(lambda backend, *t: locality_gate(*t, act=True, backend=backend)),
        "torch",
        (*(HEAD,) * 3, (WIDTH,), (WIDTH,), HEAD),
    ),
    "gate_projection": (
        projected,
        "torch",
        (*(HEAD,) * 3, (WIDTH,), (WIDTH,), (CHANNELS, CHANNELS), X, (BATCH,), X),
    ),
    "norm_conv": (convolved, "torch", (VECTOR, VECTOR, (CHANNELS, 1, 3, 3), X, X, X)),
    "feed_forward": (fed_forward, "torch", half(CHANNELS)),
    "feed_forward_wide": (fed_forward, "torch", half(5 * CHANNELS)),
}

if __name__ == "__main__":
    sys.exit(main())
