"""The autograd Function that all families share."""

from typing import Any, Optional, Tuple, cast

import torch
import torch.nn.functional as F

from myfla.ops._delta.call import Call, Result, call_dtype, call_tensors, recurrent_only, without_tensors
from myfla.ops._delta.chunk.engine import chunk_bwd, chunk_fwd
from myfla.ops._delta.chunk.plan import Plan, plan_call
from myfla.ops._delta.families.dplr import DPLR, tie_keys
from myfla.ops._delta.plans import Run
from myfla.ops._delta.recurrent.loop import token_loop
from myfla.ops._delta.traced.chunks import traced_chunks
from myfla.utils.autograd import backward_through, records

__all__ = ["chunk_rule", "loop_rule", "plan_chunks"]

LANES = 16
"""Head sizes of some families are padded to a multiple of this: products of odd sizes are slow, and their results
depend on alignment."""


def chunk_rule(call: Call) -> Result:
    """The chunk form of a checked call; differentiable, also twice."""
    return cast(Result, plan_chunks(call)(call.x, call.activation, call.initial_state, call.cu_seqlens))


def plan_chunks(call: Call, wanted: bool = True) -> Run:
    """The function that computes calls like this one in the chunk form, with final states if ``wanted``."""
    options, sizes = without_tensors(call), (call.x[1].shape[3], call.x[2].shape[3])
    recorded, ready = records(*call_tensors(call)), False
    known: Optional[Plan] = None

    def run(
        x: Tuple[Any, ...], activation: Any, state: Any, cu_seqlens: Any = None
    ) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
        nonlocal known, ready
        plan, given = known, (x, state)
        if not ready:
            call = options._replace(x=x, activation=activation, initial_state=state, cu_seqlens=cu_seqlens)
            prepared = _prepared(call, LANES)
            given = prepared.x, prepared.initial_state
            plan = plan or _plan(prepared)
            if cu_seqlens is None:
                known, ready = plan, prepared is call
        x, state = given
        if recorded:
            o, final = ChunkRule.apply(plan, None, cu_seqlens, state, *x)
        else:
            o, final = chunk_fwd(x[2], x, state, cast(Plan, plan), None)
        if final.shape[2:] != sizes:
            o, final = o[..., : sizes[1]].contiguous(), final[:, :, : sizes[0], : sizes[1]].contiguous()
        return o, final if wanted else None

    return run


def loop_rule(call: Call) -> Result:
    """The recurrent form of a checked call; its gradients are computed by the chunk form where that supports the
    inputs."""
    if not records(*call_tensors(call)) or recurrent_only(call):
        return token_loop(call)
    call = _prepared(call)
    return ChunkRule.apply(_plan(call), call, call.cu_seqlens, call.initial_state, *call.x)


def _prepared(call: Call, lanes: int = 1) -> Call:
    """The call for the engine, with head sizes padded to a multiple of ``lanes`` where the family needs that."""
    if call.family is DPLR and call.x[4] is call.x[1]:
        call = tie_keys(call)
    if call.family.pads_heads:
        call = _pad_heads(call, -call.x[1].shape[3] % lanes, -call.x[2].shape[3] % lanes)
    call = call.activated(zero_g=True)
    return call if call.family.fuses_l2norm else call.normalised()


def _plan(call: Call) -> Plan:
    return plan_call(
        call.family, call.x, call.scale, call.l2norm, call.cu_seqlens, call.sequences, call.chunk_size,
        call_dtype(call), call.out_dtype,
    )  # fmt: skip


def _pad_heads(call: Call, key: int, value: int) -> Call:
    """Append this many channels without effect to keys and to values."""
    if not key and not value:
        return call
    call, state = call.activated().normalised(), call.initial_state
    x = [F.pad(t, (0, value if i == 2 else key)) if t.dim() == 4 else t for i, t in enumerate(call.x)]
    return call._replace(x=tuple(x), initial_state=None if state is None else F.pad(state, (0, value, 0, key)))


class ChunkRule(torch.autograd.Function):
    """The hand-written forward and backward pass; for a recurrent call the forward pass is the token loop.

    Arguments: the plan, the call if it is a recurrent one, ``cu_seqlens``, the initial state, and the family's tensors.
    """

    @staticmethod
    def forward(
        ctx: Any, plan: Plan, call: Optional[Call], cu_seqlens: Optional[torch.Tensor],
        initial_state: Optional[torch.Tensor], *x: torch.Tensor,
    ) -> Result:  # fmt: skip
        residuals = None
        if call is None:
            residuals = x[2].new_empty(plan.residuals, dtype=plan.dtype)
            o, final = chunk_fwd(x[2], x, initial_state, plan, residuals)
        else:
            o, final = token_loop(call._replace(x=x, initial_state=initial_state))
        ctx.save_for_backward(cu_seqlens, initial_state, *x, residuals)
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        return o, final

    @staticmethod
    def backward(ctx: Any, do: Optional[torch.Tensor], dfinal: Optional[torch.Tensor]) -> Any:
        plan, (cu_seqlens, initial_state, *x, residuals) = ctx.plan, ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: second derivatives go through plain operations
            def formula(state: Optional[torch.Tensor], *x: torch.Tensor) -> Result:
                scale, l2norm = plan.options
                return traced_chunks(plan.family, x, state, scale, l2norm, cu_seqlens, plan.dtype, plan.out_dtype)

            found = backward_through(formula, (initial_state, *x), ctx.needs_input_grad[3:], (do, dfinal))
            return (None, None, None, *found)
        if residuals is None:
            residuals = x[2].new_empty(plan.residuals, dtype=plan.dtype)
            chunk_fwd(x[2], x, initial_state, plan, residuals)
        do = torch.zeros_like(x[2]) if do is None else do
        grads, dinitial = chunk_bwd(do, dfinal, x, plan, residuals, initial_state is None)
        return (None, None, None, None if initial_state is None else dinitial.to(initial_state.dtype), *grads)
