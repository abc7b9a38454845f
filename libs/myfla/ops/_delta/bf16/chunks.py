"""A call of this form: the check whether it can be used, and its autograd function."""

from typing import Any, Callable, Optional, Sequence, Tuple

import torch

from myfla.backends.compiler import compiled
from myfla.ops._delta.bf16.form import Family, Plan, Residuals, backward, forward
from myfla.ops._delta.bf16.layout import Layout, dense_layout, packed_layout
from myfla.ops._delta.bf16.products import has_matrix_units
from myfla.utils.autograd import backward_through, records
from myfla.utils.dtypes import accumulation_dtype

__all__ = ["bf16_chunks", "bf16_problem", "plan_call"]


def bf16_problem(tokens: Sequence[torch.Tensor], *more: Optional[torch.Tensor]) -> Optional[str]:
    """The reason why this form cannot be used, or None: it is for bfloat16 on a GPU, without float64.

    The range of float16 is too small for sums over a chunk; it is computed with float32 products.

    Args:
        tokens: the tensors of products.
        more: decays, strengths and states, which may be float32.
    """
    if not has_matrix_units(tokens[0].device):
        return "needs a GPU with matrix units and PyTorch 2.8"
    if tokens[0].numel() == 0:
        return "it does not support empty inputs"
    if any(x.dtype != torch.bfloat16 for x in tokens) or accumulation_dtype(*tokens, *more) != torch.float32:
        return "it is for bfloat16, without float64 tensors"
    return None


def bf16_chunks(
    family: Family,
    tensors: Sequence[torch.Tensor],
    initial_state: Optional[torch.Tensor],
    scale: float,
    formula: Optional[Callable[..., Any]] = None,
    cu_seqlens: Optional[torch.Tensor] = None,
    chunk: Optional[int] = None,
    layout: Optional[Layout] = None,
    **options: Any,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """The chunk form of checked arguments.

    Args:
        family: which rule.
        tensors: its inputs, ``[B, T, H or HV, ...]``.
        initial_state: ``[N, HV, K, V]`` or None.
        scale: factor on q.
        formula: the same function of ``(*tensors, initial_state)`` in differentiable operations, for second
            derivatives.
        cu_seqlens: ``[N + 1]``, sequences packed in one row (B = 1).
        chunk: tokens in a chunk, 16, 32 or 64.
        layout: of the chunks; by default made from the other arguments.
        **options: further fields of `Plan`.

    Returns:
        o ``[B, T, HV, V]`` in v's dtype and the final states ``[N, HV, K, V]`` in float32 (or float64).
    """
    plan = plan_call(tensors, initial_state, scale, cu_seqlens, chunk, layout, **options)
    if records(*tensors, initial_state):
        return _Chunks.apply(family, plan, formula, initial_state, *tensors)
    return forward(tensors[2], family, tensors, initial_state, plan)[:2]


def plan_call(
    tensors: Sequence[torch.Tensor], initial_state: Optional[torch.Tensor], scale: float,
    cu_seqlens: Optional[torch.Tensor] = None, chunk: Optional[int] = None, layout: Optional[Layout] = None,
    **options: Any,
) -> Plan:
    """The plan, made before anything is computed; arguments as for `bf16_chunks`."""
    v = tensors[2]
    batch, tokens, heads = v.shape[:3]
    if layout is None and cu_seqlens is not None:
        layout = packed_layout(cu_seqlens, heads, v.device, chunk)
    if layout is None:
        run = compiled if options.get("fuse") else lambda function: function
        layout = dense_layout(batch, tokens, heads, v.device, chunk, run=run)
    return Plan(layout, scale, accumulation_dtype(*tensors, initial_state), **options)


class _Chunks(torch.autograd.Function):
    """The hand-written forward and backward pass."""

    @staticmethod
    def forward(
        ctx: Any, family: Family, plan: Plan, formula: Optional[Callable[..., Any]],
        initial_state: Optional[torch.Tensor], *tensors: torch.Tensor,
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        # Detached, so that a compiler sees the same function of the same tensors with and without gradients.
        state = None if initial_state is None else initial_state.detach()
        given = [x.detach() for x in tensors]
        o, final, kept = forward(given[2], family, given, state, plan)
        ctx.save_for_backward(initial_state, *tensors, *kept.flat())
        ctx.call = family, plan, formula, len(tensors)
        ctx.set_materialize_grads(False)
        return o, final

    @staticmethod
    def backward(ctx: Any, do: Optional[torch.Tensor], dfinal: Optional[torch.Tensor]) -> Tuple[Any, ...]:
        family, plan, formula, count = ctx.call
        initial_state, *tensors = ctx.saved_tensors[: count + 1]
        if torch.is_grad_enabled() and formula is not None:  # create_graph: second derivatives
            needs = ctx.needs_input_grad
            inputs, needed = (*tensors, initial_state), (*needs[4:], needs[3])
            *found, dinitial = backward_through(formula, inputs, needed, (do, dfinal))
            return (None, None, None, dinitial, *found)
        tensors = [x.detach() for x in tensors]
        do = torch.zeros_like(tensors[2]) if do is None else do
        kept = Residuals.of(ctx.saved_tensors[count + 1 :])
        grads, dinitial = backward(do, family, tensors, dfinal, plan, kept)
        return (None, None, None, None if initial_state is None else dinitial.to(initial_state.dtype), *grads)
