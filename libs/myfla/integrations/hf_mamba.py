"""Mamba-2's state space dual as models of transformers call it, on this package's ops.

Every function is handed all keywords of the model's forward; those that are not its own are passed over.
"""

import math
from typing import Any, Mapping, Optional, Tuple, Union

import torch

from myfla.integrations.packing import packed_offsets
from myfla.ops.ssd import mamba_chunk_scan_combined, selective_state_update
from myfla.utils.dtypes import accumulation_dtype

__all__ = ["mamba2_chunk_scan", "mamba2_selective_state_update"]


def mamba2_chunk_scan(
    hidden_states: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    chunk_size: Optional[int] = None,
    D: Optional[torch.Tensor] = None,
    dt_bias: Optional[torch.Tensor] = None,
    initial_states: Optional[torch.Tensor] = None,
    dt_softplus: bool = False,
    dt_limit: Tuple[float, float] = (0.0, math.inf),
    return_final_states: bool = False,
    z: Optional[torch.Tensor] = None,
    **kwargs: Any,
) -> Union[torch.Tensor, Tuple[torch.Tensor, ...]]:
    """`myfla.ops.ssd.mamba_chunk_scan_combined` as transformers calls it.

    Args:
        hidden_states: ``[B, T, HV, V]``.
        dt, A, B, C, D, dt_bias, initial_states, dt_softplus, dt_limit, z: as the op's.
        chunk_size: changes only rounding, and is ignored.
        return_final_states: also return the states after each row's last token.
        **kwargs: ``cu_seqlens``, ``cu_seq_lens_q`` or ``seq_idx`` for packed sequences; others are passed over.

    Returns:
        ``[B, T, HV, V]`` in float32 (or float64), as transformers' own; with ``return_final_states`` a tuple of it and
        the states ``[B, HV, V, K]``.

    Example:
        >>> x = torch.ones(1, 3, 1, 2)
        >>> y, state = mamba2_chunk_scan(x, x[..., 0], -x[0, 0, :, 0], x, x, return_final_states=True, use_cache=True)
        >>> tuple(y.shape), tuple(state.shape)
        ((1, 3, 1, 2), (1, 1, 2, 2))
    """
    wide = accumulation_dtype(hidden_states, dt, A, B, C, D)
    return mamba_chunk_scan_combined(
        hidden_states.to(wide), dt, A, B, C, D=D, z=z, dt_bias=dt_bias, initial_states=initial_states,
        seq_idx=_sequence_numbers(kwargs, hidden_states), dt_softplus=dt_softplus, dt_limit=dt_limit,
        return_final_states=return_final_states,
    )  # fmt: skip


def mamba2_selective_state_update(
    state: torch.Tensor,
    hidden_states: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: Optional[torch.Tensor] = None,
    dt_bias: Optional[torch.Tensor] = None,
    dt_softplus: bool = False,
    z: Optional[torch.Tensor] = None,
    **kwargs: Any,
) -> torch.Tensor:
    """`myfla.ops.ssd.selective_state_update` as transformers calls it; ``state`` is written.

    Args:
        state: ``[B, HV, V, K]``.
        hidden_states, dt: ``[B, HV, V]``.
        A, B, C, D, dt_bias, dt_softplus, z: as the op's.
        **kwargs: passed over.

    Returns:
        ``[B, HV, V]`` in the dtype of ``hidden_states``.

    Example:
        >>> state, x = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2)
        >>> mamba2_selective_state_update(state, x, x, -torch.ones(1, 2, 2), x, x, use_cache=True).tolist()
        [[[2.0, 2.0]]]
    """
    return selective_state_update(state, hidden_states, dt, A, B, C, D, z, dt_bias, dt_softplus)


def _sequence_numbers(kwargs: Mapping[str, Any], x: torch.Tensor) -> Optional[torch.Tensor]:
    """``[B, T]``, by whichever name a model's keywords tell of packed sequences."""
    if kwargs.get("seq_idx") is not None:
        return kwargs["seq_idx"]
    offsets = packed_offsets(kwargs)
    if offsets is None:
        return None
    numbers = torch.arange(len(offsets) - 1, device=offsets.device)
    return torch.repeat_interleave(numbers, offsets.diff()).view(1, -1).to(x.device)
