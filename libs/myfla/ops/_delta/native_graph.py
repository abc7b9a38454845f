"""The compiled CPU kernels as operations of a graph: what ``torch.compile`` records where myfla-native is installed.

One operation for all families and both forms, ``myfla::native_rule``, and its backward. Gates are activated before it,
in plain operations that the compiler fuses with those around them.
"""

from typing import Any, List, Optional, Tuple

import torch

from myfla.ops._delta.call import Call, Result, call_tensors, recurrent_only
from myfla.ops._delta.graph_op import differentiable_op
from myfla.ops._delta.native import NATIVE, erasing_nothing
from myfla.utils.autograd import records
from myfla.utils.graph_op import takes_graph_ops
from myfla.utils.native import graph_takes_native, native_package

__all__ = ["native_graph_problem", "run_native_graph"]

_INPUTS = (
    "Tensor q", "Tensor k", "Tensor v", "Tensor? g", "Tensor? beta", "Tensor? b", "Tensor? initial_state",
    "Tensor? cu_seqlens",
)  # fmt: skip


def native_graph_problem(call: Call) -> Optional[str]:
    """Why the compiled kernels cannot be an operation of the graph that is being recorded, or None."""
    if not takes_graph_ops():
        return "this call is not recorded by torch.compile"
    if recurrent_only(call):
        return "in a graph the compiled kernels support channel gates only for the keys of KDA"
    if not graph_takes_native(*call_tensors(call)):
        return "the compiled kernels are not installed, or do not support these tensors"
    return None


def run_native_graph(call: Call) -> Result:
    """Outputs and final states of a call that `native_graph_problem` has passed."""
    call = call.activated()
    if len(call.x) == 5:
        q, k, v, g, beta = call.x
        b = None
    else:
        q, k, v, beta, b, g = erasing_nothing(call.x) if len(call.x) == 4 else call.x
    o, final, _ = OP(
        q, k, v, g, beta, b, call.initial_state, call.cu_seqlens, NATIVE[call.family.name], float(call.scale),
        call.l2norm, call.out_dtype, records(*call.x, call.initial_state),
    )  # fmt: skip
    return o, final


def _rule(kind: str, scale: float, l2norm: bool, cu_seqlens: Optional[torch.Tensor]) -> Tuple[Any, Any]:
    rules = native_package().rules
    return rules, rules.Rule(getattr(rules, kind), scale, l2norm, None, None, 0, cu_seqlens)


def _forward(*given: Any) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    q, k, v, g, beta, b, state, cu_seqlens, kind, scale, l2norm, out_dtype, keep = given
    rules, rule = _rule(kind, scale, l2norm, cu_seqlens)
    o, final, kept = rules.forward(rule, rules.Inputs(q, k, v, g, beta, b), state, out_dtype=out_dtype, keep=keep)
    return o, final, v.new_empty(0, dtype=torch.float32) if kept is None else kept


def _backward(*given: Any) -> List[torch.Tensor]:
    q, k, v, g, beta, b, state, cu_seqlens, kind, scale, l2norm, _, _, kept, do, dfinal = given
    rules, rule = _rule(kind, scale, l2norm, cu_seqlens)
    grads, dstate, _, _ = rules.backward(rule, rules.Inputs(q, k, v, g, beta, b), state, kept, do, dfinal)
    return [dx for dx in grads if dx is not None] + ([] if state is None else [dstate.to(state.dtype)])


def _fake(*given: Any) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    q, k, v, g, beta, b, _, cu_seqlens, kind, scale, l2norm, out_dtype, keep = given
    rules, rule = _rule(kind, scale, l2norm, cu_seqlens)
    rows = v.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    final = v.new_empty((rows, v.shape[2], k.shape[3], v.shape[3]), dtype=torch.float32)
    kept = rules.kept_size(rule, rules.Inputs(q, k, v, g, beta, b)) if keep else 0
    return v.new_empty(v.shape, dtype=out_dtype), final, v.new_empty(kept, dtype=torch.float32)


OP = differentiable_op(
    "native_rule", _INPUTS, "str kind, float scale, bool l2norm, ScalarType out_dtype, bool keep",
    "(Tensor, Tensor, Tensor)", _forward, _backward, _fake, "Tensor kept", constants=1,
)  # fmt: skip
"""``myfla::native_rule``; None in a PyTorch that has no such operations (before 2.4)."""
