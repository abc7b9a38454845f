"""The back end of compiled CPU kernels (`myfla.utils.native`): whole calls, under autograd."""

from typing import Any, Callable, Optional, Sequence, Tuple

import torch

from myfla.ops._delta.call import Call, Result, call_tensors
from myfla.ops._delta.families.dplr import DPLR
from myfla.ops._delta.families.kda import KDA
from myfla.ops._delta.steps import Step
from myfla.ops._delta.traced.chunks import traced_rule
from myfla.utils.autograd import backward_through, records
from myfla.utils.native import native, native_package, why_not_native

__all__ = ["NATIVE", "erasing_nothing", "native_problem", "native_reserve", "plan_native",
           "run_native"]  # fmt: skip

NATIVE = {"gated_delta": "GATED", "kda": "KDA", "dplr": "DPLR", "gla": "DPLR", "simple_gla": "DPLR"}
"""The families that have compiled kernels, and their names in that package."""


def native_problem(call: Call) -> Optional[str]:
    """Why the compiled kernels cannot compute a call, or None."""
    of_values = call.channel_decays[-1] if call.channel_decays else None
    if of_values is not None or (len(call.x) == 5 and call.x[4].dim() == 4):
        return "the compiled kernels do not support a gate of value channels; leave it out"
    tensors = call_tensors(call)
    return None if native(*tensors) is not None else why_not_native(*tensors)


def native_reserve(call: Call) -> Optional[str]:
    """Why ``auto`` does not choose the compiled kernels for a call that they can compute, or None."""
    if not call.family.corrects and records(*call_tensors(call)):
        return "the plain form trains faster for rules without the delta rule's correction"
    return None


def run_native(call: Call) -> Result:
    """Outputs and final states of a call that `native_problem` has passed."""
    call = _as_the_kernels_have_it(call)
    rules = native(*call_tensors(call)).rules
    A_log, dt_bias = (None, None) if call.activation is None else call.activation.decay
    tensors = (*call.x, A_log, dt_bias, call.initial_state)
    if records(*tensors):
        return _Rule.apply(rules, call, *tensors)
    final = call.initial_state if call.inplace else _new_state(call)
    return rules.forward(
        _rule(rules, call, A_log, dt_bias), _inputs(rules, call.x), call.initial_state, out_dtype=call.out_dtype,
        final=final,
    )[:2]  # fmt: skip


def plan_native(call: Call, wanted: bool) -> Optional[Step]:
    """The function that computes decoding steps like this call, with final states if ``wanted``; None for empty calls
    and for calls that need more than that."""
    state, inplace, activation, arrange = call.initial_state, call.inplace, call.activation, _ARRANGED[call.family.name]
    if state is None or not state.numel() or state.dtype is not torch.float32:
        return None
    if not (state.is_contiguous() or state.transpose(2, 3).is_contiguous()):
        return None
    if call.channel_decays:
        return None
    rules, (*x, A_log, dt_bias) = native_package().rules, arrange(call.x, activation)
    rule = _rule(rules, call, A_log, dt_bias)
    run = rules.plan_step(rule, rules.Inputs(*x), state, call.out_dtype)

    def step(x: Tuple[Any, ...], activation: Any, state: Any) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
        final = state if inplace else torch.empty_like(state)
        return run(*arrange(x, activation), state, final), final if wanted else None

    return step


def _of_delta(x: Tuple[Any, ...], activation: Any) -> Tuple[Any, ...]:
    """The tensors of one token as the kernels take them: q, k, v, g, beta, b, A_log and dt_bias."""
    return (*x, None, None, None) if activation is None else (*x, None, *activation.decay)


def _of_dplr(x: Tuple[Any, ...], activation: Any) -> Tuple[Any, ...]:
    q, k, v, a, b, gk = x
    return q, k, v, gk, a, b, None, None


def _of_gla(x: Tuple[Any, ...], activation: Any) -> Tuple[Any, ...]:
    return _of_dplr(erasing_nothing(x), activation)


_ARRANGED = {"gated_delta": _of_delta, "kda": _of_delta, "dplr": _of_dplr, "gla": _of_gla, "simple_gla": _of_gla}


def _as_the_kernels_have_it(call: Call) -> Call:
    """Without the delta rule's correction it is computed as DPLR. Decays of key channels, with that of the head added,
    are computed as KDA."""
    if not call.family.corrects:
        return call._replace(family=DPLR, x=erasing_nothing(call.x))
    if not call.channel_decays or call.channel_decays[0] is None:
        return call
    call = _activated(call)
    q, k, v, g, beta = call.x
    decay = call.channel_decays[0] if g is None else call.channel_decays[0] + g.unsqueeze(-1)
    return call._replace(family=KDA, x=(q, k, v, decay, beta), channel_decays=())


