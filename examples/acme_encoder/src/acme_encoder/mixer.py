"""A causal depthwise convolution with a gate."""

from typing import Any, Tuple

import torch
import torch.nn as nn

from encoders import StackCall
from myfla.modules import ShortConvolution


class GatedConvolution(nn.Module):
    """``y = out(silu(conv(inner(x))) * sigmoid(gate(x)))``.

    Args:
        hidden_size: channels in and out.
        kernel_size: taps of the convolution.
        gate: whether to gate.
        layer_idx: its slot in a cache.
    """

    def __init__(self, hidden_size: int, kernel_size: int, gate: bool, layer_idx: int, device: Any = None,
                 dtype: Any = None) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.inner = nn.Linear(hidden_size, hidden_size, bias=False, device=device, dtype=dtype)
        self.conv = ShortConvolution(hidden_size, kernel_size, activation="silu", device=device, dtype=dtype)
        self.gate = nn.Linear(hidden_size, hidden_size, device=device, dtype=dtype) if gate else None
        self.out = nn.Linear(hidden_size, hidden_size, bias=False, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor, call: StackCall, carry: Any) -> Tuple[torch.Tensor, Any]:
        """Mix ``[B, T, D]``, or packed ``[1, total, D]``; the last inputs of each sequence go to the cache."""
        y, state = self.conv(self.inner(x), cache=call.state(self.layer_idx).get("conv_state"),
                             output_final_state=call.use_cache, cu_seqlens=call.cu_seqlens)
        call.keep(self.layer_idx, x, conv_state=state)
        if self.gate is not None:
            y = y * torch.sigmoid(self.gate(x))
        return self.out(y), carry
