"""A whole layer under autograd in one function, by the compiled kernels (`myfla.utils.native`).

The projections of the layer's input are one product, the three convolutions one call, and autograd sees none of what
lies between the projections. Where `train_conv_layer` returns None, the layer computes operation by operation, with the
same result up to rounding.
"""

import functools
from typing import Any, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F

from myfla.backends.choice import tell
from myfla.layers.joint_products import inputs_of, project_jointly, weights_of
from myfla.layers.native_steps import keeps_methods
from myfla.layers.recurrent_layer import LayerCall
from myfla.layers.training_parts import Parts, Settings, flat, heads_of, read_parts, unflat
from myfla.modules.convolution import causal_conv1d
from myfla.modules.fused_norm_gate import rms_norm_gated
from myfla.modules.layernorm import rms_norm
from myfla.ops.gated_delta_rule import chunk_gated_delta_rule
from myfla.utils.autograd import backward_through, records
from myfla.utils.dtypes import autocast_enabled
from myfla.utils.native import native

__all__ = ["train_conv_layer"]


def train_conv_layer(layer: Any, x: torch.Tensor, call: LayerCall) -> Optional[torch.Tensor]:
    """The layer's outputs ``[B, T, D]``, under autograd; or None.

    Args:
        layer: a `ConvLayer`. For one with a part that was replaced or has a hook (`read_parts`), the result is None.
        x: ``[B, T, D]``, the layer's input; float32.
        call: the call of the layer; without autograd, with states, packed or in the recurrent form the result is None.
    """
    if call.keep or not call.chunks or call.cu_seqlens is not None or not torch.is_grad_enabled():
        return None
    if call.recurrent_state is not None or call.conv_state is not None or layer.backend not in ("auto", "native"):
        return None
    if x.dtype is not torch.float32 or not x.numel() or autocast_enabled("cpu"):
        return None
    kernels = native(x)
    if kernels is None or not kernels.products.products_pay():
        return None
    if not keeps_methods(layer, "_training_gates", "_project"):
        return None
    gates = layer._training_gates()
    if gates is None:
        return None
    found = read_parts(kernels, layer, gates)
    if found is None:
        return None
    settings, parts = found
    given = flat(parts, parts)
    if not records(x, *given):
        return None
    tell(f"{layer.who} in training", layer.backend, "cpu", "native")
    counts = tuple(len(part) if isinstance(part, tuple) else part is not None for part in parts)
    return _Layer.apply(kernels, settings, counts, x.contiguous(), *given)


def _rule(kernels: Any, s: Settings, t: Parts) -> Any:
    return kernels.rules.Rule(kernels.rules.GATED, s.key**-0.5, True, t.A_log, t.dt_bias, s.beta_scale)


def _filters(t: Parts) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """Taps and biases of the three convolutions as of one."""
    return torch.cat(t.taps).squeeze(1), torch.cat(t.biases) if t.biases else None


def _of_groups(s: Settings, t: Parts) -> Optional[torch.Tensor]:
    """The norm's weight for the channels of all heads."""
    return None if t.norm is None else t.norm.repeat(s.value_heads)


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, kernels, settings, counts, x, *given):
        s, t = settings, unflat(counts, given)
        y = project_jointly(kernels, x, t.maps)
        taps, bias = _filters(t)
        convolved = kernels.conv_forward(s.before(y), taps, bias, silu=s.silu)[0]
        inputs = kernels.rules.Inputs(*s.qkv(convolved), *s.gates(y))
        o, _, kept = kernels.rules.forward(_rule(kernels, s, t), inputs, keep=True, want_final=False)
        o = o.flatten(2)
        normed, _, rstd = kernels.norm_forward(
            o, s.gate(y), _of_groups(s, t), None, s.eps, s.value_heads, False, s.activation, o.dtype)
        ctx.save_for_backward(x, y, convolved, o, kept, normed, rstd, *given)
        ctx.kernels, ctx.settings, ctx.counts = kernels, settings, counts
        return project_jointly(kernels, normed, [t.last])

    @staticmethod
    def backward(ctx, dout):
        kernels, s, counts, needs = ctx.kernels, ctx.settings, ctx.counts, ctx.needs_input_grad[3:]
        x, y, convolved, o, kept, normed, rstd, *given = ctx.saved_tensors
        if torch.is_grad_enabled():
            formula = functools.partial(_formula, s, counts)
            return (None, None, None, *backward_through(formula, [x, *given], needs, [dout]))
        t, need, rules, dout = unflat(counts, given), unflat(counts, needs[1:]), kernels.rules, dout.contiguous()
        dlast = weights_of(kernels, dout, normed, [t.last])[0] if need.last else None
        do, dy = inputs_of(kernels, dout, [t.last]), torch.empty_like(y)
        dnorm = kernels.norm_backward(
            do, o, s.gate(y), _of_groups(s, t), None, None, rstd, s.activation, into=do, gate_into=s.gate(dy))[2]
        before = s.before(dy)  # receives the gradients behind the convolutions, then those before them
        _, _, dA_log, ddt_bias = rules.backward(
            _rule(kernels, s, t), rules.Inputs(*s.qkv(convolved), *s.gates(y)), None, kept, heads_of(do, s.value_heads),
            None, into=rules.Inputs(*s.qkv(before), *s.gates(dy)))
        del do  # room for the gradients that follow
        taps, bias = _filters(t)
        _, dtaps, dbias, _ = kernels.conv_backward(before, s.before(y), taps, bias, silu=s.silu, into=before)
        sizes = [len(w) for w in t.taps]
        found = Parts(
            tuple(weights_of(kernels, dy, x, t.maps)) if any(need.maps) else (None,) * len(t.maps),
            dtaps.unsqueeze(1).split(sizes), tuple(b.clone() for b in dbias.split(sizes)) if t.biases else (),
            dA_log, ddt_bias, None if t.norm is None else dnorm[0].view(s.value_heads, s.value).sum(0), dlast,
        )  # fmt: skip
        dx = inputs_of(kernels, dy, t.maps) if needs[0] else None
        return (None, None, None, dx, *(g if wanted else None for g, wanted in zip(flat(found, t), needs[1:])))


def _formula(s: Settings, counts: Sequence[int], x: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
    """The layer in plain differentiable operations, for second derivatives."""
    t = unflat(counts, given)
    y = F.linear(x, torch.cat(t.maps))
    taps, bias = _filters(t)
    convolved = causal_conv1d(s.before(y), taps, bias, activation="silu" if s.silu else None)[0]
    q, k, v = s.qkv(convolved)
    g, beta = s.gates(y)
    o, _ = chunk_gated_delta_rule(
        q, k, v, torch.zeros_like(beta) if g is None else g, beta, use_qk_l2norm_in_kernel=True,
        use_gate_in_kernel=s.decay, A_log=t.A_log, dt_bias=t.dt_bias, use_beta_sigmoid_in_kernel=True,
        allow_neg_eigval=s.beta_scale == 2, backend=s.backend,
    )  # fmt: skip
    gate: Any = s.gate(y)
    if gate is None:
        normed: Any = rms_norm(o, t.norm, None, eps=s.eps)
    else:
        gate = heads_of(gate, s.value_heads)
        normed = rms_norm_gated(o, gate, t.norm, None, s.activation or "swish", eps=s.eps)
    return F.linear(normed.flatten(2), t.last)
