"""Whole sequences of a layer under autograd, by the compiled kernels (`myfla.utils.native`).

What stands between a layer's projections is one compiled call, forward and backward. Where the library's products of
matrices are the faster ones, the whole layer is one function for autograd: the projections of its input are one
product. Where `train_conv_layer` returns None, the layer computes operation by operation, with the same result up to
rounding.
"""

import functools
from typing import Any, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import nn

from myfla.backends.choice import tell
from myfla.layers.joint_products import inputs_of, places_in, project_jointly, weights_of
from myfla.layers.native_steps import keeps_methods
from myfla.layers.projections import is_free, project
from myfla.layers.recurrent_layer import LayerCall
from myfla.layers.training_parts import Parts, read_parts, weight_of
from myfla.modules.convolution import causal_conv1d
from myfla.modules.fused_norm_gate import rms_norm_gated
from myfla.modules.layernorm import rms_norm
from myfla.ops.gated_delta_rule import chunk_gated_delta_rule
from myfla.ops.kda import chunk_kda
from myfla.utils.autograd import backward_through, records
from myfla.utils.dtypes import autocast_enabled
from myfla.utils.native import are_dense, native

__all__ = ["train_conv_layer"]

Tensors = Tuple[Optional[torch.Tensor], ...]
PROJECTED, GIVEN = 6, 15  # tensors: of projections; these and the parameters between the projections


def train_conv_layer(layer: Any, x: torch.Tensor, call: LayerCall) -> Optional[torch.Tensor]:
    """The layer's outputs ``[B, T, D]``, under autograd; or None.

    Args:
        layer: a `ConvLayer`. For one with a part that was replaced or has a hook (`read_parts`), the result is None.
        x: ``[B, T, D]``, the layer's input; float32.
        call: the call of the layer; without autograd, with states or in the recurrent form the result is None.
    """
    if call.keep or not call.chunks or not torch.is_grad_enabled():
        return None
    if call.recurrent_state is not None or call.conv_state is not None or layer.backend not in ("auto", "native"):
        return None
    if x.dtype is not torch.float32 or not x.numel() or autocast_enabled("cpu"):
        return None
    kernels = native(x)
    if kernels is None or not keeps_methods(layer, "_training_gates", "_project"):
        return None
    gates = layer._training_gates()
    parts = None if gates is None else read_parts(kernels, layer, gates)
    if parts is None:
        return None
    # A copy: the backward would follow offsets that were changed after the forward out of the tensors.
    offsets = None if call.cu_seqlens is None else call.cu_seqlens.to("cpu", torch.int64, copy=True).contiguous()
    run = _Run(kernels, parts.middle, gates.rule, offsets)
    y = _whole(run, parts, x) if kernels.products.products_pay() else None
    if y is None:
        y = _between(run, parts, x)
    if y is not None:
        tell(f"{layer.who} in training", layer.backend, "cpu", "native")
    return y


class _Run(NamedTuple):
    """What of a call is no tensor."""

    kernels: Any
    middle: Any  # a `myfla_native.middle.Middle`
    rule: str
    cu_seqlens: Optional[torch.Tensor]  # [N + 1] int64


def _whole(run: _Run, parts: Parts, x: torch.Tensor) -> Optional[torch.Tensor]:
    """The layer in one function; None if its projections are not plain maps."""
    width, values = x.shape[2], parts.sizes[2]
    maps = [m if m is None else weight_of(m, size, width) for m, size in zip(parts.maps, parts.sizes)]
    last = weight_of(parts.last, width, values)
    if last is None or any(w is None and m is not None for w, m in zip(maps, parts.maps)):
        return None
    if not records(x, last, *maps, *parts.parameters):
        return None
    return _Layer.apply(run, x.contiguous(), *maps, *parts.parameters, last)


def _between(run: _Run, parts: Parts, x: torch.Tensor) -> Optional[torch.Tensor]:
    """The layer with its projections as functions of their own; None if these may give something else than expected."""
    maps = [m for m in parts.maps if m is not None]
    if not all(map(_is_plain, maps)) or not records(x, *parts.parameters, *(w for m in maps for w in m.parameters())):
        return None
    projected = [None if m is None else project(m, x).contiguous() for m in parts.maps]
    for y, size in zip(projected, parts.sizes):
        if y is not None and (y.shape[2] != size or not are_dense(torch.float32, y)):
            return None
    return project(parts.last, _Middle.apply(run, *projected, *parts.parameters))


def _is_plain(module: Any) -> bool:
    """Whether a projection consists of linear maps without hooks."""
    if type(module) is nn.Sequential:
        return is_free(module) and all(map(_is_plain, module._modules.values()))
    return type(module) is nn.Linear and is_free(module)


