"""The back end of compiled CPU kernels (`myfla.utils.native`): whole calls, also under autograd, and decoding steps."""

from typing import Any, Callable, NamedTuple, Optional, Sequence, Tuple, cast

import torch

from myfla.ops._delta.call import Call, Result, call_tensors, is_step, without_tensors
from myfla.ops._delta.families.dplr import DPLR
from myfla.ops._delta.families.kda import KDA
from myfla.ops._delta.plans import Run
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
    return cast(Result, plan_native(call, True)(call.x, call.activation, call.initial_state, call.cu_seqlens))


def plan_native(call: Call, wanted: bool) -> Run:
    """The function that computes calls like this one, with final states if ``wanted``."""
    if call.channel_decays and call.channel_decays[0] is not None:
        return _of_channels(call, wanted)
    rules, state, inplace, out_dtype = native_package().rules, call.initial_state, call.inplace, call.out_dtype
    arrange, new_state = _ARRANGED[call.family.name], _state_maker(call)
    *x, A_log, dt_bias = arrange(call.x, call.activation)
    rule, inputs = _rule(rules, call, A_log, dt_bias), rules.Inputs(*x)
    if _decodes(call):
        step = rules.Plan(rule, inputs, state, state, out_dtype).step

        def decode(
            x: Tuple[Any, ...], activation: Any, state: Any, _: Any = None
        ) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
            final = state if inplace else torch.empty_like(state)
            return step((*arrange(x, activation), state), final), final if wanted else None

        return decode
    final = state if inplace else new_state() if wanted else None
    plan, recorded = rules.Plan(rule, inputs, state, final, out_dtype), records(*call_tensors(call))
    kind = _Kind(plan, new_state if wanted else None, _options(call))

    def run(
        x: Tuple[Any, ...], activation: Any, state: Any, cu_seqlens: Any = None
    ) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
        given = (*arrange(x, activation), state)
        if recorded:
            return _Rule.apply(kind, cu_seqlens, *given)
        final = state if inplace else new_state() if wanted else None
        return plan.forward(given, final, cu_seqlens)[:2]

    return run


def _decodes(call: Call) -> bool:
    """Whether there is one token for each state, which lie without gaps."""
    state = call.initial_state
    if state is None or not is_step(call) or not state.numel() or state.dtype is not torch.float32:
        return False
    dense = state.is_contiguous() or state.transpose(2, 3).is_contiguous()
    return dense and not records(*call_tensors(call))


def _of_delta(x: Tuple[Any, ...], activation: Any) -> Tuple[Any, ...]:
    """The tensors of one token as the kernels take them: q, k, v, g, beta, b, A_log and dt_bias."""
    return (*x, None, None, None) if activation is None else (*x, None, *activation.decay)


def _of_dplr(x: Tuple[Any, ...], activation: Any) -> Tuple[Any, ...]:
    q, k, v, a, b, gk = x
    return q, k, v, gk, a, b, None, None


def _of_gla(x: Tuple[Any, ...], activation: Any) -> Tuple[Any, ...]:
    return _of_dplr(erasing_nothing(x), activation)


_ARRANGED = {"gated_delta": _of_delta, "kda": _of_delta, "dplr": _of_dplr, "gla": _of_gla, "simple_gla": _of_gla}


def _of_channels(call: Call, wanted: bool) -> Run:
    """For this call only: its decays of key channels, with that of the head added, are those of KDA."""
    call = _activated(call)
    q, k, v, g, beta = call.x
    decay = call.channel_decays[0] if g is None else call.channel_decays[0] + g.unsqueeze(-1)
    call = call._replace(family=KDA, x=(q, k, v, decay, beta), channel_decays=())
    run = plan_native(call, wanted)
    return lambda x, activation, state, cu_seqlens=None: run(call.x, call.activation, state, cu_seqlens)


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


def _state_maker(call: Call) -> Callable[[], torch.Tensor]:
    """The function that makes memory for the final states, in the layout in which they are wanted."""
    empty, (heads, value), key = native_package().library.empty, call.x[2].shape[2:], call.x[1].shape[3]
    shape = (call.sequences, heads, *((value, key) if call.state_v_first else (key, value)))
    if call.state_v_first:
        return lambda: empty(shape, torch.float32).transpose(2, 3)
    return lambda: empty(shape, torch.float32)


def _options(call: Call) -> Call:
    """The call without tensors, of the rule that the kernels compute."""
    activation = call.activation
    if activation is not None:
        activation = activation._replace(A_log=None, dt_bias=None)
    family = call.family if call.family.corrects else DPLR
    return without_tensors(call)._replace(family=family, activation=activation)


def _rule(rules: Any, call: Call, A_log: Optional[torch.Tensor], dt_bias: Optional[torch.Tensor]) -> Any:
    kind = getattr(rules, NATIVE[call.family.name])
    activation, beta_scale, lower_bound = call.activation, 0, None
    if activation is not None:
        beta_scale = activation.beta_scale
        lower_bound = activation.lower_bound if call.family is KDA and activation.gate else None
    return rules.Rule(kind, call.scale, call.l2norm, A_log, dt_bias, beta_scale, call.cu_seqlens, lower_bound)


class _Kind(NamedTuple):
    """Calls under autograd that differ in their tensors only."""

    plan: Any
    new_state: Optional[Callable[[], torch.Tensor]]  # None where final states are not wanted
    options: Call


def _plain(options: Call, cu_seqlens: Optional[torch.Tensor]) -> Callable[..., Result]:
    """The call in plain operations, of the tensors that the kernels have, in the same order."""

    def rule(*tensors: Any) -> Result:
        q, k, v, g, beta, b, A_log, dt_bias, state = tensors
        x = (q, k, v, beta, b, g) if options.family is DPLR else (q, k, v, g, beta)
        activation = options.activation
        if activation is not None:
            activation = activation._replace(A_log=A_log, dt_bias=dt_bias)
        call = options._replace(x=x, activation=activation, initial_state=state, cu_seqlens=cu_seqlens)
        return traced_rule(call)

    return rule


class _Rule(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kind: _Kind, cu_seqlens: Optional[torch.Tensor], *given: Optional[torch.Tensor]) -> Result:
        final = None if kind.new_state is None else kind.new_state()
        o, final, kept = kind.plan.forward(given, final, cu_seqlens, keep=True)
        ctx.save_for_backward(*given, kept, cu_seqlens)
        ctx.kind = kind
        ctx.set_materialize_grads(False)
        return o, final

    @staticmethod
    def backward(ctx: Any, do: Optional[torch.Tensor], dfinal: Optional[torch.Tensor] = None) -> Any:
        *given, kept, cu_seqlens = ctx.saved_tensors
        needs = ctx.needs_input_grad[2:]
        if do is None and dfinal is None:
            return (None,) * (2 + len(given))
        if torch.is_grad_enabled():
            formula = _plain(ctx.kind.options, cu_seqlens)
            return (None, None, *backward_through(formula, given, needs, [do, dfinal]))
        grads, dstate, dA_log, ddt_bias = ctx.kind.plan.backward(given, kept, do, dfinal, cu_seqlens)
        found = (*grads, dA_log, ddt_bias, dstate)
        return (None, None, *(_in_dtype(dx, x) if need else None for x, dx, need in zip(given, found, needs)))


def _in_dtype(dx: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return dx if dx.dtype is x.dtype else dx.to(x.dtype)
