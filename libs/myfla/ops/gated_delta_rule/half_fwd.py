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
"""

from typing import NamedTuple, Optional, Tuple

import torch

from myfla.ops.common.half_inverse import invert_unit_lower
from myfla.ops.common.half_products import accumulate, product, put
from myfla.ops.gated_delta_rule.half_factors import load_factors, reciprocal_length
from myfla.ops.gated_delta_rule.half_scan import scan, scan_groups
from myfla.ops.gated_delta_rule.half_tokens import Cut
from myfla.utils.autocast import without_autocast

Lengths = Optional[Tuple[torch.Tensor, torch.Tensor]]


class Kept(NamedTuple):
    """What the backward needs beside the inputs."""

    both: torch.Tensor  # [M, 2C, K]  Q above K, as given
    stack: torch.Tensor  # [M, V + C, K]  the state before each chunk above K
    reads: torch.Tensor  # [M, C, K]  rise q
    handed: torch.Tensor  # [M, C, K]  fall k~
    reader: torch.Tensor  # [M, C, K]  T rise k
    delta: torch.Tensor  # [M, C, V]
    inverse: torch.Tensor  # [M, C, C]  T
    attend: torch.Tensor  # [M, C, C]  pair * q k~^T
    passed: Optional[torch.Tensor]  # [rows, K, K]  each group's effect on a state, if there are groups


def lengths_of(q: torch.Tensor, k: torch.Tensor, unit: bool, dtype: torch.dtype) -> Lengths:
    """What brings q and k to length one, ``[B, T, H]``; None where they stay as they are."""
    return (reciprocal_length(q, dtype), reciprocal_length(k, dtype)) if unit else None


@without_autocast
def half_forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    initial_state: Optional[torch.Tensor],
    scale: float,
    cut: Cut,
    unit: bool,
    dtype: torch.dtype,
) -> Tuple[torch.Tensor, torch.Tensor, Kept]:
    """Outputs, final states and what the backward needs.

    Args:
        q, k: ``[B, T, H, K]``.
        v: ``[B, T, HV, V]``, all three of one dtype.
        g, beta: ``[B, T, HV]``.
        initial_state: ``[B, HV, K, V]`` or None.
        scale: factor on q.
        cut: how the tokens are cut into chunks.
        unit: bring q and k to length one first.
        dtype: of sums and states.

    Returns:
        o ``[B, T, HV, V]`` in v's dtype, final states ``[B, HV, K, V]`` in ``dtype``, `Kept`.
    """
    key, value, m, chunk = k.shape[3], v.shape[3], cut.matrices, cut.chunk
    f = load_factors(cut, g, beta, scale, lengths_of(q, k, unit, dtype), dtype)
    both, stack = (v.new_empty(m, rows, key) for rows in (2 * chunk, value + chunk))
    queries, keys, states = both[:, :chunk], stack[:, value:], stack[:, :value]
    cut.load(q, queries)
    cut.load(k, both[:, chunk:])
    cut.load(k, keys)

    weights = f.pair * f.write.transpose(1, 2)
    overlap = product(keys, keys.transpose(1, 2), dtype)
    full = invert_unit_lower(overlap.mul_(weights).mul_(f.key))
    attend = put(torch.empty_like(full, dtype=v.dtype), product(queries, keys.transpose(1, 2), dtype, out=overlap),
                 weights.mul_(f.query))  # fmt: skip
    inverse = full.to(v.dtype, copy=True)
    delta = product(inverse, cut.load(v, v.new_empty(m, chunk, value)))
    reader = product(full.mul_((f.rise * f.key).transpose(1, 2)).to(v.dtype), keys)
    reads, handed = torch.empty_like(reader), torch.empty_like(reader)
    put(reads, queries, f.rise * f.query)
    put(handed, keys, f.fall * f.write)

    if initial_state is None:
        state = torch.zeros(cut.batch * cut.heads, value, key, dtype=dtype, device=v.device)
    else:
        state = initial_state.flatten(0, 1).transpose(1, 2).to(dtype).clone(memory_format=torch.contiguous_format)
    first, second, third, whole = (cut.by_row(x) for x in (delta, reader, handed, f.whole))
    kept, passed = cut.by_row(states), None
    if cut.groups > 1:
        final, passed = scan_groups(cut, first, second, third, whole, state, kept)
    else:
        final = scan(first, second, third, whole, state, kept)
    final = final.unflatten(0, (cut.batch, cut.heads)).transpose(2, 3).contiguous()

    out = product(reads, states.transpose(1, 2))
    accumulate(out, attend, delta)
    return cut.store(out, v), final, Kept(both, stack, reads, handed, reader, delta, inverse, attend, passed)
