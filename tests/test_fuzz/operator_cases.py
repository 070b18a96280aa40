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
        dtypes: of q, k, v, of the gates, of the output (None: as v).
        gates: of both directions.
        spread: standard deviation of log10 of the tokens' magnitudes.
        zeros: share of tokens whose q, k and v are 0.
        layouts: of q, k, v, gate_f, gate_b and the output's gradient.
        needed: which of the five inputs need a gradient.
        seed: of the values.
    """

    size: tuple[int, int, int, int, int]
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype | None]
    gates: tuple[Gates, Gates]
    spread: float
    zeros: float
    layouts: tuple[Layout, ...]
    needed: tuple[bool, ...]
    seed: int

    def tensors(self) -> tuple[list[Tensor], Tensor]:
        """q, k, v, gate_f, gate_b, and the output's gradient."""
        *shape, width, v_width = self.size
        dtype, gate_dtype, out_dtype = self.dtypes
        # products of large activations leave its range
        spread = 0.0 if torch.float16 in self.dtypes else self.spread
        g = torch.Generator().manual_seed(self.seed)

        def activations(channels: int, dtype: torch.dtype) -> Tensor:
            x = torch.randn(*shape, channels, generator=g, dtype=torch.float64)
            of_tokens = (*shape[:2], 1, 1)
            x *= 10 ** (spread * torch.randn(of_tokens, generator=g).clamp(-2, 2))
            return (x * (torch.rand(of_tokens, generator=g) >= self.zeros)).to(dtype)

        tensors = [activations(channels, dtype) for channels in (width, width, v_width)]
        tensors += [x.sample((*shape, width), g).to(gate_dtype) for x in self.gates]
        tensors.append(activations(v_width, out_dtype or dtype))
        pairs = zip(tensors, self.layouts, strict=True)
        *inputs, grad = (layout.place(x) for x, layout in pairs)
        return inputs, grad


def calls(
    tokens: st.SearchStrategy[int], rows: int, width: int, dtypes: tuple[torch.dtype, ...] = DTYPES
) -> st.SearchStrategy[Call]:
    """Args: rows: B H at most. width: K and V at most."""
    widths = st.one_of(st.integers(1, min(width, 8)), st.integers(1, width))
    size = st.tuples(st.integers(0, rows), tokens, st.integers(1, rows), widths, widths)
    one, other = st.sampled_from(dtypes), st.sampled_from([None, *dtypes])
    same = one.map(lambda dtype: (dtype, dtype, None))
    return st.builds(
        Call,
        size=size.map(lambda x: (min(x[0], rows // x[2]), *x[1:])),
        dtypes=st.one_of(same, st.tuples(one, one, other)),
        gates=st.tuples(gates, gates),
        spread=st.sampled_from([0.0, 0.5, 2.0]),
        zeros=st.sampled_from([0.0, 0.3]),
        layouts=st.tuples(*[layouts()] * 6),
        needed=st.tuples(*[st.booleans()] * 5),
        seed=st.integers(0, 2**32 - 1),
    )
