"""Norm and depth-wise 3x3 convolution of tokens in one: how ViG's attention begins."""

from .op import norm_conv, norm_conv_backward

__all__ = ["norm_conv", "norm_conv_backward"]
