"""The chunk form of every family as one operation of a compiled graph, with the tensors saved for its backward.

``torch.compile`` cannot record a hand-written backward pass, and its code for the same rule in plain operations is
slower and, with gradients, has been wrong (Inductor of PyTorch 2.13 on a scan). So a compiled graph calls the whole
rule as one operation: the code that runs eagerly, for every length and for packed sequences of any offsets. A graph
must know the size of what the forward saves, so that is one tensor of the largest size that any offsets need.
"""

from typing import Any, Dict, List, Optional, Tuple

import torch

from myfla.ops._delta.call import Call, Result, call_dtype, call_tensors
from myfla.ops._delta.chunk.engine import chunk_bwd, chunk_fwd
from myfla.ops._delta.chunk.plan import Plan, graph_chunk, max_residuals, plan_call
from myfla.ops._delta.families.base import Family
from myfla.ops._delta.graph_op import differentiable_op

__all__ = ["graph_rule", "make_graph_op"]

_OPTIONS = "float scale, bool l2norm, ScalarType dtype, ScalarType out_dtype, bool keep"
_ops: Dict[str, Any] = {}


def graph_rule(call: Call) -> Result:
    """The rule over a checked call, as an operation of the graph that is being recorded."""
    call = call.activated(zero_g=True)
    call = call if call.family.fuses_l2norm else call.normalised()
    keep = any(x is not None and x.requires_grad for x in call_tensors(call))
    return _ops[call.family.name](
        *call.x, call.initial_state, call.cu_seqlens, call.scale, call.l2norm, call_dtype(call), call.out_dtype, keep
    )[:2]


def _plan(family: Family, given: Tuple[Any, ...]) -> Tuple[List[torch.Tensor], Optional[torch.Tensor], Plan]:
    """The tensors, the state, and a plan that depends on sizes only."""
    count = len(family.inputs)
    x, (state, cu_seqlens, scale, l2norm, dtype, out_dtype) = list(given[:count]), given[count : count + 6]
    sequences = x[0].shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    plan = plan_call(
        family, x, scale, l2norm, cu_seqlens, sequences, graph_chunk(family, x), dtype, out_dtype, for_graph=True
    )
    return x, state, plan


def _residuals_size(family: Family, given: Tuple[Any, ...]) -> Any:
    """Elements that the forward saves at most, for any offsets."""
    x, cu_seqlens = given[: len(family.inputs)], given[len(family.inputs) + 1]
    (key, (heads, value)), chunk = (x[1].shape[3], x[2].shape[2:]), graph_chunk(family, x)
    batch, tokens = x[0].shape[:2]
    if cu_seqlens is None:
        chunks = batch * ((tokens + chunk - 1) // chunk)
    else:
        chunks = tokens // chunk + cu_seqlens.shape[0] - 1
    return max_residuals(family, chunk, key, value, chunks, heads)


def make_graph_op(family: Family) -> None:
    """Make the operation of a family, once."""

    def forward(*given: Any) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x, state, plan = _plan(family, given)
        residuals = x[2].new_empty(_residuals_size(family, given) if given[-1] else 0, dtype=plan.dtype)
        with torch.no_grad():
            o, final = chunk_fwd(x[2], x, state, plan, residuals if given[-1] else None)
        return o, final, residuals

    def backward(*given: Any) -> List[torch.Tensor]:
        *call, residuals, do, dfinal = given
        x, state, plan = _plan(family, tuple(call))
        with torch.no_grad():
            grads, dinitial = chunk_bwd(do, dfinal, x, plan, residuals, state is None)
        return grads if state is None else [*grads, dinitial.to(state.dtype)]

    def fake(*given: Any) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        k, v, (_, cu_seqlens, _, _, dtype, out_dtype, keep) = given[1], given[2], given[len(family.inputs) :]
        rows = v.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
        final = v.new_empty((rows, v.shape[2], k.shape[3], v.shape[3]), dtype=dtype)
        residuals = v.new_empty((_residuals_size(family, given) if keep else 0,), dtype=dtype)
        return v.new_empty(v.shape, dtype=out_dtype), final, residuals

    inputs = [*(f"Tensor {x}" for x in family.inputs), "Tensor? initial_state", "Tensor? cu_seqlens"]
    _ops[family.name] = differentiable_op(
        f"chunk_{family.name}", inputs, _OPTIONS, "(Tensor, Tensor, Tensor)", forward, backward, fake,
        "Tensor residuals", constants=1,
    )  # fmt: skip
