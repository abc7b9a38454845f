"""A layer's decoding step, between its projections, in one call of the compiled kernels (`myfla.utils.native`).

These functions compute one token for each row, with states from a cache. If a function returns None, the layer computes
the step operation by operation, with the same result up to rounding.
"""

import functools
from typing import Any, FrozenSet, NamedTuple, Optional, Sequence, Tuple, cast

import torch
from torch import nn

from myfla.backends.choice import tell
from myfla.layers.projections import is_free, project
from myfla.layers.recurrent_layer import LayerCall
from myfla.modules import FusedRMSNormGated, GroupNorm, RMSNorm, ShortConvolution
from myfla.ops._delta.plans import find_plan, keep_plan, layout_key
from myfla.utils.dtypes import autocast_enabled
from myfla.utils.native import are_dense, native

__all__ = ["StepGates", "conv_layer_step", "keeps_methods", "rwkv7_layer_step", "rwkv7_mix_step"]

_METHODS = frozenset(("_mix", "_qkv", "_convs", "_output", "gates", "_gate_input"))
"""Methods of a `ConvLayer` that compiled forms compute instead of calling them."""


class StepGates(NamedTuple):
    """The arguments of a layer's rule besides q, k and v, for one token in each row.

    Attributes:
        g: ``[N, 1, HV]``, or None: no decay; for KDA ``[N, 1, HV, K]``, for GDN2 ``[N, 1, H * K]``.
        beta: ``[N, 1, HV]``, with ``tokens`` as many times; None for GDN2.
        A_log, dt_bias: ``[HV]``, for KDA dt_bias ``[HV * K]``, where g is a pre-activation, else None; for GDN2 ``[H]``
            and ``[H * K]``.
        beta_scale: 0: beta is the write strength; 1 or 2: the write strength is this times the sigmoid of beta; for
            GDN2 of ``erase``.
        l2norm: q and k are brought to length one.
        rule: ``"GATED"``, ``"KDA"``, ``"COMBA"`` or ``"GDN2"``.
        lower_bound: of the gate of KDA, or None.
        tokens: for GATED, the number of keys and values for each query and decay.
        erase, write: for GDN2 ``[N, 1, H * K]`` and ``[N, 1, HV * V]``, before their sigmoids.
        inner, output: for COMBA ``[H]``, the inner decay before its sigmoid and the output correction, or None.
    """

    g: Optional[torch.Tensor]
    beta: Optional[torch.Tensor]
    A_log: Optional[torch.Tensor] = None
    dt_bias: Optional[torch.Tensor] = None
    beta_scale: int = 0
    l2norm: bool = True
    rule: str = "GATED"
    lower_bound: Optional[float] = None
    tokens: int = 1
    erase: Optional[torch.Tensor] = None
    write: Optional[torch.Tensor] = None
    inner: Optional[torch.Tensor] = None
    output: Optional[torch.Tensor] = None


def conv_layer_step(
    layer: Any, x: torch.Tensor, call: LayerCall
) -> Optional[Tuple[torch.Tensor, torch.Tensor, Tuple[torch.Tensor, ...]]]:
    """Convolutions, rule and norm of one token for each row, after the layer's projections; or None.

    Args:
        layer: a `ConvLayer`. If its convolutions or norm have a hook or another type, the result is None.
        x: ``[N, T, D]``, the layer's input.
        call: the call of the layer.

    Returns:
        ``[N, 1, HV * V]`` for the output projection, the new recurrent state and the convolutions' new states.
    """
    kernels = _step_kernels(layer, x, call)
    if kernels is None or not keeps_methods(layer, "_step_gates"):
        return None
    modules = layer._modules
    convs = modules.get("q_conv1d"), modules.get("k_conv1d"), modules.get("v_conv1d")
    norm = modules.get("o_norm")
    gated = type(norm) is FusedRMSNormGated
    if not ((gated or type(norm) is RMSNorm) and is_free(norm) and all(map(_is_plain_conv, convs))):
        return None
    gates = layer._step_gates(x)
    if gates is None:
        return None
    gate = project(modules["g_proj"], x) if gated else None
    q, k, v = (conv._parameters for conv in convs)
    state = cast(torch.Tensor, call.recurrent_state)
    given = (
        *layer._project(x), q["weight"], k["weight"], v["weight"], q["bias"], k["bias"], v["bias"], *call.conv_state,
        state, gates.g, gates.beta, gates.A_log, gates.dt_bias, gate, norm._parameters["weight"], gates.erase,
        gates.write, gates.inner, gates.output,
    )  # fmt: skip
    options = (
        layer.num_heads, layer.num_v_heads, layer.head_k_dim, layer.head_v_dim, layer.conv_size, layer.backend,
        convs[0].activation, convs[1].activation, convs[2].activation, gates.beta_scale, gates.l2norm, gates.rule,
        gates.lower_bound, gates.tokens, gated, norm.activation if gated else None, norm.eps,
    )  # fmt: skip
    key = layout_key(f"{layer.who} step", options, *given)
    step = find_plan(key)
    if step is None:
        if not _conv_layer_fits(kernels, layer, x.shape[0], gates, kernels.steps.ConvLayer(*given)):
            return None
        step = kernels.steps.plan_conv_layer(
            getattr(kernels.steps, gates.rule), kernels.steps.ConvLayer(*given),
            [conv.activation is not None for conv in convs], gates.l2norm, gates.beta_scale, layer.head_k_dim**-0.5,
            layer.num_heads, norm.activation if gated else None, norm.eps, gates.lower_bound,
            gates.tokens,
        )  # fmt: skip
        tell(f"{layer.who} step", layer.backend, "cpu", "native")
        if key is not None:
            keep_plan(key, step)
    final = state if call.inplace else torch.empty_like(state)
    y, conv_state = step(final, *given)
    return y, final, conv_state


