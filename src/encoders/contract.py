"""The interface of a strategy that the stack uses; `encoders.strategy.EncoderStrategy` implements it.

The stack imports only this interface, and the strategy imports the stack, so that there is no import cycle.
"""

from typing import Any, Dict, Mapping, Optional, Protocol, Tuple

import torch
import torch.nn as nn

from encoders.gates import Gates
from myfla.models.configuration import ModelConfig

__all__ = ["BlockBuilder"]


class BlockBuilder(Protocol):
    """Builds the parts of an encoder; see `encoders.strategy.EncoderStrategy` for each of them."""

    name: str
    origin: str
    model_type: Optional[str]
    checkpoint_parts: Mapping[str, str]

    def build_block(self, config: Any, layer_idx: int, device: Any = None, dtype: Any = None) -> nn.Module:
        """One residual block."""

    def build_norm(self, config: Any, device: Any = None, dtype: Any = None) -> nn.Module:
        """A normalisation of ``config.hidden_size`` features."""

    def state_shape(self, config: Any, layer_idx: int) -> Optional[Tuple[int, ...]]:
        """``(HV, K, V)`` of the state of a layer for one sequence, or None."""

    def gates(self, mixer: Any, x: torch.Tensor, cu_seqlens: Optional[torch.Tensor] = None) -> Optional[Gates]:
        """How one of its mixers treats its state, or None."""

    def fields_of_checkpoint(self, found: ModelConfig, file: str) -> Dict[str, Any]:
        """Fields of the encoder's config that an official config sets."""
