"""The elementwise passes between the products of the half-precision form, each in plain operations on its arguments.

They are what a compiler is for: of each it makes a few kernels that read and write every matrix once. Nothing is
written into an argument unless the function says so. Without a compiler they run as they stand.
"""

from typing import List, Sequence, Tuple

import torch

from myfla.ops.common.half_inverse import join_blocks, split_blocks
from myfla.ops.common.half_products import put
from myfla.ops.common.half_tokens import Cut
from myfla.ops.generalized_delta_rule.dplr.half_levels import Levels, Meeting, keep_seen
from myfla.utils.tracing import compiling


def sum_decays(gk: torch.Tensor, cut: Cut, levels: Levels, dtype: torch.dtype) -> torch.Tensor:
    """``c [M, C, K]``, the log decays ``gk [B, T, H, K]`` summed from the start of their chunk."""
    steps = torch.empty(cut.matrices, cut.chunk, gk.shape[3], dtype=dtype, device=gk.device)
    return cut.load(gk, steps).clamp(min=levels.floor).cumsum(1)


def rises_to(c: torch.Tensor) -> torch.Tensor:
    """``[M, 2, C, K]``: for a and for q the log decay from the chunk's start."""
    return torch.stack((torch.nn.functional.pad(c[:, :-1], (0, 0, 1, 0)), c), dim=1)


def load_tokens(
    q: torch.Tensor, k: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, cut: Cut, levels: Levels,
    scale: float, left: torch.Tensor, hand: torch.Tensor, read: Sequence[torch.Tensor], reads: Sequence[torch.Tensor],
) -> None:
    """Cut the tokens ``[B, T, H, K]`` into chunks, scaled by the decays to and from all their references.

    Args:
        c: of `sum_decays`.
        left, hand: ``[M, 2C, K]``, written: from the chunk's start, and to its end.
        read, reads: written, ``[M places, 2n, K]`` for each meeting: b over k to the reference, a over q from it.
    """
    written, asking = _load_both(cut, b, k), _load_both(cut, a, q)
    rises, fall = rises_to(c), (c[:, -1:] - c).exp().unsqueeze(1)
    put(hand.view(written.shape), written, fall)
    put(left.view(written.shape), asking, _scaled(rises.exp(), scale))
    for meeting, earlier, later in zip(levels.meetings(), read, reads):
        to, since = meeting.decays(c, rises)
        put(_by_kind(earlier, meeting, cut), meeting.sides(written)[0], to)
        put(_by_kind(later, meeting, cut), meeting.sides(asking)[1], _scaled(since, scale))


