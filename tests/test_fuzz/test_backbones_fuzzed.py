"""Images of odd and prime sizes, in any memory layout, through the three backbones.

The backbones are narrow and shallow, and every weight is drawn, so that no part is switched off by
a zero at the start. What is no image, and training, are for tests/test_models.
"""

import torch
from hypothesis import given
from hypothesis import strategies as st
from operator_cases import Layout, layouts, times
from references import check
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
DTYPES = st.sampled_from([torch.float32, torch.float64])
SIDE = st.one_of(st.integers(16, 64), st.integers(16, 400), st.sampled_from([17, 97, 224, 389]))
# Two ways to the same result differ by the order of sums in some thirty layers, each of which
# passes on what came before it.
STEPS = 100


def images(batch: int, size: tuple[int, int], dtype: torch.dtype, layout: Layout) -> Tensor:
    """Each with a size and a mean of its own."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 3, *size, generator=g)
    x = x * torch.rand(batch, 1, 1, 1, generator=g) + torch.randn(batch, 3, 1, 1, generator=g)
    return layout.place(x.to(dtype))


def build(family: str, dtype: torch.dtype, **options) -> nn.Module:
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
    strides = zip(widths, (4, 8, 16, 32), strict=True)
    return [(width, *(up(side, stride) for side in size)) for width, stride in strides]


@times(1)
@given(FAMILIES, st.integers(0, 3), st.tuples(SIDE, SIDE), DTYPES, layouts())
def test_any_size_and_layout(family, batch, size, dtype, layout):
    """Shapes are those documented; an image gives the same packed, alone, and elsewhere in the
    batch."""
    backbone, x = build(family, dtype), images(batch, size, dtype, layout)
    bound = STEPS * torch.finfo(dtype).eps
    with torch.no_grad():
        outs = backbone(x)
        assert [x.shape for x in outs] == [(batch, *s) for s in stages(family, size)]
        assert all(x.is_contiguous() and x.isfinite().all() for x in outs)
        flipped = backbone(x.flip(0).contiguous()) if batch else outs
        for i in range(batch):
            one = [out[i] for out in outs]
            check([out[-1 - i] for out in flipped], one, bound)
            check([out[0] for out in backbone(x[i : i + 1])], one, bound)


@times(1)
@given(FAMILIES, st.tuples(*[st.integers(16, 100)] * 2), DTYPES, layouts(), st.booleans())
def test_backends_agree(family, size, dtype, layout, with_cp):
    """The whole model in chunks, also saving memory, against the recurrence; with gradients."""
    results, x = [], images(2, size, dtype, layout)
    for options in (dict(backend="reference"), dict(backend="chunked", with_cp=with_cp)):
        backbone = build(family, dtype, **options)
        outs = backbone(x)
        probes = [torch.linspace(-1, 1, out[0].numel()).view(out[0].shape) for out in outs]
        sum((out * probe).sum() for out, probe in zip(outs, probes, strict=True)).backward()
        results.append([*outs, torch.cat([p.grad.flatten() for p in backbone.parameters()])])
    check(*results[::-1], STEPS * torch.finfo(dtype).eps)
