"""The residual block, and what one pass down the stack has in common."""

from typing import Any, NamedTuple, Optional, Tuple

import torch
import torch.nn as nn

from myfla.models.utils import Cache

__all__ = ["PreNormBlock", "StackCall"]


class StackCall(NamedTuple):
    """What every block of one pass down the stack is told.

    Attributes:
        cu_seqlens: ``[N + 1]`` int32 for packed tokens ``[1, total, D]``; None for a dense batch ``[B, T, D]``.
        cache: the states to continue from; each layer reads and updates the slot of its own number.
        use_cache: whether layers write their new state to ``cache``.
    """

    cu_seqlens: Optional[torch.Tensor] = None
    cache: Optional[Cache] = None
    use_cache: bool = False


class PreNormBlock(nn.Module):
    """``h = h + mixer(norm(h))``, then ``h = h + mlp(norm(h))``.

    A strategy whose layers are called in another way overrides `mix` or `feed`.

    Args:
        mixer: mixes along time; called as ``mixer(x, call, carry)``, returns ``(y, carry)``.
        mlp: works on each token; called as ``mlp(x)``.
        mixer_norm, mlp_norm: normalisations of ``[..., D]``.
        dropout: probability on both branches, in training.
    """

    def __init__(self, mixer: nn.Module, mlp: nn.Module, mixer_norm: nn.Module, mlp_norm: nn.Module,
                 dropout: float = 0.0) -> None:
        super().__init__()
        self.mixer_norm, self.mixer = mixer_norm, mixer
        self.mlp_norm, self.mlp = mlp_norm, mlp
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: torch.Tensor, call: StackCall, carry: Any) -> Tuple[torch.Tensor, Any]:
        """One block.

        Args:
            hidden: ``[B, T, D]`` or ``[1, total, D]``, the stack's dtype.
            call: see `StackCall`.
            carry: what the block above handed down, None at the first. The stack does not look into it.

        Returns:
            ``(hidden, carry)`` for the block below.
        """
        mixed, carry = self.mix(self.mixer_norm(hidden), call, carry)
        hidden = hidden + self.dropout(mixed)
        return hidden + self.dropout(self.feed(self.mlp_norm(hidden), call)), carry

    def mix(self, x: torch.Tensor, call: StackCall, carry: Any) -> Tuple[torch.Tensor, Any]:
        """The mixer's branch."""
        return self.mixer(x, call, carry)

    def feed(self, x: torch.Tensor, call: StackCall) -> torch.Tensor:
        """The MLP's branch."""
        return self.mlp(x)
