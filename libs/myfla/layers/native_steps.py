"""A layer's decoding step, between its projections, in one call of the compiled kernels (`myfla.utils.native`).

These functions compute one token for each row, with states from a cache. If a function returns None, the layer computes
the step operation by operation, with the same result up to rounding.
"""

from typing import Any, NamedTuple, Optional, Sequence, Tuple, cast

import torch
from torch import nn

from myfla.backends.choice import tell
from myfla.layers.half import project
from myfla.layers.recurrent_layer import LayerCall
from myfla.modules import FusedRMSNormGated, GroupNorm, RMSNorm, ShortConvolution
from myfla.utils.autocast import autocast_enabled
from myfla.utils.native import are_dense, native

__all__ = ["StepGates", "conv_layer_step", "rwkv7_layer_step", "rwkv7_mix_step"]


class StepGates(NamedTuple):
    """The arguments of a layer's gated delta rule besides q, k and v, for one token in each row.

    Attributes:
        g, beta: ``[N, 1, HV]``; g may be None: no decay.
        A_log, dt_bias: ``[HV]`` where g is a pre-activation, else None.
        beta_scale: 0: beta is the write strength; 1 or 2: so many times its sigmoid is.
        l2norm: q and k are brought to length one.
    """

    g: Optional[torch.Tensor]
    beta: torch.Tensor
    A_log: Optional[torch.Tensor] = None
    dt_bias: Optional[torch.Tensor] = None
    beta_scale: int = 0
    l2norm: bool = True


def conv_layer_step(
    layer: Any, x: torch.Tensor, call: LayerCall
) -> Optional[Tuple[torch.Tensor, torch.Tensor, Tuple[torch.Tensor, ...]]]:
    """Convolutions, rule and norm of one token for each row, behind the layer's projections; or None.

    Args:
        layer: a `ConvLayer`. One whose convolutions or norm have a hook, or are something else, is left alone.
        x: ``[N, T, D]``, the layer's input.
        call: the call of the layer.

    Returns:
        ``[N, 1, HV * V]`` for the output projection, the new recurrent state and the convolutions' new states.
    """
    kernels = _step_kernels(layer, x, call)
    if kernels is None:
        return None
    gates = layer._step_gates(x)
    if gates is None:
        return None
    convs, norm = layer._convs(), layer.o_norm
    if type(norm) not in (FusedRMSNormGated, RMSNorm) or any(type(conv) is not ShortConvolution for conv in convs):
        return None
    if not all(_is_free(module) for module in (*convs, norm)):
        return None
    gate = project(layer.g_proj, x) if type(norm) is FusedRMSNormGated else None
    parts, states, state = layer._project(x), call.conv_state, cast(torch.Tensor, call.recurrent_state)
    weight, own = norm.weight, [conv._parameters for conv in convs]
    weights, biases = [each["weight"] for each in own], [each["bias"] for each in own]
    others = (gates.g, gates.beta, gates.A_log, gates.dt_bias, weight)
    if layer.conv_size > kernels.MOST_TAPS:
        return None
    kind = parts[0].dtype
    fit = are_dense(kind, *parts, *([] if gate is None else [gate])) and are_dense(torch.float32, state)
    fit = fit and are_dense(weights[0].dtype, *weights) and all(t is None or are_dense(t.dtype, t) for t in others)
    given = [bias for bias in biases if bias is not None]
    if given:
        fit = fit and len(given) == len(biases) and are_dense(given[0].dtype, *given)
    if not fit or not are_dense(kind, *(past[0] for past in states)):
        return None
    rows, heads, taps = x.shape[0], layer.num_v_heads, layer.conv_size
    for size, part, filters, bias in zip(layer.conv_channels, parts, weights, biases):
        if not (_have((rows, 1, size), part) and _have((size, 1, taps), filters) and _have((size,), bias)):
            return None
    if not (_have((rows, 1, heads), gates.g, gates.beta) and _have((heads,), gates.A_log, gates.dt_bias)):
        return None
    if not (_have((rows, 1, heads * layer.head_v_dim), gate) and _have((layer.head_v_dim,), weight)):
        return None
    tell(f"{layer.who} step", layer.backend, "cpu", "native")
    steps = kernels.steps
    final = state if call.inplace else torch.empty_like(state)
    taken = [
        steps.ConvPart(part, taps, bias, past, conv.activation is not None)
        for part, taps, bias, past, conv in zip(parts, weights, biases, states, convs)
    ]
    y, conv_state = steps.conv_layer_step(
        taken, gates, layer.head_k_dim**-0.5, layer.num_heads, state, final, gate,
        None if gate is None else norm.activation, weight, norm.eps,
    )  # fmt: skip
    return y, final, conv_state


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
        layer: of RWKV-7. One whose norm has a hook, or is something else, is left alone.
        projected: r, w, k, v, a, the output gate, and the first layer's values and the share of them (or None both),
            as `myfla.layers.rwkv7_core.Projected` has them.
        call: the call of the layer.

    Returns:
        ``[N, 1, value_dim]`` for the output projection, and the new recurrent state.
    """
    first, norm = projected[0], layer.g_norm
    kernels = None if first is None else _step_kernels(layer, first, call)
    if first is None or kernels is None:
        return None
    if type(norm) not in (nn.GroupNorm, GroupNorm) or not _is_free(norm):
        return None
    state = cast(torch.Tensor, call.recurrent_state)
    given = [t for t in projected if t is not None]
    k_k, weight, bias = layer.k_k, norm.weight, norm.bias
    parameters = [t for t in (k_k, layer.k_a, layer.r_k, weight, bias) if t is not None]
    if not (are_dense(first.dtype, *given) and are_dense(k_k.dtype, *parameters)):
        return None
    if not are_dense(torch.float32, state):
        return None
    r, w, k, v, a, *values = projected
    keys, size, (heads, head_dim) = (layer.key_dim,), layer.value_dim, layer.r_k.shape
    fit = _have((*first.shape[:2], *keys), r, w, k, a) and _have((*first.shape[:2], size), v, *values)
    if not (fit and _have(keys, k_k, layer.k_a) and heads * head_dim == keys[0] and _have((size,), weight, bias)):
        return None
    if norm.num_groups != layer.num_heads:
        return None
    tell("RWKV7Attention step", layer.backend, "cpu", "native")
    final = state if call.inplace else torch.empty_like(state)
    y = kernels.steps.rwkv7_layer_step(
        *projected, state, final, k_k, layer.k_a, layer.r_k, weight, bias, norm.eps,
        1e-6 if layer.fuse_norm else None,
    )
    return y, final


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


def _is_free(module: nn.Module) -> bool:
    """Whether a module has no hooks."""
    return not (module._forward_hooks or module._forward_pre_hooks)
