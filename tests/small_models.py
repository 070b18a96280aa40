"""Small ViGs of timm and a task with two classes, for tests that train inside other libraries."""

import torch
from torch import Tensor

import vig_mm.timm  # noqa: F401

SMALL = dict(
    hier_vig_tiny=dict(embed_dims=16, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8)),
    vig_tiny_patch16=dict(embed_dims=32, depth=4, num_heads=2, mixer_act=False),
)
"""Keywords that make a registered model small."""


def bright_squares(count: int = 4, size: int = 64) -> tuple[Tensor, Tensor]:
    """Images ``[count, 3, size, size]`` of noise, each with a bright square, and its mask."""
    generator = torch.Generator().manual_seed(0)
    images = 0.2 * torch.randn(count, 3, size, size, generator=generator)
    masks = torch.zeros(count, size, size, dtype=torch.long)
    for i in range(count):
        top, left = (int(8 * n) for n in torch.randint(0, size // 16, (2,), generator=generator))
        masks[i, top : top + size // 2, left : left + size // 2] = 1
    return images + masks[:, None], masks


def train(model: torch.nn.Module, loss, steps: int = 12, lr: float = 3e-3) -> tuple[float, float]:
    """Losses before and after ``steps`` of AdamW; ``loss()`` computes one."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr)
    model.train()
    losses = []
    for _ in range(steps):
        value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses[0], losses[-1]
