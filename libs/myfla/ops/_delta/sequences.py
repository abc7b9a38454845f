"""Sequences packed in one row: one by one, for forms that support batches only, and in reverse order."""

from typing import Callable, List, Optional, Sequence, Tuple

import torch

from myfla.ops._delta.call import Call, call_dtype

__all__ = ["each_sequence", "first_state", "reverse_sequences"]

Run = Callable[..., Tuple[torch.Tensor, torch.Tensor]]


def each_sequence(
    run: Run, tensors: Sequence[torch.Tensor], state: torch.Tensor, cu_seqlens: Optional[torch.Tensor]
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Call ``run`` on a batch, or on each packed sequence as a batch of one.

    Args:
        run: ``run(*tensors, state) -> (o [B, T, ...], final [B, ...])``.
        tensors: ``[B, T, ...]``, packed ``[1, total, ...]``.
        state: ``[N, ...]``.
        cu_seqlens: ``[N + 1]`` or None.

    Returns:
        o ``[B, T, ...]`` and final ``[N, ...]``.

    Example:
        >>> total = lambda x, state: (x.cumsum(1), state + x.sum(1))
        >>> each_sequence(total, [torch.tensor([[1, 2, 3]])], torch.zeros(2), torch.tensor([0, 1, 3]))[1].tolist()
        [1.0, 5.0]
    """
    if cu_seqlens is None:
        return run(*tensors, state)
    bounds = cu_seqlens.tolist()
    outputs: List[torch.Tensor] = []
    finals: List[torch.Tensor] = []
    for i, (start, end) in enumerate(zip(bounds[:-1], bounds[1:])):
        o, final = run(*(x[:, start:end] for x in tensors), state[i : i + 1])
        outputs.append(o)
        finals.append(final)
    if not outputs:  # no sequences at all: the results of an empty batch, without its row
        return run(*tensors, state.new_zeros(1, *state.shape[1:]))[0], state
    return torch.cat(outputs, dim=1), torch.cat(finals)


def first_state(call: Call) -> torch.Tensor:
    """The state ``[N, HV, K, V]`` in the accumulation's dtype; zeros if there is none."""
    if call.initial_state is not None:
        return call.initial_state.to(call_dtype(call))
    v, key = call.x[2], call.x[1].shape[3]
    return v.new_zeros(call.sequences, v.shape[2], key, v.shape[3], dtype=call_dtype(call))


def reverse_sequences(x: torch.Tensor, cu_seqlens: Optional[torch.Tensor]) -> torch.Tensor:
    """Every sequence in reverse order."""
    if cu_seqlens is None:
        return x.flip(1)
    bounds = cu_seqlens.long()
    token = torch.arange(x.shape[1], device=x.device)
    row = torch.searchsorted(bounds[1:], token, right=True)
    return x.index_select(1, (bounds[:-1] + bounds[1:] - 1)[row] - token)
