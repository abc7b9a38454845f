"""This form as one operation of a compiled graph, with the tensors saved for its backward.

The graph keeps the residuals of the forward for the backward, so that the forward is not run again. The number of
chunks of packed sequences is not known when a graph is made: their operation keeps no residuals, and its backward
computes them again.
"""

import functools
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch

from myfla.backends.compiler import compiler_problem
from myfla.ops._delta.bf16.chunks import bf16_chunks, plan_call
from myfla.ops._delta.bf16.dplr import DPLR
from myfla.ops._delta.bf16.form import Family, Plan, Residuals, backward, forward
from myfla.ops._delta.bf16.gated_delta import GATED_DELTA
from myfla.ops._delta.bf16.kda import KDA
from myfla.ops._delta.bf16.layout import chunk_size as choose_chunk
from myfla.ops._delta.bf16.layout import count_parts
from myfla.ops._delta.graph_op import differentiable_op

__all__ = ["graph_chunks"]

_OPTIONS = "float scale, bool l2norm, int chunk, float? lower_bound"
_OPS: Dict[str, Any] = {}
_PACKED: Dict[str, Any] = {}


def graph_chunks(
    family: Family, tensors: Sequence[torch.Tensor], initial_state: Optional[torch.Tensor], scale: float,
    chunk: Optional[int] = None, l2norm: bool = False, lower_bound: Optional[float] = None,
    cu_seqlens: Optional[torch.Tensor] = None,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """`chunks.bf16_chunks` for a compiler, with the same arguments and results."""
    if cu_seqlens is not None:
        o, final = _PACKED[family.name](initial_state, *tensors, cu_seqlens, scale, l2norm, chunk or 0, lower_bound)
        return o, final
    o, final, *_ = _OPS[family.name](initial_state, *tensors, scale, l2norm, chunk or 0, lower_bound)
    return o, final


def _make(family: Family) -> None:
    """Make the operations of a family; none before PyTorch 2.5, whose operations cannot have lists of tensors."""
    if not hasattr(getattr(torch, "library", None), "register_vmap"):
        return
    inputs = ["Tensor? initial_state", *(f"Tensor {name}" for name in family.inputs)]
    name = f"bf16_{family.name}"
    of = functools.partial
    _OPS[family.name] = differentiable_op(
        name, inputs, _OPTIONS, "Tensor[]", of(_forward, family), of(_backward, family), of(_fake, family),
        "Tensor[] kept",
    )  # fmt: skip
    _PACKED[family.name] = differentiable_op(
        f"{name}_packed", [*inputs, "Tensor cu_seqlens"], _OPTIONS, "(Tensor, Tensor)", of(_packed_forward, family),
        of(_packed_backward, family), of(_packed_fake, family), constants=1,
    )  # fmt: skip


def _packed_forward(family: Family, state: Optional[torch.Tensor], *given: Any) -> Tuple[torch.Tensor, torch.Tensor]:
    *tensors, cu_seqlens, scale, l2norm, chunk, lower_bound = given
    with torch.no_grad():
        o, final = bf16_chunks(
            family, tensors, state, scale, cu_seqlens=cu_seqlens, chunk=chunk or None, l2norm=l2norm,
            lower_bound=lower_bound,
        )  # fmt: skip
    return o.contiguous(), final.contiguous()


def _packed_backward(family: Family, state: Optional[torch.Tensor], *given: Any) -> List[torch.Tensor]:
    *tensors, cu_seqlens, scale, l2norm, chunk, lower_bound, do, dfinal = given
    with torch.no_grad():
        plan = plan_call(tensors, state, scale, cu_seqlens, chunk or None, l2norm=l2norm, lower_bound=lower_bound)
        _, _, kept = forward(tensors[2], family, tensors, state, plan)
        grads, dinitial = backward(do, family, tensors, dfinal, plan, kept)
    return [x.contiguous() for x in ([] if state is None else [dinitial.to(state.dtype)]) + list(grads)]


def _packed_fake(family: Family, *given: Any) -> Tuple[torch.Tensor, torch.Tensor]:
    k, v, cu_seqlens = given[2], given[3], given[len(family.inputs) + 1]
    states = cu_seqlens.shape[0] - 1, v.shape[2], k.shape[3], v.shape[3]
    return v.new_empty(v.shape), v.new_empty(states, dtype=torch.float32)


def _fuses(device: torch.device) -> bool:
    """Whether the passes can be compiled too; this does not depend on the compiler of the graph around them."""
    return compiler_problem(device.type) is None


def _plan(
    tensors: Sequence[torch.Tensor], state: Optional[torch.Tensor], scale: float, l2norm: bool, chunk: int,
    lower_bound: Optional[float],
) -> Plan:
    return plan_call(
        tensors, state, scale, chunk=chunk or None, l2norm=l2norm, lower_bound=lower_bound,
        fuse=_fuses(tensors[0].device),
    )  # fmt: skip


def _forward(family: Family, state: Optional[torch.Tensor], *given: Any) -> List[torch.Tensor]:
    tensors, options = given[:-4], given[-4:]
    with torch.no_grad():
        o, final, kept = forward(tensors[2], family, tensors, state, _plan(tensors, state, *options))
    return [o, final, *(o.new_empty(0) if x is None else x.contiguous() for x in kept.flat())]


def _backward(family: Family, state: Optional[torch.Tensor], *given: Any) -> List[torch.Tensor]:
    count = len(family.inputs)
    tensors, options, (kept, do, dfinal) = given[:count], given[count:-3], given[-3:]
    flat = [None if i == 2 and not x.numel() else x for i, x in enumerate(kept)]  # no transitions
    with torch.no_grad():
        plan = _plan(tensors, state, *options)
        grads, dinitial = backward(do, family, tensors, dfinal, plan, Residuals.of(flat))
    if state is not None:
        grads.insert(0, dinitial.to(state.dtype))
    return [x.contiguous() for x in grads]


def _fake(family: Family, state: Optional[torch.Tensor], *given: Any) -> List[torch.Tensor]:
    """Shapes and dtypes of `_forward`'s results."""
    tensors, (_, _, chunk, lower_bound) = given[:-4], given[-4:]
    v, key = tensors[2], tensors[1].shape[3]
    batch, tokens, heads, value = v.shape
    c = chunk or choose_chunk(tokens)
    count = -(-tokens // c)
    parts = count_parts(batch * heads, count)
    m, r = batch * heads * parts * -(-count // parts), 2 * c if family.pair else c
    wide = torch.float32

    def make(*shape: Any, dtype: torch.dtype = v.dtype) -> torch.Tensor:
        return v.new_empty(shape, dtype=dtype)

    transitions = make(batch * parts, heads, key, key, dtype=wide) if parts > 1 else make(0)
    g_last = make(m, key if family.channels else 1, 1, dtype=wide)
    A_v = make(m, 2 * c, c) if family.pair else make(0)
    kept = [make(m, c, c), make(m, key + r, value), transitions, g_last, make(m, 2 * c, key + r), make(m, c, key),
            make(m, r, key), A_v]  # fmt: skip
    saved = [make(n * m, *shape, dtype=dtype) for n, shape, dtype in family.saved(c, key, v, lower_bound)]
    return [make(*v.shape), make(batch, heads, key, value, dtype=wide), *kept, *saved]


for _family in (GATED_DELTA, KDA, DPLR):
    _make(_family)
