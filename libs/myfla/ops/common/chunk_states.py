"""The states before every chunk, which the chunk ops of some rules return on request."""

from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

import torch

__all__ = ["with_chunk_states"]

Result = Tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def with_chunk_states(
    op: Callable[..., Any], tokens: Mapping[str, torch.Tensor], initial_state: Optional[torch.Tensor],
    cu_seqlens: Optional[torch.Tensor], chunk_size: int,
) -> Result:  # fmt: skip
    """Run an op chunk after chunk, the same chunk of all sequences at once.

    Args:
        op: ``op(**tokens, initial_state=, cu_seqlens=) -> (o, final state)``, for pieces of the tokens.
        tokens: by name, ``[B, T, ...]`` each.
        initial_state: ``[N, ...]`` or None.
        cu_seqlens: ``[N + 1]`` or None.
        chunk_size: tokens in a chunk; each sequence begins one.

    Returns:
        o ``[B, T, ...]``; the final states ``[N, ...]``; the states before each chunk ``[B, NT, ...]``, of packed
        sequences those of the first sequence, then those of the second.
    """
    if cu_seqlens is not None:
        return _packed(op, tokens, initial_state, cu_seqlens, chunk_size)
    o, state = op(**{name: x[:, :0] for name, x in tokens.items()}, initial_state=initial_state, cu_seqlens=None)
    outputs, states = [o], [state]
    for start in range(0, next(iter(tokens.values())).shape[1], chunk_size):
        piece = {name: x[:, start : start + chunk_size] for name, x in tokens.items()}
        o, state = op(**piece, initial_state=state, cu_seqlens=None)
        outputs.append(o)
        states.append(state)
    return torch.cat(outputs, 1), state, torch.stack(states, 1)[:, :-1]


def _packed(
    op: Callable[..., Any], tokens: Mapping[str, torch.Tensor], initial_state: Optional[torch.Tensor],
    cu_seqlens: torch.Tensor, chunk_size: int,
) -> Result:  # fmt: skip
    bounds = cu_seqlens.tolist()
    lengths = [stop - start for start, stop in zip(bounds[:-1], bounds[1:])]
    none = {name: x[:, :0] for name, x in tokens.items()}
    o, state = op(**none, initial_state=initial_state, cu_seqlens=torch.zeros_like(cu_seqlens))
    outputs, order = [o], [torch.zeros(0, dtype=torch.long)]
    states: Dict[Tuple[int, int], torch.Tensor] = {}
    for start in range(0, max(lengths, default=0), chunk_size):
        sizes = [min(max(length - start, 0), chunk_size) for length in lengths]
        states.update({(n, start): state[n] for n, size in enumerate(sizes) if size})
        order.append(torch.cat([torch.arange(size) + bounds[n] + start for n, size in enumerate(sizes)]))
        piece = {name: x.index_select(1, order[-1].to(x.device)) for name, x in tokens.items()}
        offsets = torch.tensor([0, *sizes]).cumsum(0).to(cu_seqlens)
        o, state = op(**piece, initial_state=state, cu_seqlens=offsets)
        outputs.append(o)
    places = torch.cat(order).argsort().to(o.device)
    before: List[torch.Tensor] = [states[key] for key in sorted(states)]
    shape = (1, 0, *state.shape[1:])
    stacked = torch.stack(before).unsqueeze(0) if before else state.new_zeros(shape)
    return torch.cat(outputs, 1).index_select(1, places), state, stacked
