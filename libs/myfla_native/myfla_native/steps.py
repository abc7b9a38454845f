"""One token of a whole layer for each row, from its projections to what its last map takes, in one call.

Without checks: every tensor ``[N, 1, channels]`` is without gaps and in one number format, recurrent states are float32
without gaps; see `myfla.layers.native_steps`.
"""

from struct import Struct
from typing import List, NamedTuple, Optional, Sequence, Tuple

import torch

from myfla_native.library import DTYPES, declare, threads
from myfla_native.norms import GATES
from myfla_native.rules import _CALL, _NONE, DPLR, GATED, _vector

__all__ = ["ConvPart", "Gates", "conv_layer_step", "rwkv7_layer_step", "rwkv7_mix_step"]

_LAYER = Struct("=26qd")  # what mn_conv_layer adds to an mn_rule
_RWKV7 = Struct("=13q2d2q")  # what mn_rwkv7_step adds
_layer_step = declare("mn_conv_layer_step", "p")
_rwkv7_step = declare("mn_rwkv7_layer_step", "p")
_rwkv7_mix = declare("mn_rwkv7_mix_step", "pn pn pppppp n ii pp n")


class ConvPart(NamedTuple):
    """q, k or v before its convolution, ``[N, 1, D]``, and that convolution."""

    x: torch.Tensor
    weight: torch.Tensor  # [D, 1, W]
    bias: Optional[torch.Tensor]  # [D]
    state: torch.Tensor  # [N, D, W] in the format of x, each row without gaps
    silu: bool


class Gates(NamedTuple):
    """What the gated delta rule takes beside q, k and v; see `myfla_native.rules.Rule`."""

    g: Optional[torch.Tensor]  # [N, 1, HV]
    beta: torch.Tensor  # [N, 1, HV]
    A_log: Optional[torch.Tensor]
    dt_bias: Optional[torch.Tensor]
    beta_scale: int
    l2norm: bool


