"""Record what the operators launch, on `meta` tensors, and compile it for any GPU.

As `meta` tensors hold no values, this also shows that no launch depends on one.
"""

from contextlib import ExitStack
from typing import Any, NamedTuple
from unittest import mock

import torch

SETTINGS = ("num_warps", "num_stages", "maxnreg")
TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
}


class Launch(NamedTuple):
    kernel: Any  # a function of triton.jit
    args: tuple
    options: dict  # constants by keyword, and SETTINGS
    grid: tuple[int, ...]

    @property
    def named(self) -> dict[str, Any]:
        """Arguments and constants by name."""
        values = dict(zip(self.kernel.arg_names, self.args))  # noqa: B905 - constants are by keyword
        return {**values, **{k: v for k, v in self.options.items() if k not in SETTINGS}}


class Recorder:
    """Stands in for a kernel in the launch code and notes what it is launched with."""

    def __init__(self, kernel: Any, found: list[Launch]) -> None:
        self.kernel = kernel
        self.found = found

    def __getitem__(self, grid: tuple[int, ...]):
        return lambda *args, **options: self.found.append(
            Launch(self.kernel, args, options, tuple(grid))
        )


def record(
    batch: int, tokens: int, heads: int, width: int, v_width: int, dtype: torch.dtype
) -> dict[str, list[Launch]]:
    """Launches of forward, backward, gate forward and gate backward, as a mixer calls them."""
    from vig_mm.kernels.triton import launch, locality_gate

    passes: dict[str, list[Launch]] = {
        name: [] for name in ("forward", "backward", "gate forward", "gate backward")
    }
    current: list[Launch] = []
    with ExitStack() as stack:
        for module in (launch, locality_gate):
            for name, value in list(vars(module).items()):
                # of Triton's compiler or of its interpreter
                if name.endswith("_kernel") and hasattr(value, "arg_names"):
                    stack.enter_context(mock.patch.object(module, name, Recorder(value, current)))
        qkv = torch.empty(
            batch, tokens, heads * (2 * width + v_width), dtype=dtype, device="meta"
        ).split([heads * width, heads * width, heads * v_width], dim=-1)
        q, k, v = (x.unflatten(-1, (heads, -1)) for x in qkv)
        logits = torch.empty(batch, tokens, 2 * heads * width, dtype=dtype, device="meta")
        gates = [x.unflatten(-1, (heads, -1)) for x in logits.chunk(2, dim=-1)]
        o = torch.empty(batch, tokens, heads, v_width, dtype=dtype, device="meta")
        weight = torch.empty(v_width, device="meta")  # float32, also under autocast
        gate_inputs = (o, torch.empty_like(o), torch.empty_like(o), weight, weight, 1e-6, True)
        calls = (
            lambda: launch.triton_forward(q, k, v, *gates),
            lambda: launch.triton_backward(o, q, k, v, *gates),
            lambda: locality_gate.gate_forward(*gate_inputs),
            lambda: locality_gate.gate_backward(o, *gate_inputs),
        )
        for found, call in zip(passes.values(), calls, strict=True):
            call()
            found += current
            current.clear()
    return passes


def specialize(launch: Launch) -> tuple[dict, dict, dict]:
    """Signature, constants and attributes that Triton compiles a launch with."""
    signature, constants, attributes = {}, {}, {}
    for i, (name, param) in enumerate(
        zip(launch.kernel.arg_names, launch.kernel.params, strict=True)
    ):
        x = launch.named[name]
        special = not param.do_not_specialize
        if isinstance(x, torch.Tensor):
            signature[name] = TYPES[x.dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]
        elif param.is_constexpr or x is None or (special and x == 1 and isinstance(x, int)):
            signature[name] = "constexpr"
            constants[(i,)] = x
        elif isinstance(x, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if x < 2**31 else "i64"
            if special and x % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def compile_launch(launch: Launch, target: int) -> Any:
    """The compiled kernel of a launch on one architecture, 90 for sm_90."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    return triton.compile(
        ASTSource(launch.kernel, *specialize(launch)),
        target=GPUTarget("cuda", target, 32),
        options={name: launch.options[name] for name in SETTINGS if name in launch.options},
    )
