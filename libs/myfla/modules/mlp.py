"""The gated feed-forward layer of the models: ``down(swish(gate(x)) * up(x))``. Shazeer, 2020, arXiv 2002.05202."""

from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import nn

from myfla.utils.dtypes import accumulation_dtype, autocast_enabled
from myfla.utils.errors import refuse_unknown, value_error
from myfla.utils.tensors import check_tensor

ACTIVATIONS = ("swish", "powlu")
# Arguments that a model passes to all its layers.
PASSED_ALONG = ("cu_seqlens", "cu_seqlens_cpu", "num_items_in_batch", "position_ids")


def inner_size(hidden_size: int, hidden_ratio: Optional[float] = None, intermediate_size: Optional[int] = None) -> int:
    """The official intermediate size; see `GatedMLP`.

    Example:
        >>> inner_size(1024), inner_size(1024, intermediate_size=100)
        (2816, 100)
    """
    if intermediate_size is not None:
        return intermediate_size
    return 256 * -(-int(hidden_size * (4 if hidden_ratio is None else hidden_ratio) * 2 / 3) // 256)


class GatedMLP(nn.Module):
    """Gated feed-forward layer with the official names ``gate_proj``, ``up_proj``, ``down_proj``, none with a bias.

    In float16 the product of the results of ``gate_proj`` and ``up_proj`` must stay below 65504.

    Args:
        hidden_size: D, size in and out.
        hidden_ratio: the three matrices together hold about ``hidden_ratio * 2 * D^2`` weights; 4 if not given.
        intermediate_size: intermediate size. If not given, ``D * hidden_ratio * 2 / 3``, rounded down to an integer and
            up to a multiple of 256.
        hidden_act: ``"swish"``, or ``"powlu"``: like swish below zero, above it ``g^(p / (sqrt(g) + 1)) * sigmoid(g)``.
        fuse_swiglu: accepted for the official signature; the result is the same.
        powglu_power: p of ``"powlu"``.
        device, dtype: of the parameters.

    Raises:
        ValueError: a size below 1, or an unknown activation.

    Example:
        >>> mlp = GatedMLP(8, intermediate_size=16)
        >>> tuple(mlp(torch.zeros(2, 5, 8)).shape)
        (2, 5, 8)
    """

    def __init__(
        self,
        hidden_size: int,
        hidden_ratio: Optional[int] = None,
        intermediate_size: Optional[int] = None,
        hidden_act: str = "swish",
        fuse_swiglu: bool = True,
        powglu_power: float = 3.0,
        device: Optional[torch.device] = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__()
        if hidden_act not in ACTIVATIONS:
            raise value_error("GatedMLP", "hidden_act", f"must be one of {list(ACTIVATIONS)}", hidden_act)
        hidden_ratio = 4 if hidden_ratio is None else hidden_ratio
        intermediate_size = inner_size(hidden_size, hidden_ratio, intermediate_size)
        for name, size in (("hidden_size", hidden_size), ("intermediate_size", intermediate_size)):
            if size < 1:
                raise value_error("GatedMLP", name, "must be at least 1", size)
        self.hidden_size, self.intermediate_size, self.hidden_ratio = hidden_size, intermediate_size, hidden_ratio
        self.hidden_act, self.fuse_swiglu, self.powglu_power = hidden_act, fuse_swiglu, powglu_power
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False, device=device, dtype=dtype)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False, device=device, dtype=dtype)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Map ``x [..., D]`` to ``[..., D]``; arguments that a model passes to all its layers, such as offsets, are
        ignored."""
        refuse_unknown("GatedMLP", kwargs, ("x",), inert=PASSED_ALONG)
        check_tensor("GatedMLP", "x", x)
        if x.dim() < 1 or x.shape[-1] != self.hidden_size:
            raise value_error("GatedMLP", "x", f"must have {self.hidden_size} channels", tuple(x.shape))
        weight = self.gate_proj.weight
        if x.dtype != weight.dtype and not autocast_enabled(x.device.type):
            raise value_error("GatedMLP", "x", f"must have the dtype of the weights, {weight.dtype}", x.dtype)
        gate, up = self.gate_proj(x), self.up_proj(x)
        kind = accumulation_dtype(gate)
        return self.down_proj((self._activate(gate.to(kind)) * up.to(kind)).to(gate.dtype))

    def _activate(self, gate: torch.Tensor) -> torch.Tensor:
        if self.hidden_act == "swish":
            return F.silu(gate)
        above = gate > 0
        # One where the power is not used: its gradient there would be infinite, and zero times infinity is NaN.
        base = torch.where(above, gate, torch.ones_like(gate))
        power = base.pow(self.powglu_power / (base.sqrt() + 1))
        return torch.where(above, power, gate) * torch.sigmoid(gate)

    def extra_repr(self) -> str:
        """The activation, for ``repr``."""
        return f"hidden_act={self.hidden_act}"
