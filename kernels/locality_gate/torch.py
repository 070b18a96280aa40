"""The locality gate in plain PyTorch, and its gradients by hand."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..torch_utils import inverse_rms, upcast


def torch_locality_gate(
    o: Tensor,
    local: Tensor,
    gate: Tensor,
    g_weight: Tensor,
    l_weight: Tensor,
    *,
    eps: float,
    act: bool,
) -> Tensor:
    """See `locality_gate`; of ``[..., H, D]``, differentiable by autograd."""
    x, y, z, w_x, w_y = upcast(o, local, gate, g_weight, l_weight)
    x = (x * inverse_rms(x, eps)).mul_(w_x)
    y = (y * inverse_rms(y, eps)).mul_(w_y)
    y = torch.lerp(y, x, torch.sigmoid(z))
    return (F.silu(y) if act else y).to(o.dtype).contiguous()


def torch_locality_gate_backward(
    grad: Tensor,
    o: Tensor,
    local: Tensor,
    gate: Tensor,
    g_weight: Tensor,
    l_weight: Tensor,
    *,
    eps: float,
    act: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The output of `locality_gate` again, and the gradients of its five tensors.

    Everything in one dtype, float32 at least; arguments as there.
    """
    scale_o, scale_l = inverse_rms(o, eps), inverse_rms(local, eps)
    normal_o, normal_l = o * scale_o, local * scale_l
    share = torch.sigmoid(gate)
    difference = torch.addcmul(normal_o * g_weight, normal_l, l_weight, value=-1)
    out = torch.addcmul(normal_l * l_weight, difference, share)
    if act:
        grad = torch.ops.aten.silu_backward(grad, out)
        out = F.silu(out)
    do = grad * share
    dlocal = grad - do
    # grad share (1 - share) difference
    dgate = difference.mul_(do).addcmul_(difference, share, value=-1)
    dg_weight = _into_norm(do, normal_o, scale_o, g_weight)
    dl_weight = _into_norm(dlocal, normal_l, scale_l, l_weight)
    return out, do, dlocal, dgate, dg_weight, dl_weight


def _into_norm(grad: Tensor, normal: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
    """Turn the gradient of an RMSNorm's output into that of its input, in place.

    Returns:
        The gradient of its weight. ``normal`` is lost.
    """
    width = weight.shape[0]
    product = grad * normal
    dweight = product.view(-1, width).sum(dim=0)
    mean = torch.mv(product.view(-1, width), weight / width).view(scale.shape)
    grad.mul_(weight).sub_(normal.mul_(mean)).mul_(scale)
    return dweight
