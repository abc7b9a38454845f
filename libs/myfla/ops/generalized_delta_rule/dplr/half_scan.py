"""From chunk to chunk in half precision: one float32 product for each, of states that stay in float32.

A chunk makes ``E S + G`` of a state ``S [K, V]``, with both known for all chunks before the first state is. Where
sequences and heads are too few to fill a GPU, long sequences are cut into groups of chunks that are scanned side by
side, from nothing and from the identity at once: that gives, at every chunk, what its group makes of any state. With
the states between the groups known, one product gives the states of all chunks.
"""

from typing import Optional, Sequence, Tuple

import torch

from myfla.ops.common.half_products import accumulate
from myfla.ops.common.half_tokens import Cut


def scan(
    cut: Cut, effects: torch.Tensor, given: torch.Tensor, state: torch.Tensor, kept: torch.Tensor
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """The states before all chunks.

    Args:
        effects: ``[M, K, K]``, E.
        given: ``[M, K, V]``, G; overwritten.
        state: ``[B * H, K, V]`` before the first chunk, in the dtype of both.
        kept: ``[M, K, V]``, filled with the rounded states before each chunk.

    Returns:
        the states after the last chunk, and each group's effect on a state ``[rows, K, K]`` if there are several.
    """
    effects, given, kept = (cut.by_row(x) for x in (effects, given, kept))
    if cut.groups == 1:
        final = _walk(given.unbind(1), effects.unbind(1), state)
        kept[:, 0].copy_(state)
        kept[:, 1:].copy_(given[:, :-1])
        return final, None
    key, value = kept.shape[2:]
    wide = torch.nn.functional.pad(given, (0, key))
    start = state.new_zeros(cut.rows, key, value + key)
    start[:, :, value:].diagonal(0, 1, 2).fill_(1)
    last = _walk(wide.unbind(1), effects.unbind(1), start)
    passed = last[:, :, value:].contiguous()
    starts, final = _join(cut, last[:, :, :value], passed, state)
    # What the group made of nothing, and what it makes of the state that it starts from.
    places = torch.empty(wide.shape, dtype=kept.dtype, device=kept.device)
    places[:, 0].copy_(start)
    places[:, 1:].copy_(wide[:, :-1])
    starts = starts.to(kept.dtype).unsqueeze(1).expand(kept.shape).flatten(0, 1)
    kept.copy_(places[:, :, :, :value])
    accumulate(kept.flatten(0, 1), places[:, :, :, value:].flatten(0, 1), starts)
    return final, passed


def scan_back(
    cut: Cut, effects: torch.Tensor, given: torch.Tensor, passed: Optional[torch.Tensor], dstate: torch.Tensor,
    kept: torch.Tensor,
) -> torch.Tensor:
    """The gradients of the states after all chunks; from the last chunk to the first.

    Args:
        effects: ``[M, K, K]``, transposed.
        given: ``[M, K, V]``; overwritten.
        passed: of `scan`.
        dstate: ``[B * H, K, V]``, gradient of the states after the last chunk.
        kept: ``[M, K, V]``, filled with the rounded gradients of the states after each chunk.

    Returns:
        gradient of the states before the first chunk.
    """
    effects, given, kept = (cut.by_row(x) for x in (effects, given, kept))
    backwards, by = given.unbind(1)[::-1], effects.unbind(1)[::-1]
    if passed is not None:
        fresh = _walk(backwards, by, torch.zeros_like(given[:, 0]), keep=False)
        dstate = _join(cut, fresh, passed, dstate, back=True)[0]
    first = _walk(backwards, by, dstate)
    kept[:, -1].copy_(dstate)
    kept[:, :-1].copy_(given[:, 1:])
    return first.unflatten(0, (-1, cut.groups))[:, 0]


def _walk(
    given: Sequence[torch.Tensor], effects: Sequence[torch.Tensor], state: torch.Tensor, keep: bool = True
) -> torch.Tensor:
    """``S <- E S + G``, with ``keep`` in the memory of G."""
    for x, effect in zip(given, effects):
        state = x.baddbmm_(effect, state) if keep else torch.baddbmm(x, effect, state)
    return state


def _join(
    cut: Cut, fresh: torch.Tensor, passed: torch.Tensor, state: torch.Tensor, back: bool = False
) -> Tuple[torch.Tensor, torch.Tensor]:
    """The states where the groups start (backward: the gradients where they end), and where all are done.

    Args:
        fresh: ``[rows, K, V]``, what each group makes of nothing.
        passed: ``[rows, K, K]``, its effect on a state.
        state: ``[B * H, K, V]`` where the first group starts (backward: where the last one ends).

    Returns:
        ``[rows, K, V]`` and ``[B * H, K, V]``.
    """
    fresh, passed = (x.unflatten(0, (-1, cut.groups)) for x in (fresh, passed))
    passed = passed.transpose(2, 3) if back else passed
    starts = []
    for i in reversed(range(cut.groups)) if back else range(cut.groups):
        starts.append(state)
        state = torch.baddbmm(fresh[:, i], passed[:, i], state)
    return torch.stack(starts[::-1] if back else starts, dim=1).flatten(0, 1), state