def _load_both(cut: Cut, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """``[M, 2, C, K]``."""
    out = x.new_empty(cut.matrices, 2, cut.chunk, x.shape[3])
    loaded = [cut.load(t, part) for t, part in zip((x, y), out.unbind(1))]
    return torch.stack(loaded, dim=1) if compiling() else out


def _by_kind(operand: torch.Tensor, meeting: Meeting, cut: Cut) -> torch.Tensor:
    """``[M places, 2n, K]`` as ``[M, 2, places, n, K]``, a view."""
    return operand.view(cut.matrices, -1, 2, meeting.size, operand.shape[2]).transpose(1, 2)


def _scaled(factor: torch.Tensor, scale: float) -> torch.Tensor:
    """Of a and q, ``[M, 2, ...]``: with the scale on q's; in place."""
    if scale != 1:
        factor[:, 1].mul_(scale)
    return factor


def finish_inverse(blocks: torch.Tensor, corner: torch.Tensor, low: torch.dtype) -> torch.Tensor:
    """The inverse ``T``, ``[M, C, C]`` in ``low``."""
    return join_blocks(blocks, corner).to(low)


def join_products(
    squares: Sequence[torch.Tensor], levels: Levels, low: torch.dtype
) -> Tuple[torch.Tensor, torch.Tensor, List[torch.Tensor]]:
    """The products ``[M places, 2n, 2n]`` of all meetings put together.

    Returns:
        ``[M, 2C, 2C]`` in ``low``, a over q against b beside k, and the blocks of ``-A_ab`` that the inverse reads.
    """
    n, chunk = levels.block, levels.chunk
    m = squares[0].shape[0] * n // chunk
    inside = keep_seen(squares[0].view(m, -1, 2, n, 2, n))
    whole = _join_values(inside, squares[1:]) if compiling() else _join_places(inside, squares[1:], levels)
    leaves, corners = split_blocks(whole[:, 0, :, 0].neg())
    return whole.to(low).view(m, 2 * chunk, 2 * chunk), leaves, corners


def _join_values(whole: torch.Tensor, squares: Sequence[torch.Tensor]) -> torch.Tensor:
    """``[M, 2, C, 2, C]`` as a compiler wants it: every number once, from where it is."""
    for square in squares:
        first, second = whole.unflatten(1, (-1, 2)).unbind(2)
        upper = torch.cat((first, torch.zeros_like(first)), dim=-1)
        whole = torch.cat((upper, torch.cat((square.view(first.shape), second), dim=-1)), dim=-3)
    return whole[:, 0]


def _join_places(inside: torch.Tensor, squares: Sequence[torch.Tensor], levels: Levels) -> torch.Tensor:
    """The same, every part copied to its place."""
    whole = inside.new_zeros(inside.shape[0], 2, levels.chunk, 2, levels.chunk)
    for meeting, square in zip(levels.meetings(), (inside, *squares)):
        place = meeting.squares(whole)
        place.copy_(square.view(place.shape))
    return whole


def split_products(dpairs: torch.Tensor, levels: Levels) -> List[torch.Tensor]:
    """The inverse of `join_products`: of ``dpairs [M, 2C, 2C]`` every meeting's part."""
    grid = dpairs.unflatten(2, (2, -1)).unflatten(1, (2, -1))
    parts = [meeting.squares(grid) for meeting in levels.meetings()]
    parts[0] = keep_seen(parts[0])
    return [x.reshape(-1, 2 * x.shape[3], 2 * x.shape[3]) for x in parts]


def collect(
    c: torch.Tensor, left: torch.Tensor, hand: torch.Tensor, dleft: torch.Tensor, dhand: torch.Tensor,
    read: Sequence[torch.Tensor], reads: Sequence[torch.Tensor], dread: Sequence[torch.Tensor],
    dreads: Sequence[torch.Tensor], cut: Cut, levels: Levels, scale: float,
    like: Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k, a and b in the shapes and dtypes of ``like``, and what the decays' gradient is summed from.

    A contribution to that is always an operand, as the product read it, times its gradient, so that what cancels does
    so exactly.

    Args:
        c, left, hand, read, reads: of `load_tokens`.
        dleft, dhand, dread, dreads: their gradients.

    Returns:
        also, ``[M, C, K]``: what a token contributes to its own step and all before, and ``[M, 1, K]``: what all
        hand-overs contribute.
    """
    rises, fall = rises_to(c), (c[:, -1:] - c).exp().unsqueeze(1)
    left, hand, dleft, dhand = (x.unflatten(1, (2, cut.chunk)) for x in (left, hand, dleft, dhand))
    dwritten, dasking = dhand * fall, dleft * _scaled(rises.exp(), scale)
    handed, asked = (hand * dhand).sum(1), left * dleft
    handing = handed.sum(1, keepdim=True)
    for meeting, *parts in zip(levels.meetings(), read, reads, dread, dreads):
        earlier, later, dearlier, dlater = (_by_kind(x, meeting, cut) for x in parts)
        to, since = meeting.decays(c, rises)
        dwritten = meeting.added(dwritten, 0, dearlier * to)
        dasking = meeting.added(dasking, 1, dlater * _scaled(since, scale))
        handed = meeting.added(handed, 0, (earlier * dearlier).sum(1))
        asked = meeting.added(asked, 1, later * dlater)
    # a reads the state before its own step: what it contributes begins a step earlier.
    flow = asked[:, 1] - handed + torch.nn.functional.pad(asked[:, 0, 1:], (0, 0, 0, 1))
    (db, dk), (da, dq) = dwritten.unbind(1), dasking.unbind(1)
    dq, dk, da, db = (cut.store(x, y) for x, y in zip((dq, dk, da, db), like))
    return dq, dk, da, db, flow, handing


def decay_gradient(
    flow: torch.Tensor, sums: torch.Tensor, handing: torch.Tensor, states: torch.Tensor, dstates: torch.Tensor,
    c: torch.Tensor, gk: torch.Tensor, cut: Cut, levels: Levels,
) -> torch.Tensor:
    """Gradient of ``gk [B, T, H, K]``, zero where a step counts as the floor.

    Args:
        flow, handing: of `collect`.
        sums: ``flow`` summed from the chunk's start.
        states, dstates: ``[M, K, V]``, each chunk's incoming state and its outgoing one's gradient.
        c: of `sum_decays`.
    """
    ends = (states.to(c.dtype) * dstates).sum(2).unsqueeze(1) * c[:, -1:].exp()
    dgk = cut.store(flow - sums + (sums[:, -1:] + handing + ends), gk)
    return torch.where(gk < levels.floor, torch.zeros_like(dgk), dgk)
