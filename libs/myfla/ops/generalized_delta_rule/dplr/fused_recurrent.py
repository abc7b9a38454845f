"""`fused_recurrent_dplr_delta_rule`: token by token, for decoding and short inputs."""

from typing import Any, List, Optional, Tuple

import torch

from myfla.backends.choice import choose
from myfla.backends.compiler import compiled
from myfla.backends.official import RECURRENT_DPLR
from myfla.ops.common.inplace import check_inplace, put_back
from myfla.ops.generalized_delta_rule.dplr.chunk import run_chunks
from myfla.ops.generalized_delta_rule.dplr.inputs import check_inputs, is_plain_step
from myfla.ops.generalized_delta_rule.dplr.other_backends import naive_tokens, official_rule
from myfla.ops.generalized_delta_rule.dplr.plain import plain_rule, plain_step
from myfla.ops.generalized_delta_rule.dplr.recorded import recorded_chunks
from myfla.ops.generalized_delta_rule.dplr.recurrence import recurrent_forward
from myfla.utils.autograd import backward_through
from myfla.utils.tensors import check_scale
from myfla.utils.tracing import tracing

__all__ = ["fused_recurrent_dplr_delta_rule"]

NAME = "fused_recurrent_dplr_delta_rule"


def fused_recurrent_dplr_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    gk: torch.Tensor,
    scale: Optional[float] = None,
    initial_state: Optional[torch.Tensor] = None,
    output_final_state: bool = False,
    reverse: bool = False,
    cu_seqlens: Optional[torch.Tensor] = None,
    *,
    inplace_final_state: bool = False,
    backend: str = "auto",
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """The delta rule of `chunk_dplr_delta_rule`, one token after another; continues from a state, and trains.

    Every token costs the same few operations on tensors of the same shape, so a sequence split into any number of
    calls gives the same bits, and every log decay is safe. The backward runs the chunk form.

    Args:
        q, k, a, b: ``[B, T, H, K]``.
        v: ``[B, T, H, V]``.
        gk: ``[B, T, H, K]`` log decay of each key channel.
        scale: factor on q; ``K ** -0.5`` by default.
        initial_state: ``[N, H, K, V]``, zeros by default. Never written, unless ``inplace_final_state`` asks for it.
        output_final_state: also return the state after the last token of each sequence.
        reverse: walk every sequence from its last token to its first.
        cu_seqlens: ``[N + 1]`` int32 or int64, sequences packed in one row (B = 1); empty ones are fine.
        inplace_final_state: write the final state into ``initial_state``, which must be contiguous and float32
            (float64), and return that. For decoding, where nobody else looks at the old state; not with autograd.
        backend: whose code computes, see `myfla.backends`.

    Returns:
        o ``[B, T, H, V]`` in v's dtype; the final states ``[N, H, K, V]`` in float32 (or float64), or None.

    Raises:
        ValueError: a shape or offset that does not fit; the message says which.
        BackendError: a backend that is unknown or cannot compute this here.

    Example:
        >>> x = torch.ones(1, 1, 1, 1)
        >>> o, state = fused_recurrent_dplr_delta_rule(x, x, x, 0 * x, x, 0 * x, output_final_state=True)
        >>> fused_recurrent_dplr_delta_rule(x, x, x, 0 * x, x, 0 * x, initial_state=state)[0].item()
        2.0
    """
    keys = {"q": q, "k": k, "a": a, "b": b, "gk": gk}
    plain = is_plain_step(tuple(keys.values()), v, initial_state, cu_seqlens)
    rows = len(q) if plain else check_inputs(NAME, keys, v, initial_state, cu_seqlens)
    scale = check_scale(NAME, scale, q.shape[3])
    if inplace_final_state and not plain:
        check_inplace(NAME, initial_state, q, k, v, a, b, gk)
    tensors = (q, k, v, a, b, gk)
    who_computes = choose(NAME, backend, RECURRENT_DPLR, *tensors, initial_state)
    o, final = run_tokens(
        tensors, scale, initial_state, reverse, cu_seqlens, rows, who_computes, inplace_final_state
    )
    return o, final if output_final_state else None