def keeps_methods(layer: Any, described_by: str, *others: str) -> bool:
    """Whether a `ConvLayer` computes as the class does whose method describes it for a compiled form, also in these
    other methods."""
    methods = _METHODS.union(others) if others else _METHODS
    return _has_own_methods(layer.__class__, described_by, methods) and methods.isdisjoint(layer.__dict__)


@functools.lru_cache(maxsize=64)
def _has_own_methods(kind: Any, described_by: str, methods: FrozenSet[str]) -> bool:
    owner = next(one for one in kind.__mro__ if described_by in vars(one))
    return all(getattr(kind, name, None) is getattr(owner, name, None) for name in methods)


def _is_plain_conv(conv: Any) -> bool:
    """Whether a module, or None, is a short convolution without hooks."""
    return type(conv) is ShortConvolution and is_free(conv)


def _conv_layer_fits(kernels: Any, layer: Any, rows: int, gates: StepGates, t: Any) -> bool:
    """Whether the tensors (a `myfla_native.steps.ConvLayer`) are what the compiled step reads."""
    kind, taps, heads, keys = t.q.dtype, layer.conv_size, layer.num_v_heads, layer.key_dim
    parts, weights, biases, pasts = t[:3], t[3:6], t[6:9], t[9:12]
    values = heads * layer.head_v_dim
    g: Tuple[int, ...] = (heads,)
    A_log, dt_bias = heads, heads
    if gates.rule == "KDA":
        g, dt_bias = (heads, layer.head_k_dim), heads * layer.head_k_dim
    elif gates.rule == "GDN2":
        g, A_log, dt_bias = (keys,), layer.num_heads, keys
    given = [bias for bias in biases if bias is not None]
    fits = (
        taps <= kernels.MOST_TAPS
        and are_dense(kind, *(x for x in (*parts, t.gate, t.erase, t.write) if x is not None))
        and are_dense(kind, *(past[0] for past in pasts))
        and are_dense(torch.float32, t.state)
        and are_dense(weights[0].dtype, *weights)
        and (not given or (len(given) == len(biases) and are_dense(given[0].dtype, *given)))
        and all(x is None or are_dense(x.dtype, x) for x in (*t[13:17], t.norm, t.inner, t.output))
        and _have((rows, 1, *g), t.g)
        and _have((rows, 1, gates.tokens * heads), t.beta)
        and _have((A_log,), t.A_log)
        and _have((dt_bias,), t.dt_bias)
        and _have((rows, 1, keys), t.erase)
        and _have((rows, 1, values), t.gate, t.write)
        and _have((layer.num_heads,), t.inner, t.output)
        and _have((layer.head_v_dim,), t.norm)
    )
    return fits and all(
        _have((rows, 1, size), part) and _have((size, 1, taps), filters) and _have((size,), bias)
        for size, part, filters, bias in zip(layer.conv_channels, parts, weights, biases)
    )


