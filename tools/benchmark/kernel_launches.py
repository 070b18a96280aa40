"""Record what the operators launch, on `meta` tensors, and compile it for any GPU.

    python tools/benchmark/kernel_launches.py [--batch 128] [--autocast]

prints what a block of each of ViG-H-T's stages launches, Triton's kernels and torch's own. As
`meta` tensors hold no values, this also shows that no launch depends on one.
"""

import argparse
import importlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

PACKAGE = "vig_mm.kernels"
WITH_KERNELS = ("feed_forward.triton", "gla.triton", "norm_conv.triton")
WITH_KERNELS += ("locality_gate.triton_projection",)
NO_LAUNCH = ("detach", "alias", "_unsafe_view", "lift_fresh", "set_")
SETTINGS = ("num_warps", "num_stages", "maxnreg")
TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
TYPES |= {torch.int32: "*i32"}


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


@contextmanager
def recorded(found: list[Launch]) -> Iterator[None]:
    """Kernels of all modules that are imported note their launches in ``found``."""
    with ExitStack() as stack:
        for path, module in list(sys.modules.items()):
            for name, value in list(vars(module).items()) if path.startswith(PACKAGE) else ():
                # of Triton's compiler or of its interpreter
                if name.endswith("_kernel") and hasattr(value, "arg_names"):
                    stack.enter_context(mock.patch.object(module, name, Recorder(value, found)))
        yield


class Operators(TorchDispatchMode):
    """Notes torch's operators that launch a kernel, and runs this package's on `meta` tensors."""

    def __init__(self, found: list) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if hasattr(func, "__wrapped__"):  # by `kernels.dispatch.operator`
            with self:
                return func.__wrapped__(*args, **(kwargs or {}))
        if func._can_decompose():  # composite ones arrive whole from inside of the above
            with self:
                return func.decompose(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func is torch.ops.aten._foreach_copy_.default:
            # one launch for tensors alike, else torch copies them one by one
            alike = all(len({x.dtype for x in tensors}) == 1 for tensors in args[:2])
            alike &= all(x.stride() == y.stride() for x, y in zip(*args[:2], strict=True))
            self.found += [name] * (1 if alike else len(args[0]))
        elif not (func.is_view or name in NO_LAUNCH or name.startswith(("empty", "new_empty"))):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def record_block(
    block: nn.Module, batch: int, hw: tuple[int, int], dtype: torch.dtype | None = None
) -> dict[str, list[str]]:
    """Names of all that a block launches, Triton's kernels and torch's: in inference, in a
    training's forward pass, in its backward pass.

    Args:
        block: on the `meta` device, with ``backend="triton"``; trains in the dtype that it has.
        batch, hw: of the tokens.
        dtype: of autocast, None without.
    """
    from vig_mm.nets import attention, ffn

    for name in WITH_KERNELS:
        importlib.import_module(f"{PACKAGE}.{name}")
    channels = next(block.parameters()).shape[0]
    x = torch.empty(batch, hw[0] * hw[1], channels, dtype=next(block.parameters()).dtype,
                    device="meta", requires_grad=True)  # fmt: skip
    with ExitStack() as stack:
        if dtype is not None:  # there is no autocast of meta tensors
            for module in (attention, ffn):
                stack.enter_context(mock.patch.object(module, "compute_dtype", lambda x: dtype))
        found: list = []
        stack.enter_context(recorded(found))
        stack.enter_context(Operators(found))

        def of(call: Callable[[], Any]) -> tuple[Any, list[str]]:
            found.clear()
            result = call()
            return result, [x.kernel.__name__ if isinstance(x, Launch) else x for x in found]

        block.eval()
        with torch.no_grad():
            inference = of(lambda: block(x, hw))[1]
        out, forward = of(lambda: block.train()(x, hw))
        grad, weights = torch.empty_like(out), list(block.parameters())
        backward = of(lambda: out.backward(grad, inputs=weights))[1]
    return {"inference": inference, "forward": forward, "backward": backward}


def record(
    batch: int, tokens: int, heads: int, width: int, v_width: int, dtype: torch.dtype
) -> dict[str, list[Launch]]:
    """Launches of forward, backward, gate forward and gate backward, as a mixer calls them."""
    from vig_mm.kernels.gla.triton import launch
    from vig_mm.kernels.locality_gate import triton as locality_gate

    def empty(channels: int) -> torch.Tensor:
        return torch.empty(batch, tokens, heads * channels, dtype=dtype, device="meta")

    qkv = empty(2 * width + v_width).split([heads * w for w in (width, width, v_width)], dim=-1)
    q, k, v = (x.unflatten(-1, (heads, -1)) for x in qkv)
    gates = [x.unflatten(-1, (heads, -1)) for x in empty(2 * width).chunk(2, dim=-1)]
    o, local, gate = (empty(v_width).unflatten(-1, (heads, -1)) for _ in range(3))
    weight = torch.empty(v_width, device="meta")  # float32, also under autocast
    gate_inputs = (o, local, gate, weight, weight, 1e-6, True)
    passes: dict[str, list[Launch]] = {}
    for name, call in {
        "forward": lambda: launch.triton_forward(q, k, v, *gates),
        "backward": lambda: launch.triton_backward(o, q, k, v, *gates),
        "gate forward": lambda: locality_gate.gate_forward(*gate_inputs),
        "gate backward": lambda: locality_gate.gate_backward(o, *gate_inputs),
    }.items():
        with recorded(passes.setdefault(name, [])):
            call()
    return passes


def specialize(launch: Launch) -> tuple[dict, dict, dict]:
    """Signature, constants and attributes that Triton compiles a launch with."""
    signature, constants, attributes = {}, {}, {}

    def kind(x: Any, place: tuple[int, ...], param: Any) -> Any:
        special = not param.do_not_specialize
        if isinstance(x, tuple):
            return tuple(kind(y, (*place, i), param) for i, y in enumerate(x))
        if isinstance(x, torch.Tensor):
            attributes[place] = [["tt.divisibility", 16]]
            return TYPES[x.dtype]
        if param.is_constexpr or x is None or (special and x == 1 and isinstance(x, int)):
            constants[place] = x
            return "constexpr"
        if isinstance(x, float):
            return "fp32"
        if special and x % 16 == 0:
            attributes[place] = [["tt.divisibility", 16]]
        return "i32" if x < 2**31 else "i64"

    parameters = zip(launch.kernel.arg_names, launch.kernel.params, strict=True)
    for i, (name, param) in enumerate(parameters):
        signature[name] = kind(launch.named[name], (i,), param)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--autocast", action="store_true", help="to bfloat16")
    args = parser.parse_args()
    from vig_mm.nets.hier_vig import HierBlock

    for channels, heads, side in ((96, 3, 56), (192, 6, 28), (384, 12, 14), (768, 24, 7)):
        with torch.device("meta"):
            block = HierBlock(channels, heads, 0.0, "triton")
        dtype = torch.bfloat16 if args.autocast else None
        for name, found in record_block(block, args.batch, (side, side), dtype).items():
            names = ", ".join(f"{n} {kernel}" for kernel, n in Counter(found).most_common())
            print(f"{channels} channels, {side}x{side}, {name}: {len(found)} launches: {names}")


if __name__ == "__main__":
    main()
