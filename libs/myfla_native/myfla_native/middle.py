"""What stands between a layer's projections, for whole sequences: convolutions of q, k and v, the gated delta rule or
KDA with q and k of length one, a norm with or without gate; forward and backward in one call each.

Everything is float32. Letters are those of `myfla_native.rules`; W is the number of taps.
"""

from struct import Struct
from typing import Any, List, NamedTuple, Optional, Sequence, Tuple

import torch

from myfla_native.library import declare, empty, threads
from myfla_native.norms import GATES
from myfla_native.rules import KEPT, gate_of

__all__ = ["Middle", "Place", "backward", "forward", "place"]

_CALL = Struct("=14q3d23q")  # mn_middle
_GRADIENTS = Struct("=23q")  # what mn_middle_grad adds
_forward = declare("mn_middle_forward", "p")
_backward = declare("mn_middle_backward", "p")

Place = Tuple[int, int]
"""Rows ``[B, T, channels]``: the address, 0 for a missing tensor, and how many numbers lie from one token to the
next."""


class Middle(NamedTuple):
    """The sizes and options of a layer.

    Attributes:
        heads, value_heads, key, value, taps: H, HV, K, V, W.
        silu: behind the convolutions.
        kind: `rules.GATED` or `rules.KDA`.
        beta_scale: see `rules.Rule`.
        activation: of the norm's gate, ``"silu"``, ``"swish"`` or ``"sigmoid"``; None: it has none.
        scale, lower_bound: see `rules.Rule`.
        eps: of the norm.
    """

    heads: int
    value_heads: int
    key: int
    value: int
    taps: int
    silu: bool
    kind: int
    beta_scale: int
    activation: Optional[str]
    scale: float
    lower_bound: Optional[float]
    eps: float


def place(x: Optional[torch.Tensor]) -> Place:
    """Of a tensor without gaps."""
    return (0, 0) if x is None else (x.data_ptr(), x.shape[-1])


def forward(
    m: Middle, batch: int, tokens: int, projected: Sequence[Place], parameters: Sequence[Optional[torch.Tensor]],
    cu_seqlens: Optional[torch.Tensor] = None,
) -> Tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """The result, and a tensor for `backward`.

    Args:
        m: sizes and options.
        batch, tokens: B and T.
        projected: results of projections: q, k, v ``[B, T, heads * channels]`` before their convolutions, the norm's
            gate ``[B, T, HV * V]``, the rule's gate ``[B, T, HV]``, KDA ``[B, T, HV * K]``, and beta ``[B, T, HV]``;
            the last three may be missing.
        parameters: without gaps; the convolutions' taps ``[channels, 1, W]`` and biases ``[channels]``, three each,
            ``A_log [HV]``, ``dt_bias [HV]``, KDA ``[HV * K]``, and the norm's weight ``[V]``; None where there is none.
        cu_seqlens: ``[N + 1]`` int64, offsets of sequences packed in one row.

    Returns:
        ``[B, T, HV * V]`` for the output projection, and the tensor for `backward`.
    """
    values = m.value_heads * m.value
    slots = batch * (tokens // KEPT) if cu_seqlens is None else tokens // KEPT + cu_seqlens.shape[0] - 1
    y = empty((batch, tokens, values), torch.float32)
    own = 2 * m.heads * m.key + 3 * values + m.value_heads
    kept = empty((batch * tokens * own + slots * values * m.key,), torch.float32)
    _forward(_call(m, batch, tokens, projected, parameters, cu_seqlens, kept, y.data_ptr()))
    return y, kept


def backward(
    m: Middle, projected: Sequence[Place], parameters: Sequence[Optional[torch.Tensor]], kept: torch.Tensor,
    dy: torch.Tensor, room: torch.Tensor, into: Sequence[Place], found: Sequence[Optional[torch.Tensor]],
    cu_seqlens: Optional[torch.Tensor] = None,
) -> None:  # fmt: skip
    """Gradients of `forward`.

    Args:
        m, projected, parameters, cu_seqlens: as for `forward`.
        kept: its second result.
        dy: ``[B, T, HV * V]`` without gaps, the gradient of its first result.
        room: shaped as dy, is overwritten; it may be dy.
        into: places of ``projected`` that receive the gradients.
        found: tensors in the shapes of ``parameters`` that receive the gradients, None where these are None.
    """
    words = [dy.data_ptr(), room.data_ptr()]
    for where in into:
        words += where
    for x in found:
        words.append(0 if x is None else x.data_ptr())
    call = _call(m, dy.shape[0], dy.shape[1], projected, parameters, cu_seqlens, kept, 0)
    _backward(call + _GRADIENTS.pack(*words))


def _call(
    m: Middle, batch: int, tokens: int, projected: Sequence[Place], parameters: Sequence[Optional[torch.Tensor]],
    cu: Optional[torch.Tensor], kept: torch.Tensor, y: int,
) -> bytes:  # fmt: skip
    """An ``mn_middle``."""
    gate = gate_of(parameters[6], m.lower_bound)
    sequences, offsets = (batch, 0) if cu is None else (cu.shape[0] - 1, cu.data_ptr())
    words: List[Any] = [
        sequences, tokens, *m[:6], offsets, m.kind, gate, m.beta_scale, GATES[m.activation], threads(), m.scale,
        m.lower_bound or 0.0, m.eps,
    ]  # fmt: skip
    for where in projected:
        words += where
    for x in parameters:
        words.append(0 if x is None else x.data_ptr())
    return _CALL.pack(*words, kept.data_ptr(), y)
