"""Images of any size, odd and prime, in any memory layout, through the three backbones.

The backbones are narrow and shallow, every weight is drawn (so that no part is switched off by a
zero at the start), and the images go up to 400 pixels in both directions. What is no image, and
training, are for tests/test_models.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from hypothesis import given, target
from hypothesis import strategies as st
from operator_cases import Layout, layouts, times
from torch import Tensor, nn

import vig_mm

ARCHS = {
    "ViG": dict(embed_dims=16, depth=2, num_heads=2, out_indices=(0, 1)),
    "HierViG": dict(embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4)),
    "ViGAdapter": dict(
        embed_dims=16, depth=2, num_heads=2, num_interactions=2, deform_heads=4, conv_inplane=4
    ),
}
FAMILIES = st.sampled_from(list(ARCHS))
SIDE = st.one_of(
    st.integers(16, 64),
    st.sampled_from([16, 17, 23, 31, 97, 101, 211, 224, 225, 389, 399, 400]),
    st.integers(16, 400),
)
SMALL_SIDE = st.integers(16, 100)
EPS = {dtype: torch.finfo(dtype).eps for dtype in (torch.float32, torch.float64)}
# Two ways to the same result differ by the order of sums in some thirty layers, each of which
# passes on what came before it.
STEPS = 100


@dataclass(frozen=True)
class Images:
    size: tuple[int, int]
    dtype: torch.dtype
    layout: Layout
    seed: int

    def tensor(self, batch: int) -> Tensor:
        """Images ``[batch, 3, H, W]``, each with a size and a mean of its own."""
        g = torch.Generator().manual_seed(self.seed)
        x = torch.randn(batch, 3, *self.size, generator=g)
        x = x * torch.rand(batch, 1, 1, 1, generator=g) + torch.randn(batch, 3, 1, 1, generator=g)
        return self.layout.place(x.to(self.dtype))


def images(side: st.SearchStrategy[int]) -> st.SearchStrategy[Images]:
    return st.builds(
        Images,
        size=st.tuples(side, side),
        dtype=st.sampled_from(list(EPS)),
        layout=layouts(),
        seed=st.integers(0, 2**32 - 1),
    )


def build(family: str, dtype: torch.dtype = torch.float32, **options) -> nn.Module:
    """In eval mode; the same weights whatever the options."""
    torch.manual_seed(0)
    backbone = getattr(vig_mm, family)(**ARCHS[family], **options)
    backbone.init_weights()
    for name, x in backbone.named_parameters():
        if name.endswith(("gamma", "bias", "sampling_offsets.weight")):
            nn.init.normal_(x, std=0.3)
    return backbone.to(dtype).eval()


def stages(family: str, size: tuple[int, int]) -> list[tuple[int, int, int]]:
    """(C, h, w) of every output."""

    def up(pixels: int, stride: int) -> int:
        return -(-pixels // stride)

    if family == "ViG":
        return [(16, *(up((side + 1) // 8, 2) for side in size))] * 2
    widths = (8, 16, 32, 64) if family == "HierViG" else (16,) * 4
    return [
        (width, *(up(side, stride) for side in size))
        for width, stride in zip(widths, (4, 8, 16, 32), strict=True)
    ]


def difference(outs: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest relative difference of an image's map, in units of eps."""
    shares = [
        (x - y).flatten(1).norm(dim=1) / y.flatten(1).norm(dim=1)
        for x, y in zip(outs, expected, strict=True)
    ]
    return torch.cat(shares).max().item() / EPS[expected[0].dtype]


def check_same(*pairs: tuple[Sequence[Tensor], Sequence[Tensor]]) -> None:
    found = max(difference(outs, expected) for outs, expected in pairs)
    target(found, label="difference in eps")
    assert found < STEPS  # also not where it is NaN


@times(1)
@given(FAMILIES, images(SIDE), st.integers(0, 3), st.randoms(use_true_random=False))
def test_any_size(family, image, batch, random):
    """Shapes are those documented; an image gives the same whatever its memory layout, alone, and
    wherever in a batch it stands."""
    backbone, x = build(family, image.dtype), image.tensor(batch)
    with torch.no_grad():
        outs = backbone(x)
        assert [x.shape for x in outs] == [(batch, *s) for s in stages(family, image.size)]
        assert all(x.is_contiguous() and x.isfinite().all() for x in outs)
        if batch:
            order = random.sample(range(batch), batch)
            one = order[:1]
            check_same(
                (backbone(x[one].contiguous()), [out[one] for out in outs]),
                (backbone(x[order]), [out[order] for out in outs]),
            )


@times(1)
@given(FAMILIES, images(SMALL_SIDE), st.booleans())
def test_backends_agree(family, image, with_cp):
    """The whole model in chunks, also saving memory, against the recurrence; with gradients."""
    x = image.tensor(2)
    results = []
    for options in (dict(backend="reference"), dict(backend="chunked", with_cp=with_cp)):
        backbone = build(family, image.dtype, **options)
        outs = backbone(x)
        probes = [torch.linspace(-1, 1, out[0].numel()).view(out[0].shape) for out in outs]
        loss = sum((out * probe).sum() for out, probe in zip(outs, probes, strict=True))
        loss.backward()
        grads = [p.grad.flatten()[None] for p in backbone.parameters()]
        results.append(([out.detach() for out in outs], grads))
    (expected, expected_grads), (outs, grads) = results
    check_same((outs, expected), ([torch.cat(grads, dim=1)], [torch.cat(expected_grads, dim=1)]))
