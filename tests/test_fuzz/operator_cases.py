"""Random calls of the operators: shapes, dtypes, layouts in memory, and gates."""

import math
from dataclasses import dataclass

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# around every threshold there is: -88 is where 2^x of the logit leaves float32, 65504 float16's end
EXTREMES = (
    -math.inf, -3e38, -1e30, -65504.0, -500.0, -89.0, -88.0, -50.0, -20.0, 0.0, 20.0, 88.0, 500.0,
    65504.0, 1e30, math.inf,
)  # fmt: skip


def times(factor: float) -> settings:
    """So many times the profile's number of examples (see conftest)."""
    return settings(max_examples=max(round(settings.default.max_examples * factor), 1))


@dataclass(frozen=True)
class Layout:
    """Where the entries of a tensor lie. All memory between them is NaN.

    Args:
        order: dimensions from the outermost to the innermost one in memory.
        steps, offsets: every how many-th entry of a dimension is taken, and from which on.
        repeated: dimensions with stride 0.
    """

    order: tuple[int, ...]
    steps: tuple[int, ...]
    offsets: tuple[int, ...]
    repeated: tuple[bool, ...]

    def place(self, x: Tensor) -> Tensor:
        """x laid out; of a repeated dimension, its first entry repeated."""
        sizes = [min(n, 1) if again else n for n, again in zip(x.shape, self.repeated, strict=True)]
        ends = [o + n * s for n, s, o in zip(sizes, self.steps, self.offsets, strict=True)]
        room = x.new_full([ends[dim] for dim in self.order], math.nan)
        view = room.permute([self.order.index(dim) for dim in range(x.dim())])
        view = view[tuple(map(slice, self.offsets, ends, self.steps))]
        view.copy_(x[tuple(map(slice, sizes))])
        return view.expand(x.shape)


@st.composite
def layouts(draw: st.DrawFn, dims: int = 4) -> Layout:
    packed = Layout(tuple(range(dims)), (1,) * dims, (0,) * dims, (False,) * dims)
    if draw(st.booleans()):
        return packed

    def each(values: st.SearchStrategy) -> st.SearchStrategy:
        return st.tuples(*[values] * dims)

    return Layout(
        order=tuple(draw(st.permutations(range(dims)))),
        steps=draw(each(st.integers(1, 3))),
        offsets=draw(each(st.integers(0, 2))),
        repeated=draw(st.sampled_from([packed.repeated, None])) or draw(each(st.booleans())),
    )


@dataclass(frozen=True)
class Gates:
    """Gate logits: normal, and a share of them replaced by one extreme value."""

    scale: float
    shift: float
    extreme: float
    share: float

    def sample(self, shape: tuple[int, ...], g: torch.Generator) -> Tensor:
        logits = torch.randn(shape, generator=g, dtype=torch.float64) * self.scale + self.shift
        chosen = torch.rand(shape, generator=g) < self.share
        return logits.masked_fill(chosen, self.extreme)


gates = st.builds(
    Gates,
    scale=st.sampled_from([0.0, 1.0, 10.0, 50.0, 300.0]),
    shift=st.sampled_from([0.0, -100.0, -60.0, -20.0, 5.0, 60.0]),
    extreme=st.sampled_from(EXTREMES),
    share=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
)


@dataclass(frozen=True)
class Call:
    """One call of `bidirectional_gla` with its gradient.

    Args:
        size: B, N, H, K, V.
        spread: standard deviation of log10 of the tokens' magnitudes.
        zeros: share of tokens whose q, k and v are 0.
        layouts: of q, k, v, gate_f, gate_b and the output's gradient.
        needed: which of the five inputs need a gradient.
        seed: of the values.
    """

    size: tuple[int, int, int, int, int]
    dtype: torch.dtype
    gate_dtype: torch.dtype
    out_dtype: torch.dtype | None
    gate_f: Gates
    gate_b: Gates
    spread: float
    zeros: float
    layouts: tuple[Layout, ...]
    needed: tuple[bool, ...]
    seed: int

    def tensors(self) -> tuple[list[Tensor], Tensor]:
        """q, k, v, gate_f, gate_b, and the output's gradient."""
        batch, tokens, heads, width, v_width = self.size
        g = torch.Generator().manual_seed(self.seed)

        def activations(channels: int) -> Tensor:
            shape = (batch, tokens, heads, channels)
            x = torch.randn(shape, generator=g, dtype=torch.float64)
            x *= 10 ** (self.spread * torch.randn(batch, tokens, 1, 1, generator=g).clamp(-2, 2))
            return x * (torch.rand(batch, tokens, 1, 1, generator=g) >= self.zeros)

        qkv = [activations(channels).to(self.dtype) for channels in (width, width, v_width)]
        shape = (batch, tokens, heads, width)
        logits = [x.sample(shape, g).to(self.gate_dtype) for x in (self.gate_f, self.gate_b)]
        grad = activations(v_width).to(self.out_dtype or self.dtype)
        *inputs, grad = (
            layout.place(x) for x, layout in zip((*qkv, *logits, grad), self.layouts, strict=True)
        )
        return inputs, grad


def _sizes(largest: int) -> st.SearchStrategy[int]:
    return st.one_of(st.integers(1, min(largest, 8)), st.integers(1, largest))


@st.composite
def calls(
    draw: st.DrawFn,
    tokens: st.SearchStrategy[int],
    rows: int,
    width: int,
    dtypes: tuple[torch.dtype, ...] = DTYPES,
) -> Call:
    """Args: rows: B H at most. width: K and V at most."""
    heads = draw(st.integers(1, rows))
    dtype = draw(st.sampled_from(dtypes))
    gate_dtype = draw(st.one_of(st.just(dtype), st.sampled_from(dtypes)))
    out_dtype = draw(st.sampled_from([None, *dtypes]))
    # products of large activations leave its range
    low = torch.float16 in (dtype, gate_dtype, out_dtype)
    return Call(
        size=(
            draw(st.integers(0, rows // heads)),
            draw(tokens),
            heads,
            draw(_sizes(width)),
            draw(_sizes(width)),
        ),
        dtype=dtype,
        gate_dtype=gate_dtype,
        out_dtype=out_dtype,
        gate_f=draw(gates),
        gate_b=draw(gates),
        spread=0.0 if low else draw(st.sampled_from([0.0, 0.5, 2.0])),
        zeros=draw(st.sampled_from([0.0, 0.3])),
        layouts=tuple(draw(layouts()) for _ in range(6)),
        needed=tuple(draw(st.booleans()) for _ in range(5)),
        seed=draw(st.integers(0, 2**32 - 1)),
    )