def run_tokens(
    tensors: Tuple[torch.Tensor, ...],
    scale: Optional[float],
    initial_state: Optional[torch.Tensor],
    reverse: bool,
    cu_seqlens: Optional[torch.Tensor],
    rows: int,
    who_computes: str = "torch",
    inplace: bool = False,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """`fused_recurrent_dplr_delta_rule` with checked arguments (``tensors`` are q, k, v, a, b, gk), of N = ``rows``
    sequences; always returns the final state, with ``inplace`` in ``initial_state``."""
    o, final = _by_backend(tensors, scale, initial_state, reverse, cu_seqlens, rows, who_computes, inplace)
    return o, put_back(initial_state, final) if inplace and initial_state is not None else final


def _by_backend(tensors, scale, initial_state, reverse, cu_seqlens, rows, who_computes, inplace):
    scale = tensors[0].shape[3] ** -0.5 if scale is None else float(scale)
    if who_computes == "compiled":
        return compiled(_traced)(tensors, scale, initial_state, reverse, cu_seqlens)
    if who_computes == "torch" and tracing(*tensors):
        return _traced(tensors, scale, initial_state, reverse, cu_seqlens)
    if who_computes == "fla":
        q, k, v, a, b, gk = tensors
        return official_rule(RECURRENT_DPLR, q, k, v, a, b, gk, scale, initial_state, cu_seqlens, reverse=reverse)
    if reverse:
        tensors = tuple(_reverse(x, cu_seqlens) for x in tensors)
    if who_computes == "naive":
        o, final = naive_tokens(*tensors, scale, initial_state, cu_seqlens)
        o = o.to(tensors[2].dtype)
        return _reverse(o, cu_seqlens) if reverse else o, final
    given = (*tensors, initial_state)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in given):
        o, final = _RecurrentDPLRFunction.apply(*given, scale, cu_seqlens, rows)
    else:
        o, final = recurrent_forward(*tensors, scale, initial_state, cu_seqlens, rows, inplace)
    return _reverse(o, cu_seqlens) if reverse else o, final


def _traced(tensors, scale, initial_state, reverse, cu_seqlens):
    """One step of the rule for one token, else chunks: a compiled graph of the loop would hold every token."""
    if reverse:
        tensors = tuple(_reverse(x, cu_seqlens) for x in tensors)
    if cu_seqlens is None and tensors[0].shape[1] == 1:
        o, final = plain_step(*tensors, scale, initial_state)
    else:
        q, k, v, a, b, gk = tensors
        o, final = recorded_chunks(q, k, v, a, b, gk, scale, initial_state, cu_seqlens)
    o = o.to(tensors[2].dtype)
    return _reverse(o, cu_seqlens) if reverse else o, final


def _reverse(x: torch.Tensor, cu_seqlens: Optional[torch.Tensor]) -> torch.Tensor:
    """Every sequence back to front."""
    if cu_seqlens is None:
        return x.flip(1)
    bounds = cu_seqlens.long()
    token = torch.arange(x.shape[1], device=x.device)
    row = torch.searchsorted(bounds[1:], token, right=True)
    return x.index_select(1, (bounds[:-1] + bounds[1:] - 1)[row] - token)


class _RecurrentDPLRFunction(torch.autograd.Function):
    """Token by token forward; backward through the chunk form, whose gradients are those of the same function."""

    @staticmethod
    def forward(ctx, q, k, v, a, b, gk, initial_state, scale, cu_seqlens, rows):
        ctx.save_for_backward(q, k, v, a, b, gk, initial_state)
        ctx.scale, ctx.cu_seqlens, ctx.rows = scale, cu_seqlens, rows
        return recurrent_forward(q, k, v, a, b, gk, scale, initial_state, cu_seqlens, rows)

    @staticmethod
    def backward(ctx, do, dfinal):
        needed = ctx.needs_input_grad[:7]
        if torch.is_grad_enabled():  # create_graph: second derivatives go through plain operations
            rule = plain_rule(ctx.scale, ctx.cu_seqlens)
            return (*backward_through(rule, ctx.saved_tensors, needed, (do, dfinal)), None, None, None)
        inputs: List[Any] = [x if x is None else x.detach() for x in ctx.saved_tensors]
        q, k, v, a, b, gk, state = inputs
        wanted = [x.requires_grad_() for x, need in zip(inputs, needed) if need]
        with torch.enable_grad():
            o, final = run_chunks(q, k, v, a, b, gk, ctx.scale, state, ctx.cu_seqlens, ctx.rows)
            found = iter(torch.autograd.grad((o, final), wanted, (do.to(o.dtype), dfinal.to(final.dtype))))
        return (*(next(found) if need else None for need in needed), None, None, None)
