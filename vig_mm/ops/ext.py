"""Stands in for `mmcv._ext`: mmcv's names and calling conventions over torchvision and torch.

Results are written into the tensors that the caller hands over, as mmcv's C++ does. A name that is
not served is a function that says so when it is called.
"""

from collections.abc import Callable
from typing import Any, NoReturn

import mmcv
import torchvision
from mmengine.logging import print_log

from vig_mm.ops import COMPILE
from vig_mm.ops.carafe import (
    carafe_backward,
    carafe_forward,
    carafe_naive_backward,
    carafe_naive_forward,
)
from vig_mm.ops.deform_attn import ms_deform_attn_backward, ms_deform_attn_forward
from vig_mm.ops.deform_conv import (
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    deform_conv_forward,
    modulated_deform_conv_backward,
    modulated_deform_conv_forward,
)
from vig_mm.ops.deform_roi_pool import deform_roi_pool_backward, deform_roi_pool_forward
from vig_mm.ops.focal_loss import (
    sigmoid_focal_loss_backward,
    sigmoid_focal_loss_forward,
    softmax_focal_loss_backward,
    softmax_focal_loss_forward,
)
from vig_mm.ops.masked_conv import masked_col2im_forward, masked_im2col_forward
from vig_mm.ops.nms import nms, nms_match, softnms
from vig_mm.ops.psa_mask import psamask_backward, psamask_forward
from vig_mm.ops.roi import (
    roi_align_backward,
    roi_align_forward,
    roi_pool_backward,
    roi_pool_forward,
)
from vig_mm.ops.sync_bn import (
    sync_bn_backward_data,
    sync_bn_backward_param,
    sync_bn_forward_mean,
    sync_bn_forward_output,
    sync_bn_forward_var,
)

__all__ = [
    "carafe_backward",
    "carafe_forward",
    "carafe_naive_backward",
    "carafe_naive_forward",
    "deform_conv_backward_input",
    "deform_conv_backward_parameters",
    "deform_conv_forward",
    "deform_roi_pool_backward",
    "deform_roi_pool_forward",
    "get_compiler_version",
    "get_compiling_cuda_version",
    "masked_col2im_forward",
    "masked_im2col_forward",
    "modulated_deform_conv_backward",
    "modulated_deform_conv_forward",
    "ms_deform_attn_backward",
    "ms_deform_attn_forward",
    "nms",
    "nms_match",
    "psamask_backward",
    "psamask_forward",
    "roi_align_backward",
    "roi_align_forward",
    "roi_pool_backward",
    "roi_pool_forward",
    "sigmoid_focal_loss_backward",
    "sigmoid_focal_loss_forward",
    "softmax_focal_loss_backward",
    "softmax_focal_loss_forward",
    "softnms",
    "sync_bn_backward_data",
    "sync_bn_backward_param",
    "sync_bn_forward_mean",
    "sync_bn_forward_output",
    "sync_bn_forward_var",
]


def get_compiler_version() -> str:
    """For `mmcv.ops.get_compiler_version` and reports of the environment."""
    return f"none (operators of vig_mm.ops, torchvision {torchvision.__version__})"


def get_compiling_cuda_version() -> str:
    """What an mmcv compiled without CUDA says; those served run on CUDA all the same."""
    return "not available"


def __getattr__(name: str) -> Callable[..., NoReturn]:
    """mmcv asks for all its functions when it is imported: any other name fails when called."""
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def not_served(*args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(
            f"mmcv's operator {name} is none of those that vig_mm serves through torchvision: "
            f"{COMPILE}"
        )

    not_served.__name__ = name
    return not_served


print_log(
    f"mmcv {mmcv.__version__} has no compiled operators: vig_mm.ops serves them through "
    f"torchvision {torchvision.__version__}",
    logger="current",
)