class _Middle(torch.autograd.Function):
    """Everything between the projections; arguments: their results, and parameters as in `Parts`."""

    @staticmethod
    def forward(ctx: Any, run: _Run, *given: Any) -> torch.Tensor:
        middle = run.kernels.middle
        places = [middle.place(x) for x in given[:PROJECTED]]
        y, kept = middle.forward(run.middle, *given[0].shape[:2], places, given[PROJECTED:], run.cu_seqlens)
        ctx.save_for_backward(kept, *given)
        ctx.run = run
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        run, (kept, *given), needs = ctx.run, ctx.saved_tensors, ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():
            return (None, *backward_through(functools.partial(_middle_formula, run), given, needs, [dy]))
        middle, dy = run.kernels.middle, dy.contiguous()
        found = _like(given)
        places, into = ([middle.place(x) for x in tensors[:PROJECTED]] for tensors in (given, found))
        middle.backward(
            run.middle, places, given[PROJECTED:], kept, dy, torch.empty_like(dy), into, found[PROJECTED:],
            run.cu_seqlens)  # fmt: skip
        return (None, *_wanted(found, needs))


class _Layer(torch.autograd.Function):
    """The whole layer; arguments: its input, the weights of its projections, parameters as in `Parts`, and the weight
    of its output projection."""

    @staticmethod
    def forward(ctx: Any, run: _Run, x: torch.Tensor, *given: Optional[torch.Tensor]) -> torch.Tensor:
        kernels, maps, parameters, last = run.kernels, given[:PROJECTED], given[PROJECTED:GIVEN], given[GIVEN]
        y = project_jointly(kernels, x, maps)
        between, kept = kernels.middle.forward(run.middle, *x.shape[:2], places_in(y, maps), parameters, run.cu_seqlens)
        ctx.save_for_backward(x, y, between, kept, *given)
        ctx.run = run
        return project_jointly(kernels, between, [last])

    @staticmethod
    def backward(ctx: Any, dout: torch.Tensor) -> Any:
        run, needs = ctx.run, ctx.needs_input_grad[1:]
        x, y, between, kept, *given = ctx.saved_tensors
        if torch.is_grad_enabled():
            return (None, *backward_through(functools.partial(_layer_formula, run), [x, *given], needs, [dout]))
        maps, parameters, last = given[:PROJECTED], given[PROJECTED:GIVEN], given[GIVEN:]
        kernels, dout = run.kernels, dout.contiguous()
        dlast = weights_of(kernels, dout, between, last) if needs[-1] else [None]
        do, dy, found = inputs_of(kernels, dout, last), kernels.library.empty(y.shape, y.dtype), _like(parameters)
        kernels.middle.backward(
            run.middle, places_in(y, maps), parameters, kept, do, do, places_in(dy, maps), found, run.cu_seqlens)
        del do  # room for the gradients that follow
        dmaps = weights_of(kernels, dy, x, maps) if any(needs[1 : 1 + PROJECTED]) else [None] * PROJECTED
        dx = inputs_of(kernels, dy, maps) if needs[0] else None
        return (None, dx, *_wanted([*dmaps, *found, *dlast], needs[1:]))


def _like(given: Any) -> Any:
    return [None if x is None else torch.empty_like(x) for x in given]


def _wanted(found: Any, needs: Any) -> Any:
    return (x if wanted else None for x, wanted in zip(found, needs))


def _layer_formula(run: _Run, x: torch.Tensor, *given: Optional[torch.Tensor]) -> torch.Tensor:
    """`_Layer` in plain differentiable operations, in float64."""
    x, *wide = _doubled((x, *given))
    projected = [None if w is None else F.linear(x, w) for w in wide[:PROJECTED]]
    return F.linear(_between_formula(run, *projected, *wide[PROJECTED:GIVEN]), wide[GIVEN]).float()


def _middle_formula(run: _Run, *given: Any) -> torch.Tensor:
    """`_Middle` in plain differentiable operations, in float64."""
    return _between_formula(run, *_doubled(given)).float()


def _doubled(given: Any) -> Any:
    """In float64: second derivatives of the decays are sums of large terms of both signs."""
    return [x if x is None else x.double() for x in given]


def _between_formula(run: _Run, *given: Any) -> torch.Tensor:
    m, (*inputs, gate, g, beta), (*convs, A_log, dt_bias, norm) = run.middle, given[:PROJECTED], given[PROJECTED:]
    convolve = functools.partial(causal_conv1d, activation="silu" if m.silu else None, cu_seqlens=run.cu_seqlens)
    q, k, v = (
        convolve(x, taps.squeeze(1), bias)[0].unflatten(2, (heads, -1))
        for x, taps, bias, heads in zip(inputs, convs[:3], convs[3:], (m.heads, m.heads, m.value_heads))
    )
    options = {
        "use_qk_l2norm_in_kernel": True, "use_gate_in_kernel": g is not None, "A_log": A_log, "dt_bias": dt_bias,
        "use_beta_sigmoid_in_kernel": True, "allow_neg_eigval": m.beta_scale == 2,
        "cu_seqlens": run.cu_seqlens,
    }  # fmt: skip
    if run.rule == "KDA":
        bounded = {"safe_gate": m.lower_bound is not None, "lower_bound": m.lower_bound}
        o, _ = chunk_kda(q, k, v, g.unflatten(2, (m.value_heads, m.key)), beta, **options, **bounded)
    else:
        o, _ = chunk_gated_delta_rule(q, k, v, torch.zeros_like(beta) if g is None else g, beta, **options)
    if gate is None:
        y: Any = rms_norm(o, norm, None, eps=m.eps)
    else:
        y = rms_norm_gated(o, gate.view(o.shape), norm, None, m.activation, eps=m.eps)
    return y.flatten(2)
