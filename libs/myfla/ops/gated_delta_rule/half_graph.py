"""The half-precision form as one operation of a compiled graph, with what it keeps for its backward.

As `myfla.utils.graph_op` has it for the float32 form, except that the backward does not run the forward again: the
graph carries what was kept from one to the other.
"""

import functools
from typing import Any, List, Optional, Tuple

import torch

from myfla.backends.compiler import compiler_problem
from myfla.ops.common.half_tokens import cut_dense
from myfla.ops.gated_delta_rule.half_bwd import half_backward
from myfla.ops.gated_delta_rule.half_chunk import describe_call
from myfla.ops.gated_delta_rule.half_factors import Factors
from myfla.ops.gated_delta_rule.half_fwd import Kept, half_forward
from myfla.utils.dtypes import has_float64
from myfla.utils.graph_op import one_by_one

__all__ = ["recorded_half"]

_INPUTS = "Tensor q, Tensor k, Tensor v, Tensor g, Tensor beta, Tensor? initial_state"
_OPTIONS = "float scale, bool unit, int chunk"
_KEPT = len(Kept._fields) - 1 + len(Factors._fields)
NAME = "myfla::half_chunk_gated_delta_rule"


def recorded_half(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    initial_state: Optional[torch.Tensor],
    scale: float,
    unit: bool,
    chunk: Optional[int],
) -> Tuple[torch.Tensor, torch.Tensor]:
    """`half_chunk.half_chunks` for a compiler; arguments and results as there."""
    return _FORWARD(q, k, v, g, beta, initial_state, scale, unit, chunk or 0)[:2]


def _fuses(device: torch.device) -> bool:
    """Whether the passes can be compiled too, whatever it is that compiles the graph around them."""
    return compiler_problem(device.type) is None


def _forward(*given: Any) -> Tuple[torch.Tensor, ...]:
    *tensors, scale, unit, chunk = given
    how = describe_call(tensors, scale, unit, chunk or None, fuse=_fuses(tensors[2].device))
    with torch.no_grad():
        o, final, kept = half_forward(*tensors, how)
    nothing = o.new_empty(0)
    return (o, final, *(nothing if x is None else x for x in kept.flat()))


def _backward(*given: Any) -> List[torch.Tensor]:
    q, k, v, g, beta, initial_state, kept, do, dfinal, scale, unit, chunk = given
    tensors = (q, k, v, g, beta, initial_state)
    how = describe_call(tensors, scale, unit, chunk or None, fuse=_fuses(v.device))
    kept = Kept.of(kept)
    if kept.passed is not None and not kept.passed.numel():
        kept = kept._replace(passed=None)
    with torch.no_grad():
        *grads, dinitial = half_backward(do, dfinal, q, k, v, g, beta, how, kept)
    if initial_state is not None:
        grads.append(dinitial.to(initial_state.dtype))
    return [x.contiguous() for x in grads]


def _promised(*given: Any) -> Tuple[torch.Tensor, ...]:
    """Shapes and dtypes of `_forward`'s results."""
    q, k, v, g, beta, initial_state, _, _, chunk = given
    cut, key, value = cut_dense(v, chunk or None), k.shape[3], v.shape[3]
    m, c = cut.matrices, cut.chunk
    half = [(2 * c, key), (value + c, key), (2 * c, key), (c, key), (c, value), (c, c), (c, c)]
    kept = [v.new_empty((m, *shape)) for shape in half]
    wide = torch.float64 if has_float64(v.device) else torch.float32
    passed = (cut.rows, key, key) if cut.groups > 1 else (0,)
    passed = v.new_empty(passed, dtype=torch.float32 if cut.groups > 1 else v.dtype)
    factors = [v.new_empty((m, c, 1), dtype=torch.float32) for _ in range(5)] + [v.new_empty((m, c, 1), dtype=wide)]
    final = v.new_empty((v.shape[0], v.shape[2], key, value), dtype=torch.float32)
    return (v.new_empty(v.shape), final, *kept, passed, *factors)


def _keep(ctx: Any, inputs: Tuple[Any, ...], output: Tuple[torch.Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:6], *output[2:])
    ctx.options = inputs[6:]


def _differentiate(ctx: Any, do: torch.Tensor, dfinal: torch.Tensor, *_: Any) -> Tuple[Optional[torch.Tensor], ...]:
    tensors, kept = ctx.saved_tensors[:6], ctx.saved_tensors[6:]
    found = _BACKWARD(*tensors, list(kept), do, dfinal, *ctx.options)
    return (*found[:5], found[5] if tensors[5] is not None else None, None, None, None)


def _make() -> Tuple[Any, Any]:
    results = ", ".join(["Tensor"] * (2 + _KEPT))
    op = torch.library.custom_op(
        NAME, _forward, mutates_args=(), schema=f"({_INPUTS}, {_OPTIONS}) -> ({results})"
    )
    op_backward = torch.library.custom_op(
        f"{NAME}_backward", _backward, mutates_args=(),
        schema=f"({_INPUTS}, Tensor[] kept, Tensor do, Tensor dfinal, {_OPTIONS}) -> Tensor[]",
    )  # fmt: skip
    op.register_fake(_promised)
    op_backward.register_fake(lambda *given: [x.new_empty(x.shape) for x in given[:6] if x is not None])
    op.register_autograd(_differentiate, setup_context=_keep)
    op.register_vmap(functools.partial(one_by_one, op))
    return op, op_backward


_FORWARD: Any = None
_BACKWARD: Any = None
if hasattr(getattr(torch, "library", None), "register_vmap"):
    _FORWARD, _BACKWARD = _make()
