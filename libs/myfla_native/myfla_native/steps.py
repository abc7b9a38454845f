"""One token of a whole layer for each row, from the results of its projections to the input of its output projection,
in one call.

Nothing is checked: every tensor ``[N, 1, channels]`` must be without gaps and in one dtype, recurrent states must be
float32 without gaps; see `myfla.layers.native_steps`.
"""

import ctypes
from struct import Struct
from typing import Any, Callable, List, NamedTuple, Optional, Sequence, Tuple

import torch

from myfla_native.library import DTYPES, declare, threads
from myfla_native.norms import GATES
from myfla_native.rules import _CALL, _NONE, DPLR, GATED, KDA, Rule, _vector

__all__ = ["COMBA", "GATED", "GDN2", "KDA", "ConvLayer", "Rwkv7Layer", "plan_conv_layer", "plan_rwkv7_layer",
           "rwkv7_mix_step"]  # fmt: skip

COMBA, GDN2 = DPLR + 1, DPLR + 2
"""Layers that compute something else between their convolutions and the DPLR rule; the others are named as the rule."""

_LAYER = Struct("=26qd19q")  # what mn_conv_layer adds to an mn_rule
_RWKV7 = Struct("=13q2d2q")  # what mn_rwkv7_step adds
_layer_step = declare("mn_conv_layer_step", "p")
_rwkv7_step = declare("mn_rwkv7_layer_step", "p")
_LayerWords: Any = ctypes.c_int64 * ((_CALL.size + _LAYER.size) // 8)
_THREADS, _FINAL, _Y = 11, 68, 117  # words: threads, addresses of the new recurrent state and of the result
_KEPT = (96, 102, 108)  # the convolutions' new states
_GIVEN = (
    14, 20, 26, 92, 98, 104, 93, 99, 105, 94, 100, 106, 62, 32, 38, 50, 56, 113, 115, 44, 120, 126, 132
)  # of `ConvLayer`, in order
_Rwkv7Words: Any = ctypes.c_int64 * ((_CALL.size + _RWKV7.size) // 8)
_RWKV7_GIVEN = (14, 92, 20, 26, 93, 94, 95, 96, 62, 98, 99, 100, 101, 102)  # of `Rwkv7Layer`, in order
_RWKV7_Y = 104
_rwkv7_mix = declare("mn_rwkv7_mix_step", "pn pn pppppp n ii pp n")


class ConvLayer(NamedTuple):
    """The tensors of a layer's step: q, k and v before their convolutions, and the taps, biases and states of these.

    Those of ``[N, 1, channels]`` are in one dtype, and so are the states of the convolutions.
    """

    q: torch.Tensor  # [N, 1, H * K]
    k: torch.Tensor  # [N, 1, T * H * K]
    v: torch.Tensor  # [N, 1, T * HV * V]
    q_taps: torch.Tensor  # [D, 1, W]
    k_taps: torch.Tensor
    v_taps: torch.Tensor
    q_bias: Optional[torch.Tensor]  # [D]
    k_bias: Optional[torch.Tensor]
    v_bias: Optional[torch.Tensor]
    q_past: torch.Tensor  # [N, D, W], each row without gaps
    k_past: torch.Tensor
    v_past: torch.Tensor
    state: torch.Tensor  # [N, HV, K, V]
    g: Optional[torch.Tensor]  # [N, 1, HV], KDA [N, 1, HV, K], GDN2 [N, 1, H * K]
    beta: Optional[torch.Tensor]  # [N, 1, T * HV]; GDN2: None
    A_log: Optional[torch.Tensor]  # [HV], GDN2 [H]
    dt_bias: Optional[torch.Tensor]  # [HV], KDA [HV * K], GDN2 [H * K]
    gate: Optional[torch.Tensor]  # [N, 1, HV * V]
    norm: Optional[torch.Tensor]  # [V]
    erase: Optional[torch.Tensor] = None  # [N, 1, H * K], GDN2: before its sigmoid
    write: Optional[torch.Tensor] = None  # [N, 1, HV * V], GDN2: before its sigmoid
    inner: Optional[torch.Tensor] = None  # [H], COMBA: before its sigmoid
    output: Optional[torch.Tensor] = None  # [H], COMBA


def plan_conv_layer(
    kind: int, layer: ConvLayer, silu: Sequence[bool], l2norm: bool, beta_scale: int, scale: float, heads: int,
    activation: Optional[str], eps: float, lower_bound: Optional[float] = None, tokens: int = 1,
) -> Callable[..., Tuple[torch.Tensor, Tuple[torch.Tensor, ...]]]:  # fmt: skip
    """Plan a step of convolutions, a rule, and a root-mean-square norm of each head with or without gate. The arguments
    that do not change between calls are packed once.

    Args:
        kind: `GATED`, `KDA`, `COMBA` or `GDN2`.
        layer: the tensors.
        silu: of each convolution, whether it ends in SiLU.
        l2norm, beta_scale, scale, lower_bound: of the rule, see `myfla_native.rules.Rule`.
        heads: of q and k, H.
        activation: of the gate, ``"silu"``, ``"swish"`` or ``"sigmoid"``.
        eps: of the norm.
        tokens: T, for `GATED`: keys and values for each decay and query (products of Householder matrices).

    Returns:
        ``step(final, *layer)`` for tensors with the strides of these, where ``final`` receives the new recurrent state
        and may be the old one; it returns ``[N, 1, HV * V]`` in the dtype of v, and the new states of the convolutions.
    """
    state, g, beta, A_log, dt_bias, gate, norm, _, _, inner, output = layer[12:]
    N, HV, K, V = state.shape
    keys, values, dtype, size = heads * K, HV * V, DTYPES[layer.v.dtype], HV * K * V
    words: List[int] = []
    for past, ends_in_silu in zip(layer[9:12], silu):
        words += (0, 0, 0, past.stride(0), 0, ends_in_silu)
    own, decays = K if kind in (KDA, GDN2) else 1, heads if kind == GDN2 else HV
    rule = Rule(min(kind, DPLR), scale, l2norm, A_log, dt_bias, beta_scale, lower_bound=lower_bound)
    template = _CALL.pack(
        rule.kind, N, tokens, heads, HV, K, V, 0, l2norm, rule.gate, beta_scale, threads(), scale, lower_bound or 0.0,
        0, keys, keys, K, 1, dtype, 0, tokens * keys, keys, K, 1, dtype, 0, tokens * values, values, V, 1, dtype,
        *(_NONE if g is None else (0, decays * own, decays * own, own, 1, DTYPES[g.dtype])),
        *(_NONE if beta is None else (0, tokens * HV, HV, 1, 0, DTYPES[beta.dtype])), 0, keys, keys, K, 1, dtype,
        *_vector(A_log), *_vector(dt_bias, own), 0, size, V, K * V, 1, 0, 0, size, V, K * V, 1, 0,
        *_NONE, *_NONE, *_NONE,
    ) + _LAYER.pack(
        *words, layer.q_past.shape[2], DTYPES[layer.q_taps.dtype],
        0 if layer.q_bias is None else DTYPES[layer.q_bias.dtype], 0, 0 if gate is None else GATES[activation], 0,
        0 if norm is None else DTYPES[norm.dtype], 0, eps, max(kind - DPLR, 0), 0, values, values, V, 1, dtype,
        *_vector(inner), *_vector(output),
    )  # fmt: skip

    gaps = not all(past.is_contiguous() for past in layer[9:12])

    def step(final: torch.Tensor, *given: Any) -> Tuple[torch.Tensor, Tuple[torch.Tensor, ...]]:
        pasts = [past.contiguous() for past in given[9:12]] if gaps else given[9:12]
        v = given[2]
        y = torch.empty_like(v) if tokens == 1 else v.new_empty((N, 1, values))
        kept = tuple(map(torch.empty_like, pasts))
        words = _LayerWords.from_buffer_copy(template)
        words[_THREADS], words[_FINAL], words[_Y] = threads(), final.data_ptr(), y.data_ptr()
        for place, x in zip(_KEPT, kept):
            words[place] = x.data_ptr()
        for place, x in zip(_GIVEN, given):
            if x is not None:
                words[place] = x.data_ptr()
        _layer_step(words)
        return y, kept

    return step


def rwkv7_mix_step(
    x: torch.Tensor, last: torch.Tensor, mixes: Sequence[torch.Tensor]
) -> Tuple[Tuple[torch.Tensor, ...], torch.Tensor]:
    """``x + (last - x) mix`` for each of six mixes, ``[N, 1, D]``, and x as ``last`` of the next call, ``[N, D]``.

    Args:
        x: ``[N, 1, D]``.
        last: ``[N, D]``, the tokens before.
        mixes: six of ``[1, 1, D]``, in one dtype.
    """
    N, _, D = x.shape
    y, now = torch.empty((6, N, 1, D), dtype=x.dtype), torch.empty((N, D), dtype=x.dtype)
    _rwkv7_mix(
        x.data_ptr(), DTYPES[x.dtype], last.data_ptr(), DTYPES[last.dtype], *[m.data_ptr() for m in mixes],
        DTYPES[mixes[0].dtype], N, D, y.data_ptr(), now.data_ptr(), threads(),
    )  # fmt: skip
    return y.unbind(0), now


class Rwkv7Layer(NamedTuple):
    """The tensors of an RWKV-7 layer's step between its projections; those of ``[N, 1, channels]`` are in one dtype,
    and so are all parameters."""

    r: torch.Tensor  # [N, 1, H * K]
    w: torch.Tensor  # [N, 1, H * K], before its activation
    k: torch.Tensor  # [N, 1, H * K]
    v: torch.Tensor  # [N, 1, H * V]
    a: torch.Tensor  # [N, 1, H * K], before its activation
    gate: torch.Tensor  # [N, 1, H * V]
    v_first: Optional[torch.Tensor]  # [N, 1, H * V], the first layer's values
    v_gate: Optional[torch.Tensor]  # [N, 1, H * V], their share, before the sigmoid
    state: torch.Tensor  # [N, H, K, V]
    k_k: torch.Tensor  # [H * K]
    k_a: torch.Tensor  # [H * K]
    r_k: torch.Tensor  # [H, K]
    norm_weight: Optional[torch.Tensor]  # [H * V]
    norm_bias: Optional[torch.Tensor]  # [H * V]


def plan_rwkv7_layer(
    layer: Rwkv7Layer, norm_eps: float, unit_eps: Optional[float]
) -> Callable[..., torch.Tensor]:
    """Plan a step of the value residual, the keys' gates, the rule, the norm of its heads, the token's bonus and the
    output gate. The arguments that do not change between calls are packed once.

    Args:
        layer: the tensors.
        norm_eps: of the norm.
        unit_eps: added to the squared length of kk; None: lengths below 1e-12 count as 1e-12 instead.

    Returns:
        ``step(final, *layer)`` for tensors with the strides of these, where ``final`` receives the new state and may be
        the old one; it returns ``[N, 1, H * V]``.
    """
    N, H, K, V = layer.state.shape
    dtype, keys, values, size = DTYPES[layer.v.dtype], H * K, H * V, H * K * V
    template = _CALL.pack(
        DPLR, N, 1, H, H, K, V, 0, False, 0, 0, threads(), 1.0, 0.0,
        0, keys, keys, K, 1, dtype, 0, keys, keys, K, 1, dtype, 0, values, values, V, 1, dtype,
        *_NONE, *_NONE, *_NONE, *_NONE, *_NONE,
        0, size, V, K * V, 1, 0, 0, size, V, K * V, 1, 0, *_NONE, *_NONE, *_NONE,
    ) + _RWKV7.pack(
        0, 0, 0, 0, 0, dtype, 0, 0, 0, 0, 0, DTYPES[layer.k_k.dtype], 0, norm_eps,
        -1.0 if unit_eps is None else unit_eps, 0, 0,
    )  # fmt: skip

    def step(final: torch.Tensor, *given: Any) -> torch.Tensor:
        y, words = torch.empty_like(given[3]), _Rwkv7Words.from_buffer_copy(template)
        words[_THREADS], words[_FINAL], words[_RWKV7_Y] = threads(), final.data_ptr(), y.data_ptr()
        for place, x in zip(_RWKV7_GIVEN, given):
            if x is not None:
                words[place] = x.data_ptr()
        _rwkv7_step(words)
        return y

    return step