def rwkv7_mix_step(
    layer: Any, x: torch.Tensor, mixes: Sequence[torch.Tensor], call: LayerCall
) -> Optional[Tuple[Tuple[torch.Tensor, ...], torch.Tensor]]:
    """Token shift and the six mixtures of one token for each row, and the token for the next call; or None.

    Args:
        layer: of RWKV-7.
        x: ``[N, T, D]``.
        mixes: six of ``[1, 1, D]``.
        call: the call of the layer.
    """
    kernels, last = _step_kernels(layer, x, call), call.conv_state
    if kernels is None or not (are_dense(x.dtype, x) and are_dense(last.dtype, last)):
        return None
    if not are_dense(mixes[0].dtype, *mixes) or not _have((1, 1, x.shape[2]), *mixes):
        return None
    return kernels.steps.rwkv7_mix_step(x, last, mixes)


def rwkv7_layer_step(
    layer: Any, projected: Sequence[Optional[torch.Tensor]], call: LayerCall
) -> Optional[Tuple[torch.Tensor, torch.Tensor]]:
    """All operations between the projections of RWKV-7, for one token in each row; or None.

    Args:
        layer: of RWKV-7. If its norm has a hook or another type, the result is None.
        projected: r, w, k, v, a, the output gate, and the first layer's values and the share of them (or None both),
            as `myfla.layers.rwkv7_core.Projected` has them.
        call: the call of the layer.

    Returns:
        ``[N, 1, value_dim]`` for the output projection, and the new recurrent state.
    """
    first, norm = projected[0], layer._modules["g_norm"]
    kernels = None if first is None else _step_kernels(layer, first, call)
    if kernels is None or type(norm) not in (nn.GroupNorm, GroupNorm) or not is_free(norm):
        return None
    own, state = layer._parameters, cast(torch.Tensor, call.recurrent_state)
    given = *projected, state, own["k_k"], own["k_a"], own["r_k"], norm.weight, norm.bias
    options = layer.backend, layer.num_heads, layer.key_dim, layer.value_dim, layer.fuse_norm, norm.num_groups, norm.eps
    key = layout_key("RWKV7Attention step", options, *given)
    step = find_plan(key)
    if step is None:
        if not _rwkv7_layer_fits(layer, norm, kernels.steps.Rwkv7Layer(*given)):
            return None
        tell("RWKV7Attention step", layer.backend, "cpu", "native")
        unit_eps = 1e-6 if layer.fuse_norm else None
        step = kernels.steps.plan_rwkv7_layer(kernels.steps.Rwkv7Layer(*given), norm.eps, unit_eps)
        if key is not None:
            keep_plan(key, step)
    final = state if call.inplace else torch.empty_like(state)
    return step(final, *given), final


def _rwkv7_layer_fits(layer: Any, norm: Any, t: Any) -> bool:
    """Whether the norm and the tensors (a `myfla_native.steps.Rwkv7Layer`) are what the compiled step reads."""
    tokens, keys, values = t.r.shape[:2], (layer.key_dim,), (layer.value_dim,)
    return (
        norm.num_groups == layer.num_heads
        and are_dense(t.r.dtype, *(x for x in t[:8] if x is not None))
        and are_dense(t.k_k.dtype, *(x for x in t[9:] if x is not None))
        and are_dense(torch.float32, t.state)
        and _have((*tokens, *keys), t.r, t.w, t.k, t.a)
        and _have((*tokens, *values), t.v, t.gate, t.v_first, t.v_gate)
        and _have(keys, t.k_k, t.k_a)
        and _have(values, t.norm_weight, t.norm_bias)
        and t.r_k.numel() == layer.key_dim
    )


def _step_kernels(layer: Any, x: torch.Tensor, call: LayerCall) -> Any:
    """The kernels, if a call is one token for each row, from states in a cache, and they may be chosen; else None."""
    if (
        call.keep
        and not call.chunks
        and x.shape[1] == 1
        and call.cu_seqlens is None
        and call.recurrent_state is not None
        and call.conv_state is not None
        and layer.backend in ("auto", "native")
        and not torch.is_grad_enabled()
    ):
        kernels = native()
        if kernels is not None and x.numel() > 0 and not autocast_enabled("cpu"):
            return kernels
    return None


def _have(shape: Tuple[int, ...], *tensors: Optional[torch.Tensor]) -> bool:
    """Whether all given tensors have that shape, which the kernels do not check."""
    return all(x is None or x.shape == shape for x in tensors)
