"""A padded batch as packed sequences: unpacked before a layer, and put together after it."""

from typing import Any, NamedTuple, Optional

import torch

from myfla.layers.layer_inputs import real_tokens
from myfla.layers.utils import repad_hidden_states, unpad_hidden_states
from myfla.models.state_tree import map_tensors
from myfla.utils.rows import pack_all
from myfla.utils.tracing import tracing
from myfla.utils.varlen import check_cu_seqlens

__all__ = ["TokenRows", "read_rows"]


class TokenRows(NamedTuple):
    """The positions of the tokens in a layer's input.

    In a recorded graph nothing may depend on how many tokens there are: there the pads follow as one more sequence,
    for which the states have a spare row.

    Attributes:
        batch, time: B and T of the input.
        sequences: N, rows of the states that a cache holds.
        cu_seqlens: ``[N + 1]``, with a spare row ``[N + 2]``; None for a dense batch.
        indices: positions of the packed tokens in the flattened batch; None where nothing is packed.
        real: ``[B * T]`` bool where there is a spare row, else None.
    """

    batch: int
    time: int
    sequences: int
    cu_seqlens: Optional[torch.Tensor] = None
    indices: Optional[torch.Tensor] = None
    real: Optional[torch.Tensor] = None

    def lengths(self) -> Optional[torch.Tensor]:
        """``[N]``, tokens of each sequence; None for a dense batch."""
        if self.cu_seqlens is None:
            return None
        return (self.cu_seqlens[1:] - self.cu_seqlens[:-1])[: self.sequences]

    def pack(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, T, ...]`` to ``[1, tokens, ...]``, or x itself where nothing is packed."""
        if self.indices is None:
            return x
        flat = x.flatten(0, 1)
        if self.real is not None:  # padding is computed too: its values must not be NaN
            flat = torch.where(self.real.view(-1, *(1,) * (flat.dim() - 1)), flat, flat.new_zeros(()))
        return flat.index_select(0, self.indices).unsqueeze(0)

    def unpack(self, y: torch.Tensor) -> torch.Tensor:
        """The inverse of `pack`, with zeros at padding."""
        y = repad_hidden_states(y, self.indices, self.batch, self.time)
        if self.real is None:
            return y
        real = self.real.view(self.batch, self.time, *(1,) * (y.dim() - 2))
        return torch.where(real, y, y.new_zeros(()))

    def widen(self, states: Any) -> Any:
        """States of a cache ``[N, ...]`` (any tuple of them, None too), with the spare row if there is one."""
        if self.real is None:
            return states
        return map_tensors(lambda t: torch.cat([t, t.new_zeros(1, *t.shape[1:])]), states)

    def narrow(self, states: Any) -> Any:
        """The inverse of `widen`."""
        return states if self.real is None else map_tensors(lambda t: t[: self.sequences], states)


def read_rows(who: str, x: torch.Tensor, mask: Any, cu_seqlens: Optional[torch.Tensor]) -> TokenRows:
    """The tokens of an input ``[B, T, D]``, by its offsets or by its mask, both checked.

    Args:
        who: the layer's name.
        x: the input.
        mask: ``[B, T]`` of 0 and 1 or longer, or None; ignored if there are offsets.
        cu_seqlens: ``[N + 1]`` or None.

    Raises:
        ValueError: offsets or a mask that do not fit.

    Example:
        >>> read_rows("layer", torch.zeros(2, 3, 4), torch.tensor([[0, 1, 1], [1, 1, 1]]), None).cu_seqlens.tolist()
        [0, 2, 5]
    """
    batch, time = x.shape[:2]
    if cu_seqlens is not None:
        return TokenRows(batch, time, check_cu_seqlens(who, cu_seqlens, batch, time, x), cu_seqlens)
    mask = None if mask is None else real_tokens(who, mask, batch, time, x)
    if mask is None:
        return TokenRows(batch, time, batch)
    mask = mask.to(x.device)
    if tracing(x):
        order, cu_seqlens = pack_all(mask != 0)
        return TokenRows(batch, time, batch, cu_seqlens, order, (mask != 0).flatten())
    _, indices, cu_seqlens = unpad_hidden_states(x, None, mask, time)
    return TokenRows(batch, time, batch, cu_seqlens, indices)
