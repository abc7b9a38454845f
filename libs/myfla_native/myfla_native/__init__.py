"""Compiled CPU kernels for `myfla`: raw functions of tensors, without autograd and without checks.

`myfla` calls them inside its own autograd functions, after its own checks; see `myfla.utils.native`.
"""

from myfla_native import middle, products, rules, steps
from myfla_native.convolution import MOST_TAPS, conv_backward, conv_forward
from myfla_native.library import INTERFACE, level, set_level
from myfla_native.norms import norm_backward, norm_forward
from myfla_native.shift import shift_backward, shift_forward

__version__ = "0.1.0"
__all__ = [
    "INTERFACE", "MOST_TAPS", "conv_backward", "conv_forward", "level", "middle", "norm_backward", "norm_forward",
    "products", "rules", "set_level", "shift_backward", "shift_forward", "steps",
]  # fmt: skip
