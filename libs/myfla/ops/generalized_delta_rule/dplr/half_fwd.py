"""Forward of the chunk form in half precision, for a GPU's matrix units.

In the notation of `chunk_fwd`, with ``A_ab .. A_qk`` the quarters of ``pairs``, ``S [K, V]`` the incoming state of a
chunk and ``b^``, ``k^`` the halves of hand, ``a'``, ``q'`` those of left::

    T      = (I - A_ab)^-1,   u0 = T A_ak v,   reader = T a'         every chunk at once
    E      = whole I + b^^T reader                                   every chunk at once
    S'     = E S + b^^T u0 + k^^T v                                  chunk after chunk
    u      = u0 + reader S                                           every chunk at once
    o      = q' S + A_qb u + A_qk v                                  every chunk at once

`chunk_fwd` splits decays at the chunk's start and asks which chunks are too strong for that. Here every product is
split so that it is right for all decays (`half_levels`), and nothing is read back from the device. Matrices are rounded
to the inputs' dtype where a product reads them. Sums, decays, the inverse and the running state are float32, and so are
the operands of the pairs of tokens: rounded ones would make the largest of all errors.

Products stand here, what is done element by element between them in `half_passes`, the way from chunk to chunk in
`half_scan`.
"""

from typing import Any, Callable, List, NamedTuple, Optional, Sequence, Tuple

import torch

from myfla.backends.compiler import compiled
from myfla.ops.common.half_inverse import invert_blocks
from myfla.ops.common.half_products import accumulate, product
from myfla.ops.common.half_tokens import Cut
from myfla.ops.generalized_delta_rule.dplr.half_levels import Levels
from myfla.ops.generalized_delta_rule.dplr.half_passes import finish_inverse, join_products, load_tokens, sum_decays
from myfla.ops.generalized_delta_rule.dplr.half_scan import scan
from myfla.utils.autocast import without_autocast


class How(NamedTuple):
    """What both directions are told beside the tensors."""

    scale: float  # factor on q
    cut: Cut  # how the tokens are cut into chunks
    levels: Levels  # how a chunk's products are split
    dtype: torch.dtype  # of sums and states
    fuse: bool  # have the elementwise passes compiled

    @property
    def run(self) -> Callable[[Callable], Callable]:
        """What a pass goes through before it is called."""
        return compiled if self.fuse else _as_it_is


class Kept(NamedTuple):
    """What the backward needs beside the inputs."""

    c: torch.Tensor  # [M, C, K]  log decays summed from the chunk's start
    left: torch.Tensor  # [M, 2C, K]  a' above q'
    hand: torch.Tensor  # [M, 2C, K]  b^ above k^
    pairs: torch.Tensor  # [M, 2C, 2C]
    inverse: torch.Tensor  # [M, C, C]  T
    stack: torch.Tensor  # [M, K + 2C, V]  the state before each chunk above u above v
    passed: Optional[torch.Tensor]  # [rows, K, K]  each group's effect on a state, if there are groups
    operands: List[torch.Tensor]  # [M places, 2n, K]  of every meeting what is read, then what reads

    def flat(self) -> Tuple[Optional[torch.Tensor], ...]:
        """As autograd saves it."""
        return (*self[:-1], *self.operands)

    @classmethod
    def of(cls, flat: Sequence[Any]) -> "Kept":
        """The inverse of `flat`."""
        own = len(cls._fields) - 1
        return cls._make([*flat[:own], list(flat[own:])])


@without_autocast
def half_forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    gk: torch.Tensor,
    initial_state: Optional[torch.Tensor],
    how: How,
) -> Tuple[torch.Tensor, torch.Tensor, Kept]:
    """Outputs, final states and what the backward needs.

    Args:
        q, k, a, b: ``[B, T, H, K]``.
        v: ``[B, T, H, V]``, all five of one dtype.
        gk: ``[B, T, H, K]``.
        initial_state: ``[B, H, K, V]`` or None.

    Returns:
        o ``[B, T, H, V]`` in v's dtype, final states ``[B, H, K, V]`` in ``how.dtype``, `Kept`.
    """
    cut, dtype, levels, run = how.cut, how.dtype, how.levels, how.run
    key, value, m, chunk = k.shape[3], v.shape[3], cut.matrices, cut.chunk
    left, hand = (v.new_empty(m, 2 * chunk, key) for _ in range(2))
    stack = v.new_empty(m, key + 2 * chunk, value)
    states, u, values = stack.split((key, chunk, chunk), 1)
    written = stack[:, key:]
    read, reads = (
        [v.new_empty(m * x.places(chunk), 2 * x.size, key, dtype=dtype) for x in levels.meetings()] for _ in range(2)
    )

    c = run(sum_decays)(gk, cut, levels, dtype)
    run(load_tokens)(q, k, a, b, c, cut, levels, how.scale, left, hand, read, reads)
    squares = [product(later, earlier.transpose(1, 2), dtype) for earlier, later in zip(read, reads)]
    pairs, leaves, corners = run(join_products)(squares, levels, v.dtype)
    del squares
    inverse = run(finish_inverse)(*invert_blocks(leaves, corners, run), v.dtype)
    cut.load(v, values)
    product(inverse, product(pairs[:, :chunk, chunk:], values), out=u)
    reader = product(inverse, left[:, :chunk])

    effects = transitions(hand[:, :chunk], reader, c, dtype)
    given = product(hand.transpose(1, 2), written, dtype)
    if initial_state is None:
        state = torch.zeros(cut.batch * cut.heads, key, value, dtype=dtype, device=v.device)
    else:
        state = initial_state.flatten(0, 1).to(dtype)
    final, passed = scan(cut, effects, given, state, states)
    final = final.unflatten(0, (cut.batch, cut.heads)).contiguous()

    accumulate(u, reader, states)
    out = product(left[:, chunk:], states)
    o = cut.store(accumulate(out, pairs[:, chunk:], written), v)
    return o, final, Kept(c, left, hand, pairs, inverse, stack, passed, read + reads)


def transitions(give: torch.Tensor, take: torch.Tensor, c: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``whole I + give^T take``: what a chunk makes of a state's rows, ``[M, K, K]``."""
    effects = product(give.transpose(1, 2), take, dtype)
    effects.diagonal(0, 1, 2).add_(c[:, -1].exp())
    return effects


def _as_it_is(function: Callable) -> Callable:
    return function
