"""This form as one operation of a compiled graph, with what it keeps for its backward.

The graph carries the residuals from one direction to the other, so that the backward does not run the forward again.
How many chunks packed sequences have is not known when a graph is made: their operation carries none, and its backward
finds them again.
"""

import functools
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch

from myfla.backends.compiler import compiler_problem
from myfla.ops._delta.bf16.chunks import bf16_chunks, describe_call
from myfla.ops._delta.bf16.dplr import DPLR
from myfla.ops._delta.bf16.form import Family, Options, Residuals, backward, forward
from myfla.ops._delta.bf16.gated_delta import GATED_DELTA
from myfla.ops._delta.bf16.kda import KDA
from myfla.ops._delta.bf16.layout import chunk_size as choose_chunk
from myfla.ops._delta.bf16.layout import count_parts
from myfla.ops._delta.version import op_name
from myfla.utils.graph_op import one_by_one

__all__ = ["graph_chunks"]

_OPTIONS = "float scale, bool l2norm, int chunk, float? lower_bound"
_OPS: Dict[str, Any] = {}
_PACKED: Dict[str, Any] = {}


def graph_chunks(
    family: Family, tensors: Sequence[torch.Tensor], initial_state: Optional[torch.Tensor], scale: float,
    chunk: Optional[int] = None, l2norm: bool = False, lower_bound: Optional[float] = None,
    cu_seqlens: Optional[torch.Tensor] = None,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """`chunks.bf16_chunks` for a compiler; arguments and results as there."""
    if cu_seqlens is not None:
        o, final = _PACKED[family.name](initial_state, *tensors, cu_seqlens, scale, l2norm, chunk or 0, lower_bound)
        return o, final
    o, final, *_ = _OPS[family.name](initial_state, *tensors, scale, l2norm, chunk or 0, lower_bound)
    return o, final


def _make(family: Family) -> None:
    """Register the operations of a family; nothing in a PyTorch that cannot have them (before 2.5)."""
    if not hasattr(getattr(torch, "library", None), "register_vmap"):
        return
    count = len(family.inputs) + 1
    inputs = ", ".join(["Tensor? initial_state", *(f"Tensor {name}" for name in family.inputs)])
    name = f"bf16_{family.name}"
    op = torch.library.custom_op(
        op_name(name), functools.partial(_forward, family), mutates_args=(),
        schema=f"({inputs}, {_OPTIONS}) -> Tensor[]",
    )  # fmt: skip
    op_bwd = torch.library.custom_op(
        op_name(f"{name}_backward"), functools.partial(_backward, family), mutates_args=(),
        schema=f"({inputs}, Tensor[] kept, Tensor do, Tensor dfinal, {_OPTIONS}) -> Tensor[]",
    )  # fmt: skip
    op.register_fake(functools.partial(_promised, family))
    op_bwd.register_fake(lambda *given: [x.new_empty(x.shape) for x in given[:count] if x is not None])
    op.register_autograd(
        functools.partial(_differentiate, op_bwd, count), setup_context=functools.partial(_keep, count)
    )
    op.register_vmap(functools.partial(one_by_one, op))
    _OPS[family.name] = op
    _PACKED[family.name] = _make_packed(family, f"{name}_packed", f"{inputs}, Tensor cu_seqlens")


def _make_packed(family: Family, name: str, inputs: str) -> Any:
    """The operation for packed sequences."""
    count = len(family.inputs) + 1
    op = torch.library.custom_op(
        op_name(name), functools.partial(_packed_forward, family), mutates_args=(),
        schema=f"({inputs}, {_OPTIONS}) -> (Tensor, Tensor)",
    )  # fmt: skip
    op_bwd = torch.library.custom_op(
        op_name(f"{name}_backward"), functools.partial(_packed_backward, family), mutates_args=(),
        schema=f"({inputs}, Tensor do, Tensor dfinal, {_OPTIONS}) -> Tensor[]",
    )

    @op.register_fake
    def _(*given: Any) -> Tuple[torch.Tensor, torch.Tensor]:
        k, v, cu_seqlens = given[2], given[3], given[count]
        states = cu_seqlens.shape[0] - 1, v.shape[2], k.shape[3], v.shape[3]
        return v.new_empty(v.shape), v.new_empty(states, dtype=torch.float32)

    op_bwd.register_fake(lambda *given: [x.new_empty(x.shape) for x in given[:count] if x is not None])

    def keep(ctx: Any, inputs: Tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[: count + 1])
        ctx.options = inputs[count + 1 :]

    def differentiate(ctx: Any, do: torch.Tensor, dfinal: torch.Tensor) -> Tuple[Any, ...]:
        found = op_bwd(*ctx.saved_tensors, do, dfinal, *ctx.options)
        return (*([None] if ctx.saved_tensors[0] is None else []), *found, *[None] * 5)

    op.register_autograd(differentiate, setup_context=keep)
    op.register_vmap(functools.partial(one_by_one, op))
    return op


def _packed_forward(family: Family, state: Optional[torch.Tensor], *given: Any) -> Tuple[torch.Tensor, torch.Tensor]:
    *tensors, cu_seqlens, scale, l2norm, chunk, lower_bound = given
    with torch.no_grad():
        o, final = bf16_chunks(
            family, tensors, state, scale, cu_seqlens=cu_seqlens, chunk=chunk or None, l2norm=l2norm,
            lower_bound=lower_bound,
        )  # fmt: skip
    return o.contiguous(), final.contiguous()


def _packed_backward(family: Family, state: Optional[torch.Tensor], *given: Any) -> List[torch.Tensor]:
    *tensors, cu_seqlens, do, dfinal, scale, l2norm, chunk, lower_bound = given
    with torch.no_grad():
        how = describe_call(tensors, state, scale, cu_seqlens, chunk or None, l2norm=l2norm, lower_bound=lower_bound)
        _, _, kept = forward(tensors[2], family, tensors, state, how)
        grads, dinitial = backward(do, family, tensors, dfinal, how, kept)
    return [x.contiguous() for x in ([] if state is None else [dinitial.to(state.dtype)]) + list(grads)]


def _fuses(device: torch.device) -> bool:
    """Whether the passes can be compiled too, whatever it is that compiles the graph around them."""
    return compiler_problem(device.type) is None


def _describe(
    tensors: Sequence[torch.Tensor], state: Optional[torch.Tensor], scale: float, l2norm: bool, chunk: int,
    lower_bound: Optional[float],
) -> Options:
    return describe_call(
        tensors, state, scale, chunk=chunk or None, l2norm=l2norm, lower_bound=lower_bound,
        fuse=_fuses(tensors[0].device),
    )  # fmt: skip


def _forward(family: Family, state: Optional[torch.Tensor], *given: Any) -> List[torch.Tensor]:
    tensors, options = given[:-4], given[-4:]
    with torch.no_grad():
        o, final, kept = forward(tensors[2], family, tensors, state, _describe(tensors, state, *options))
    return [o, final, *(o.new_empty(0) if x is None else x.contiguous() for x in kept.flat())]


def _backward(family: Family, state: Optional[torch.Tensor], *given: Any) -> List[torch.Tensor]:
    count = len(family.inputs)
    tensors, (kept, do, dfinal), options = given[:count], given[count : count + 3], given[count + 3 :]
    flat = [None if i == 2 and not x.numel() else x for i, x in enumerate(kept)]  # no transitions
    with torch.no_grad():
        how = _describe(tensors, state, *options)
        grads, dinitial = backward(do, family, tensors, dfinal, how, Residuals.of(flat))
    if state is not None:
        grads.insert(0, dinitial.to(state.dtype))
    return [x.contiguous() for x in grads]


def _promised(family: Family, state: Optional[torch.Tensor], *given: Any) -> List[torch.Tensor]:
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


def _keep(count: int, ctx: Any, inputs: Tuple[Any, ...], output: Sequence[torch.Tensor]) -> None:
    ctx.save_for_backward(*inputs[:count], *output[2:])
    ctx.options = inputs[count:]


def _differentiate(op_bwd: Any, count: int, ctx: Any, grads: Sequence[Optional[torch.Tensor]]) -> Tuple[Any, ...]:
    tensors, kept = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
    do, dfinal = grads[:2]
    v = tensors[3]
    do = torch.zeros_like(v) if do is None else do
    if dfinal is None:
        dfinal = v.new_zeros(v.shape[0], v.shape[2], tensors[2].shape[3], v.shape[3], dtype=torch.float32)
    found = op_bwd(*tensors, list(kept), do, dfinal, *ctx.options)
    return (*([None] if tensors[0] is None else []), *found, None, None, None, None)


for _family in (GATED_DELTA, KDA, DPLR):
    _make(_family)