def _activated(call: Call) -> Call:
    """`Call.activated`; in the recurrent form token by token, so that the bits do not depend on how a sequence is
    split: PyTorch computes the last numbers of a tensor with other code than the rest."""
    if call.activation is None or call.form != "recurrent" or call.x[0].shape[1] == 0:
        return call.activated()
    g, beta = call.x[3:5]
    steps = [
        call.activation.gates(*(x if x is None else x[:, t : t + 1].contiguous() for x in (g, beta)))
        for t in range(call.x[0].shape[1])
    ]
    made = (x[0] if len(x) == 1 else None if x[0] is None else torch.cat(x, 1) for x in map(list, zip(*steps)))
    return call._replace(x=(*call.x[:3], *made), activation=None)


def erasing_nothing(x: Sequence[torch.Tensor]) -> Tuple[torch.Tensor, ...]:
    """A rule without correction as the DPLR rule with ``a = b = 0``.

    Args:
        x: q, k ``[B, T, H, K]``, v ``[B, T, HV, V]`` and g ``[B, T, HV]`` or ``[B, T, HV, K]``.

    Returns:
        q, k, v, a, b and gk as `families.dplr` has them.
    """
    q, k, v, g = x
    group, shape = v.shape[2] // q.shape[2], (*v.shape[:3], k.shape[3])
    if q.shape[2] == 1:
        q, k = q.expand(shape), k.expand(shape)
    elif group > 1:
        q, k = q.repeat_interleave(group, 2), k.repeat_interleave(group, 2)
    none = k.new_zeros(1).expand(shape)
    return q, k, v, none, none, g if g.dim() == 4 else g.unsqueeze(-1).expand(shape)


def _inputs(rules: Any, x: Tuple[Any, ...]) -> Any:
    if len(x) == 5:
        return rules.Inputs(*x)
    q, k, v, a, b, gk = x
    return rules.Inputs(q, k, v, gk, a, b)


def _new_state(call: Call) -> Optional[torch.Tensor]:
    """Memory for the final states in the layout in which they are wanted; None for that of the kernels."""
    if not call.state_v_first:
        return None
    heads, value, key = call.x[2].shape[2], call.x[2].shape[3], call.x[1].shape[3]
    strides = (heads * key * value, key * value, 1, key)
    return torch.empty_strided((call.sequences, heads, key, value), strides, dtype=torch.float32, device="cpu")


def _rule(rules: Any, call: Call, A_log: Optional[torch.Tensor], dt_bias: Optional[torch.Tensor]) -> Any:
    kind = getattr(rules, NATIVE[call.family.name])
    activation, beta_scale, lower_bound = call.activation, 0, None
    if activation is not None:
        beta_scale = activation.beta_scale
        lower_bound = activation.lower_bound if call.family is KDA and activation.gate else None
    return rules.Rule(kind, call.scale, call.l2norm, A_log, dt_bias, beta_scale, call.cu_seqlens, lower_bound)


def _plain(call: Call) -> Callable[..., Result]:
    """The call in plain operations, of the same tensors in the same order."""

    def rule(*tensors: Any) -> Result:
        *x, A_log, dt_bias, state = tensors
        activation = call.activation
        if activation is not None:
            activation = activation._replace(A_log=A_log, dt_bias=dt_bias)
        return traced_rule(call._replace(x=tuple(x), activation=activation, initial_state=state))

    return rule


class _Rule(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rules, call, *tensors):
        *x, A_log, dt_bias, state = tensors
        rule = _rule(rules, call, A_log, dt_bias)
        o, final, kept = rules.forward(
            rule, _inputs(rules, tuple(x)), state, out_dtype=call.out_dtype, keep=True, final=_new_state(call)
        )
        ctx.save_for_backward(*tensors, kept)
        # The call must not hold a second reference to saved tensors.
        ctx.rules, ctx.call = rules, call._replace(x=(), initial_state=None)
        ctx.set_materialize_grads(False)
        return o, final

    @staticmethod
    def backward(ctx, do, dfinal):
        *tensors, kept = ctx.saved_tensors
        needs = ctx.needs_input_grad[2:]
        if do is None and dfinal is None:
            return (None,) * (2 + len(tensors))
        if torch.is_grad_enabled():
            return (None, None, *backward_through(_plain(ctx.call), tensors, needs, [do, dfinal]))
        *x, A_log, dt_bias, state = tensors
        rule, inputs = _rule(ctx.rules, ctx.call, A_log, dt_bias), _inputs(ctx.rules, tuple(x))
        grads, dstate, dA_log, ddt_bias = ctx.rules.backward(rule, inputs, state, kept, do, dfinal)
        q, k, v, g, beta, b = grads
        of_x = (q, k, v, g, beta) if len(x) == 5 else (q, k, v, beta, b, g)
        found = (*of_x, dA_log, ddt_bias, dstate)
        return (None, None, *(dx.to(t.dtype) if need else None for t, dx, need in zip(tensors, found, needs)))
