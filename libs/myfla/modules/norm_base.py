"""The base class of the norm modules: one weight and one bias for the last axis."""

from typing import Optional

import torch
from torch import nn

from myfla.utils.errors import value_error


class NormBase(nn.Module):
    """Has ``weight [D]`` (ones) and ``bias [D]`` (zeros); each is None if not requested.

    Args:
        hidden_size: D.
        affine: have a weight.
        bias: have a bias; needs a weight.
        eps: added to the mean square before the root.
        device, dtype: of the parameters.
    """

    weight: Optional[nn.Parameter]
    bias: Optional[nn.Parameter]

    def __init__(
        self, hidden_size: int, affine: bool, bias: bool, eps: float, device: Optional[torch.device],
        dtype: Optional[torch.dtype],
    ) -> None:
        super().__init__()
        if hidden_size < 1:
            raise value_error(type(self).__name__, "hidden_size", "must be at least 1", hidden_size)
        self.hidden_size = hidden_size
        self.elementwise_affine = affine
        self.eps = eps
        for name, wanted in (("weight", affine), ("bias", affine and bias)):
            tensor = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype)) if wanted else None
            self.register_parameter(name, tensor)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the weight to ones and the bias to zeros."""
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        """Size and settings, for ``repr``."""
        affine = "" if self.elementwise_affine else ", elementwise_affine=False"
        bias = ", bias=True" if self.bias is not None else ""
        return f"{self.hidden_size}{affine}{bias}, eps={self.eps}"