def conv_layer_step(
    parts: Sequence[ConvPart], gates: Gates, scale: float, heads: int, state: torch.Tensor, final: torch.Tensor,
    gate: Optional[torch.Tensor], activation: Optional[str], weight: Optional[torch.Tensor], eps: float,
) -> Tuple[torch.Tensor, Tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:  # fmt: skip
    """Convolutions, the gated delta rule, a root-mean-square norm of each head with or without gate.

    Args:
        parts: q, k and v.
        gates, scale: of the rule.
        heads: of q and k, H.
        state: ``[N, HV, K, V]``.
        final: where the new one goes; may be ``state``.
        gate: ``[N, 1, HV * V]`` or None.
        activation: of the gate, ``"silu"``, ``"swish"`` or ``"sigmoid"``.
        weight, eps: of the norm, ``[V]``.

    Returns:
        ``[N, 1, HV * V]`` in the format of the parts, and the new states of the convolutions.
    """
    q, k, v = parts
    N, HV, K, V = state.shape
    kind, keys, values = v.x.dtype, heads * K, HV * V
    dtype, size = DTYPES[kind], HV * K * V
    y = torch.empty((N, 1, values), dtype=kind)
    finals = (torch.empty(q.state.shape, dtype=kind), torch.empty(k.state.shape, dtype=kind),
              torch.empty(v.state.shape, dtype=kind))
    words: List[int] = []
    for (_, taps, bias, past, silu), kept in zip(parts, finals):
        words += (taps.data_ptr(), 0 if bias is None else bias.data_ptr(), past.data_ptr(), past.stride(0),
                  kept.data_ptr(), silu)
    g, beta, A_log, dt_bias, beta_scale, l2norm = gates
    _layer_step(_CALL.pack(
        GATED, N, 1, heads, HV, K, V, 0, l2norm, A_log is not None, beta_scale, threads(), scale,
        q.x.data_ptr(), keys, keys, K, 1, dtype, k.x.data_ptr(), keys, keys, K, 1, dtype,
        v.x.data_ptr(), values, values, V, 1, dtype,
        *(_NONE if g is None else (g.data_ptr(), HV, HV, 1, 0, DTYPES[g.dtype])),
        beta.data_ptr(), HV, HV, 1, 0, DTYPES[beta.dtype], *_NONE, *_vector(A_log), *_vector(dt_bias),
        state.data_ptr(), size, V, K * V, 1, 0, final.data_ptr(), size, V, K * V, 1, 0, *_NONE, *_NONE, *_NONE,
    ) + _LAYER.pack(
        *words, q.state.shape[2], DTYPES[q.weight.dtype], 0 if q.bias is None else DTYPES[q.bias.dtype],
        0 if gate is None else gate.data_ptr(), GATES[activation], 0 if weight is None else weight.data_ptr(),
        0 if weight is None else DTYPES[weight.dtype], y.data_ptr(), eps,
    ))  # fmt: skip
    return y, finals


def rwkv7_mix_step(
    x: torch.Tensor, last: torch.Tensor, mixes: Sequence[torch.Tensor]
) -> Tuple[Tuple[torch.Tensor, ...], torch.Tensor]:
    """``x + (last - x) mix`` for each of six mixes, ``[N, 1, D]``, and x as the next call's last ``[N, D]``.

    Args:
        x: ``[N, 1, D]``.
        last: ``[N, D]``, the tokens before.
        mixes: six of ``[1, 1, D]``, in one format.
    """
    N, _, D = x.shape
    y, now = torch.empty((6, N, 1, D), dtype=x.dtype), torch.empty((N, D), dtype=x.dtype)
    _rwkv7_mix(
        x.data_ptr(), DTYPES[x.dtype], last.data_ptr(), DTYPES[last.dtype], *[m.data_ptr() for m in mixes],
        DTYPES[mixes[0].dtype], N, D, y.data_ptr(), now.data_ptr(), threads(),
    )  # fmt: skip
    return y.unbind(0), now


def rwkv7_layer_step(
    r: torch.Tensor, w: torch.Tensor, k: torch.Tensor, v: torch.Tensor, a: torch.Tensor, gate: torch.Tensor,
    v_first: Optional[torch.Tensor], v_gate: Optional[torch.Tensor], state: torch.Tensor, final: torch.Tensor,
    k_k: torch.Tensor, k_a: torch.Tensor, r_k: torch.Tensor, norm_weight: Optional[torch.Tensor],
    norm_bias: Optional[torch.Tensor], norm_eps: float, unit_eps: Optional[float],
) -> torch.Tensor:  # fmt: skip
    """The value residual, the keys' gates, the rule, the norm of its heads, the token's bonus and the output gate.

    Args:
        r, w, k, a: ``[N, 1, H * K]``, w and a before their activations.
        v, gate: ``[N, 1, H * V]``.
        v_first, v_gate: ``[N, 1, H * V]``, the first layer's values and the share of them before its sigmoid; or None.
        state: ``[N, H, K, V]``.
        final: where the new one goes; may be ``state``.
        k_k, k_a, r_k: ``[H * K]``, in one format with the norm's parameters.
        norm_weight, norm_bias, norm_eps: of the norm, ``[H * V]``.
        unit_eps: added to the squared length of kk; None: lengths below 1e-12 count as that.

    Returns:
        ``[N, 1, H * V]``.
    """
    N, H, K, V = state.shape
    dtype, keys, values, size = DTYPES[v.dtype], H * K, H * V, H * K * V
    y = torch.empty((N, 1, values), dtype=v.dtype)
    _rwkv7_step(_CALL.pack(
        DPLR, N, 1, H, H, K, V, 0, False, False, 0, threads(), 1.0,
        r.data_ptr(), keys, keys, K, 1, dtype, k.data_ptr(), keys, keys, K, 1, dtype,
        v.data_ptr(), values, values, V, 1, dtype, *_NONE, *_NONE, *_NONE, *_NONE, *_NONE,
        state.data_ptr(), size, V, K * V, 1, 0, final.data_ptr(), size, V, K * V, 1, 0, *_NONE, *_NONE, *_NONE,
    ) + _RWKV7.pack(
        w.data_ptr(), a.data_ptr(), gate.data_ptr(), 0 if v_first is None else v_first.data_ptr(),
        0 if v_gate is None else v_gate.data_ptr(), dtype, k_k.data_ptr(), k_a.data_ptr(), r_k.data_ptr(),
        0 if norm_weight is None else norm_weight.data_ptr(), 0 if norm_bias is None else norm_bias.data_ptr(),
        DTYPES[k_k.dtype], y.data_ptr(), norm_eps, -1.0 if unit_eps is None else unit_eps, 0, 0,
    ))  # fmt: skip
    return y
