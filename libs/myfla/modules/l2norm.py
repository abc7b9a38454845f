"""`L2Norm`, and the functions that it uses."""

from typing import Optional

import torch
from torch import nn

from myfla.utils.l2norm import l2norm, l2norm_bwd, l2norm_fwd

__all__ = ["L2Norm", "l2_norm", "l2norm", "l2norm_bwd", "l2norm_fwd"]

l2_norm = l2norm


class L2Norm(nn.Module):
    """`myfla.utils.l2norm.l2norm` as a module; it has no parameters.

    Args:
        eps: added to the sum of squares.
        output_dtype: dtype of the result; that of the input if not given.

    Example:
        >>> y = L2Norm()(torch.randn(2, 8))
    """

    def __init__(self, eps: float = 1e-6, output_dtype: Optional[torch.dtype] = None) -> None:
        super().__init__()
        self.eps = eps
        self.output_dtype = output_dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scale the last axis of ``x [..., D]`` to length one."""
        return l2norm(x, self.eps, self.output_dtype)

    def extra_repr(self) -> str:
        """Settings, for ``repr``."""
        return f"eps={self.eps}" + ("" if self.output_dtype is None else f", output_dtype={self.output_dtype}")
