"""Forward of the chunk form in half precision, for a GPU's matrix units.

With rows for tokens, ``S [V, K]`` the incoming state of a chunk, and the factors of `half_factors`, of which ``query``,
``key`` and ``write`` (that is beta) make the queries ``q``, keys ``k`` and writer keys ``k~`` from the given ``Q`` and
``K``::

    T     = (I + tril(pair * k k~^T, -1))^-1                       every chunk at once
    delta = T V - (T rise k) S^T                                   chunk after chunk
    S'    = whole S + delta^T (fall k~)
    O     = (rise q) S^T + tril(pair * q k~^T) delta               every chunk at once

``delta`` is the error of each token's prediction, made consistent within the chunk by ``T``. Matrices are rounded to
the inputs' dtype where a product reads them; sums, factors, the inverse and the running state are float32.
(`chunk_fwd` is the same algorithm where a product costs what its multiplications cost.)

Products stand here, what is done element by element between them in `half_passes`, the way from chunk to chunk in
`half_scan` and, in other operations, in `half_linear`.
"""

import functools
from typing import Any, Callable, NamedTuple, Optional, Sequence, Tuple

import torch

from myfla.backends.compiler import compiled
from myfla.ops.common.half_inverse import invert_blocks
from myfla.ops.common.half_products import accumulate, product
from myfla.ops.common.half_tokens import Cut
from myfla.ops.gated_delta_rule.half_factors import Factors, load_decays
from myfla.ops.gated_delta_rule.half_linear import scan_linear
from myfla.ops.gated_delta_rule.half_passes import advance, finish_inverse, load_keys, load_queries, weigh
from myfla.ops.gated_delta_rule.half_scan import scan_by_steps, scan_groups
from myfla.utils.autocast import without_autocast


class How(NamedTuple):
    """What both directions are told beside the tensors."""

    scale: float  # factor on q
    cut: Cut  # how the tokens are cut into chunks
    unit: bool  # bring q and k to length one first
    dtype: torch.dtype  # of sums and states
    fuse: bool  # have the elementwise passes compiled
    linear: bool  # scan by `half_linear`: fewest operations, rather than shortest time on the GPU

    @property
    def run(self) -> Callable[[Callable], Callable]:
        """What a pass goes through before it is called."""
        return compiled if self.fuse else _as_it_is


class Kept(NamedTuple):
    """What the backward needs beside the inputs."""

    both: torch.Tensor  # [M, 2C, K]  Q above K, as given
    stack: torch.Tensor  # [M, V + C, K]  the state before each chunk above K
    asked: torch.Tensor  # [M, 2C, K]  -T rise k above rise q: what a state is multiplied by
    handed: torch.Tensor  # [M, C, K]  fall k~
    delta: torch.Tensor  # [M, C, V]
    inverse: torch.Tensor  # [M, C, C]  T
    attend: torch.Tensor  # [M, C, C]  pair * q k~^T
    passed: Optional[torch.Tensor]  # [rows, K, K]  each group's effect on a state, if there are groups
    factors: Factors

    def flat(self) -> Tuple[Optional[torch.Tensor], ...]:
        """As autograd saves it."""
        return (*self[:-1], *self.factors)

    @classmethod
    def of(cls, flat: Sequence[Any]) -> "Kept":
        """The inverse of `flat`."""
        own = len(cls._fields) - 1
        return cls._make([*flat[:own], Factors._make(flat[own:])])


@without_autocast
def half_forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    initial_state: Optional[torch.Tensor],
    how: How,
    keep: bool = True,
) -> Tuple[torch.Tensor, torch.Tensor, Optional[Kept]]:
    """Outputs, final states and what the backward needs, or None in its place if it is not to be kept.

    Args:
        q, k: ``[B, T, H, K]``.
        v: ``[B, T, HV, V]``, all three of one dtype.
        g, beta: ``[B, T, HV]``.
        initial_state: ``[B, HV, K, V]`` or None.

    Returns:
        o ``[B, T, HV, V]`` in v's dtype, final states ``[B, HV, K, V]`` in ``how.dtype``, `Kept` or None.
    """
    cut, dtype = how.cut, how.dtype
    run = how.run
    key, value, m, chunk = k.shape[3], v.shape[3], cut.matrices, cut.chunk
    both, asked, stack = (v.new_empty(m, rows, key) for rows in (2 * chunk, 2 * chunk, value + chunk * keep))
    keys, states, (reader, reads) = both[:, chunk:], stack[:, :value], asked.split(chunk, 1)
    d = run(load_decays)(cut, g, beta, dtype)
    query = run(load_queries)(q, both[:, :chunk], reads, cut, d.rise, how.scale, how.unit)
    own, write, handed = run(load_keys)(k, keys, stack[:, value:] if keep else None, cut, d, how.unit)
    f = Factors(query, own, write, d.rise, d.fall, d.sums)

    sums = product(both, keys.transpose(1, 2), dtype)
    attend, leaves, corners = run(weigh)(sums, f, v.dtype)
    inverse, scaled = run(finish_inverse)(*invert_blocks(leaves, corners, run), f, v.dtype)
    delta = product(inverse, cut.load(v, v.new_empty(m, chunk, value)))
    product(scaled, keys, out=reader)

    if initial_state is None:
        state = torch.zeros(cut.batch * cut.heads, value, key, dtype=dtype, device=v.device)
    else:
        state = initial_state.flatten(0, 1).transpose(1, 2).to(dtype).clone(memory_format=torch.contiguous_format)
    first, second, third, whole = (cut.by_row(x) for x in (delta, reader, handed, f.whole))
    kept, passed = cut.by_row(states), None
    scan = functools.partial(scan_linear if how.linear else scan_by_steps, run(advance))
    if cut.groups > 1:
        final, passed = scan_groups(cut, scan, first, second, third, whole, state, kept)
    else:
        final = scan(first, second, third, whole, state, kept)
    final = final.unflatten(0, (cut.batch, cut.heads)).transpose(2, 3).contiguous()

    out = product(reads, states.transpose(1, 2))
    o = cut.store(accumulate(out, attend, delta), v)
    return o, final, Kept(both, stack, asked, handed, delta, inverse, attend, passed, f) if keep else None


def _as_it_is(function: Callable) -> Callable:
    return function
