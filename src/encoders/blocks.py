"""The residual block, and the context of one pass through the stack."""

from typing import Any, Dict, NamedTuple, Optional, Tuple

import torch
import torch.nn as nn

from myfla.models.utils import Cache

__all__ = ["PreNormBlock", "StackCall"]


class StackCall(NamedTuple):
    """The context that every block gets in one pass through the stack.

    Attributes:
        cu_seqlens: ``[N + 1]`` int32 for packed tokens ``[1, total, D]``; None for a dense batch ``[B, T, D]``.
        cache: the states to continue from; each layer reads and updates the slot with its number.
        use_cache: whether layers write their new state to ``cache``.
    """

    cu_seqlens: Optional[torch.Tensor] = None
    cache: Optional[Cache] = None
    use_cache: bool = False

    def state(self, layer_idx: int) -> Dict[str, Any]:
        """The states of layer ``layer_idx``: ``recurrent_state``, ``conv_state``, ...; empty before the first call."""
        if self.cache is None or len(self.cache) <= layer_idx:
            return {}
        return self.cache[layer_idx] or {}

    def keep(self, layer_idx: int, x: torch.Tensor, **states: Any) -> None:
        """Store a layer's new states in the cache, if there is one to update, and count the tokens of its input.

        Args:
            layer_idx: the layer's slot.
            x: its input, ``[B, T, D]`` or ``[1, total, D]``.
            states: ``recurrent_state``, ``conv_state`` or ``ffn_state``: a tensor with one row per sequence, or a
                tuple of such.
        """
        if self.use_cache and self.cache is not None:
            if self.cu_seqlens is not None:
                states["lengths"] = self.cu_seqlens[1:] - self.cu_seqlens[:-1]
            self.cache.update(layer_idx=layer_idx, offset=x.shape[1], **states)


def drop_sequences(x: torch.Tensor, probability: float, cu_seqlens: Optional[torch.Tensor] = None) -> torch.Tensor:
    """Set sequences to zero at random, and the others so much larger that the mean stays (stochastic depth).

    Args:
        x: ``[B, T, D]``, or packed ``[1, total, D]``.
        probability: of being dropped, below 1.
        cu_seqlens: ``[N + 1]`` for packed sequences.

    Source: Huang et al., Deep Networks with Stochastic Depth, arXiv 1603.09382.

    Example:
        >>> drop_sequences(torch.ones(2, 3, 4), 0.0).sum()
        tensor(24.)
    """
    sequences = x.shape[0] if cu_seqlens is None else cu_seqlens.numel() - 1
    kept = (torch.rand(sequences, 1, 1, device=x.device) >= probability).to(x.dtype) / (1 - probability)
    if cu_seqlens is not None:
        kept = kept.view(1, -1, 1).repeat_interleave((cu_seqlens[1:] - cu_seqlens[:-1]).long(), dim=1)
    return x * kept


class PreNormBlock(nn.Module):
    """``h = h + mixer(norm(h))``, then ``h = h + mlp(norm(h))``.

    A strategy whose layers are called in another way overrides `mix` or `feed`.

    Args:
        mixer: mixes along time; called as ``mixer(x, call, carry)``, returns ``(y, carry)``.
        mlp: works on each token; called as ``mlp(x)``.
        mixer_norm, mlp_norm: normalisations of ``[..., D]``.
        dropout: probability on both branches, in training.
        drop_path: probability that a sequence skips the mixer's branch, in training.

    Example (a mixer that returns its input, and the carry):
        >>> class Same(nn.Module):
        ...     def forward(self, x, call, carry):
        ...         return x, carry
        >>> block = PreNormBlock(Same(), nn.Linear(4, 4), nn.LayerNorm(4), nn.LayerNorm(4))
        >>> hidden, carry = block(torch.zeros(2, 3, 4), StackCall(), None)
        >>> hidden.shape, carry
        (torch.Size([2, 3, 4]), None)
    """

    def __init__(self, mixer: nn.Module, mlp: nn.Module, mixer_norm: nn.Module, mlp_norm: nn.Module,
                 dropout: float = 0.0, drop_path: float = 0.0) -> None:
        super().__init__()
        self.mixer_norm, self.mixer = mixer_norm, mixer
        self.mlp_norm, self.mlp = mlp_norm, mlp
        self.dropout, self.drop_path = nn.Dropout(dropout), drop_path

    def forward(self, hidden: torch.Tensor, call: StackCall, carry: Any) -> Tuple[torch.Tensor, Any]:
        """One block.

        Args:
            hidden: ``[B, T, D]`` or ``[1, total, D]``, the stack's dtype.
            call: see `StackCall`.
            carry: any value that the block before returned; None for the first block. The stack does not use it.

        Returns:
            ``(hidden, carry)`` for the next block.
        """
        mixed, carry = self.mix(self.mixer_norm(hidden), call, carry)
        mixed = self.dropout(mixed)
        if self.training and self.drop_path:
            mixed = drop_sequences(mixed, self.drop_path, call.cu_seqlens)
        hidden = hidden + mixed
        return hidden + self.dropout(self.feed(self.mlp_norm(hidden), call)), carry

    def mix(self, x: torch.Tensor, call: StackCall, carry: Any) -> Tuple[torch.Tensor, Any]:
        """The branch of the mixer: ``x [..., D]`` is normalised; ``call`` and ``carry`` as for `forward`."""
        return self.mixer(x, call, carry)

    def feed(self, x: torch.Tensor, call: StackCall) -> torch.Tensor:
        """The branch of the MLP: ``x [..., D]`` is normalised; ``call`` as for `forward`."""
        return self.mlp(x)
